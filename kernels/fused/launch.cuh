/* launch.cuh - how the host launches a kernel whose blocks wait for each other. */
#ifndef DTRAIN_FUSED_LAUNCH_CUH
#define DTRAIN_FUSED_LAUNCH_CUH

#include "memory.cuh"

/* LAUNCH_TOGETHER(kernel, blocks, threads, shared bytes, stream, arguments...): all blocks on the GPU at once, or an
 * error. */
#ifndef LAUNCH_TOGETHER
template <typename... Arguments>
static cudaError_t launch_together(void (*kernel)(Arguments...), unsigned blocks, unsigned threads, size_t bytes,
                                   cudaStream_t stream, Arguments... arguments)
{
    void *pointers[] = {&arguments...};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void *>(kernel), dim3(blocks), dim3(threads), pointers,
                                       bytes, stream);
}
#define LAUNCH_TOGETHER launch_together
#endif

/* Lets the kernel have the shared memory that a block needs, on the current device. */
template <typename Kernel> static cudaError_t fit(Kernel kernel)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(memory));
}

#endif
