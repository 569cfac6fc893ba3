/* cuda_runtime.h - in place of CUDA's own where the kernels are compiled as C++ for the host: what of CUDA
 * C++ they use, and LAUNCH. See cuda_host.h. */
#ifndef DTRAIN_SHIM_CUDA_RUNTIME_H
#define DTRAIN_SHIM_CUDA_RUNTIME_H

#include <math.h>
#include <stdint.h>

#include "cuda_host.h"
#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static /* blocks run one after the other */

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* ----- the running thread -------------------------------------------------------------------------- */

struct cuda_host_index {
    unsigned x;
};
struct cuda_host_thread {
    cuda_host_index thread, block, threads, blocks;
};
extern cuda_host_thread cuda_host_thread_now;
#define threadIdx (cuda_host_thread_now.thread)
#define blockIdx (cuda_host_thread_now.block)
#define blockDim (cuda_host_thread_now.threads)
#define gridDim (cuda_host_thread_now.blocks)

void __syncthreads();
static inline void __threadfence() {}

/* Every lane of the warp hands in 8 bytes and gets those of lane `from`. */
uint64_t cuda_host_exchange(uint64_t bits, unsigned from);

template <typename T> static inline T __shfl_xor_sync(unsigned lanes, T value, unsigned mask)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    (void)lanes; /* all: the kernels never shuffle within a part of a warp */
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = cuda_host_exchange(bits, threadIdx.x % 32 ^ mask);
    memcpy(&value, &bits, sizeof value);
    return value;
}

unsigned __ballot_sync(unsigned lanes, bool yes); /* all lanes, too */

static inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
}

template <typename T> static inline T atomicAdd(T *sum, T term)
{
    T before = *sum;
    *sum += term;
    return before;
}

struct cudaFuncAttributes {
    int numRegs;
};

/* Kernels are there, unless EMULATED_UNLOADABLE is in the environment (tests/support/emulated). */
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, const void *)
{
    return getenv("EMULATED_UNLOADABLE") != nullptr ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}

/* ----- launch -------------------------------------------------------------------------------------- */

/* Runs thread(context) for every thread of every block. */
void cuda_host_run(unsigned blocks, unsigned threads, void (*thread)(void *context), void *context);

template <typename Body> static inline cudaError_t cuda_host_launch(unsigned blocks, unsigned threads, Body body)
{
    cuda_host_run(
        blocks, threads, [](void *context) { (*static_cast<Body *>(context))(); }, &body);
    return cudaSuccess;
}

#define LAUNCH(kernel, blocks, threads, stream, ...)                                                                   \
    ((void)(stream), cuda_host_launch(blocks, threads, [=] { kernel(__VA_ARGS__); }))

#endif
