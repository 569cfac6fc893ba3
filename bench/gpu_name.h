/* gpu_name.h - the first visible GPU and what runs it, for the heading of a benchmark. */
#ifndef DTRAIN_BENCH_GPU_NAME_H
#define DTRAIN_BENCH_GPU_NAME_H

#include <stdio.h>

#include "gpu.h"

/* "NVIDIA H200, CUDA 13.0 (the driver's: 13.0), ..." */
static inline void gpu_name(const struct gpu_part *part, char *text, size_t bytes)
{
    struct device device = {0};
    part->look(0, &device);
    int used = snprintf(text, bytes, "%s, ", device.name);
    part->versions(text + used, bytes - (size_t)used);
}

#endif
