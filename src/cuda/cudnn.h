/* cudnn.h - the cudnn engine: cuDNN, cuBLAS and the project's kernels, a step as one CUDA graph. Inside the GPU
 * part; the program finds it by gpu_find_cudnn (gpu.h).
 *
 * A rank's gradients are rounded once to fixed point and summed as integers, by NCCL as by MPI. So a run on as
 * many ranks gives the same bits each time, whatever algorithm sums. On another number of ranks it gives others:
 * cuDNN and cuBLAS add up a rank's whole part of a batch in fp32, not a tile at a time as the CPU engine does.
 */
#ifndef DTRAIN_CUDA_CUDNN_H
#define DTRAIN_CUDA_CUDNN_H

#include "engine.h"
#include "gpu.h"

extern const struct engine_ops engine_cudnn;
int cudnn_profile(struct engine *engine, struct gpu_node *nodes, int most); /* as in gpu.h */

#endif
