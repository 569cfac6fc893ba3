/* check.h - the check macros of CUDA, cuDNN, cuBLAS and NCCL: broken machinery ends the job. */
#ifndef DTRAIN_CUDA_CHECK_H
#define DTRAIN_CUDA_CHECK_H

#include <stddef.h>

#include "abort.h"

/* "rank 1 on host node2, GPU 3 (0000:61:00.0)", for a line that names the GPU of that number. Its address, by which
 * nvidia-smi and the kernel's log know it, whatever a process sees, is left out where CUDA does not tell it. */
enum { GPU_WHO_BYTES = WHO_BYTES + 40 };
void gpu_who(int device, char *text, size_t bytes);

/* Prints rank, host, device, the call and the reason, and ends the job with EXIT_RUNTIME. */
_Noreturn void gpu_failed(const char *library, const char *call, const char *file, int line, const char *reason);

#define GPU_CHECK(library, type, success, describe, call)                                                              \
    do {                                                                                                               \
        type status_ = (call);                                                                                         \
        if (status_ != (success))                                                                                      \
            gpu_failed(library, #call, __FILE__, __LINE__, describe(status_));                                         \
    } while (0)

#define CUDA_CHECK(call) GPU_CHECK("CUDA", cudaError_t, cudaSuccess, cudaGetErrorString, call)
#define CUDNN_CHECK(call) GPU_CHECK("cuDNN", cudnnStatus_t, CUDNN_STATUS_SUCCESS, cudnnGetErrorString, call)
#define CUBLAS_CHECK(call) GPU_CHECK("cuBLAS", cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasGetStatusString, call)
#define NCCL_CHECK(call) GPU_CHECK("NCCL", ncclResult_t, ncclSuccess, ncclGetErrorString, call)

#endif
