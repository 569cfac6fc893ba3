/* dropout_cuda.h - the dropout family on the GPU: dropout.h for tensors in device memory.
 *
 * Descriptors, streams, masks, results and errors are those of dropout.h. A pass over memory: what is dropped
 * with its whole channel is not even read.
 */
#ifndef DTRAIN_DROPOUT_CUDA_H
#define DTRAIN_DROPOUT_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "dropout.h"

/* x and y, dy and dx in device memory, of any alignment a float may have. They queue on cuda_stream and do
 * not wait; they can be captured into a CUDA graph, which then draws the same masks each time. Errors also
 * (EXIT_RUNTIME) when CUDA refuses the launch. */
bool dropout_cuda_forward(const struct dropout *dropout, struct dropout_stream stream, const float *x, float *y,
                          cudaStream_t cuda_stream, struct error *error);
bool dropout_cuda_backward(const struct dropout *dropout, struct dropout_stream stream, const float *dy, float *dx,
                           cudaStream_t cuda_stream, struct error *error);

#ifdef __cplusplus
}
#endif

#endif
