/* cuda_runtime_api.h - in place of CUDA's own where the kernels are compiled for the host: the few names of
 * the runtime that kernels/cuda and its tests use. Device memory is host memory, and streams run at once. */
#ifndef DTRAIN_SHIM_CUDA_RUNTIME_API_H
#define DTRAIN_SHIM_CUDA_RUNTIME_API_H

#include <stddef.h>
#include <string.h>

typedef enum { cudaSuccess = 0 } cudaError_t;
typedef struct CUstream_st *cudaStream_t;
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };

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
    (void)code;
    return "no error";
}

#endif
