/* dropout_time.h - what a pass of the dropout family costs. */
#ifndef DTRAIN_CUDA_DROPOUT_TIME_H
#define DTRAIN_CUDA_DROPOUT_TIME_H

#include "gpu.h"

/* As gpu_part's time_dropout (gpu.h). */
bool dropout_time(const struct dropout_pass *pass, size_t count, const float *x, float *y, double *microseconds,
                  struct error *error);

#endif
