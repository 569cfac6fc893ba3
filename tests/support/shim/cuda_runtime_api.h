/* cuda_runtime_api.h - in place of CUDA's own where the kernels are compiled for the host: the few names of
 * the runtime that kernels/cuda and its tests use. Device memory is host memory, and streams run at once. */
#ifndef DTRAIN_SHIM_CUDA_RUNTIME_API_H
#define DTRAIN_SHIM_CUDA_RUNTIME_API_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    cudaSuccess,
    cudaErrorMemoryAllocation,
    cudaErrorLaunchFailure,
    cudaErrorNoKernelImageForDevice = 209
} cudaError_t;
typedef struct CUstream_st *cudaStream_t;
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
enum { cudaMemAttachGlobal = 1 };

static inline cudaError_t cudaMallocManaged(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

static inline cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}

static inline cudaError_t cudaDeviceSynchronize(void)
{
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    memset(to, value, bytes);
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                          cudaStream_t stream)
{
    (void)kind, (void)stream;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t code)
{
    return code ? "out of memory" : "no error";
}

#endif
