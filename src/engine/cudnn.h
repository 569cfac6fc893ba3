/* cudnn.h - the GPU engine: cuDNN, cuBLAS and the project's kernels, a step as one CUDA graph. Inside the GPU
 * part; the program knows it as engine_cudnn (gpu.h).
 */
#ifndef DTRAIN_ENGINE_CUDNN_H
#define DTRAIN_ENGINE_CUDNN_H

#include "engine.h"

extern const struct engine_ops cudnn_engine;

#endif
