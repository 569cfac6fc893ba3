/* gpu.h - the part of dtrain that needs CUDA: a shared object beside the program (of ./dtrain it is
 * ./dtrain-cuda.so), loaded the first time somebody asks for a GPU. The program neither links nor starts
 * CUDA, so it runs, and starts as fast, where there is no driver, no device or no library.
 */
#ifndef DTRAIN_GPU_H
#define DTRAIN_GPU_H

#include <stdbool.h>
#include <stddef.h>

#include "devices.h"
#include "engine.h"
#include "processor.h"

/* Something that a training step queues: a kernel, or a few of a library's. */
struct gpu_node {
    const char *layer, *pass;
    double microseconds;
};

/* What the shared object exports, under the name dtrain_gpu_part. */
struct gpu_part {
    const char *revision;              /* it was built from; another than the program's is refused */
    const struct engine_ops *engine;   /* cudnn */
    const struct transport *transport; /* nccl */
    const struct processor *processor;         /* for benchmarks */

    /* What this process sees; it is to use the GPU of this slot. */
    void (*look)(int slot, struct device *device);

    /* Collective: what a full training step of an open cudnn engine consists of, nodes[0 .. return), at most
     * `most`; times are medians outside of a CUDA graph, with nothing between the nodes but an event. Leaves
     * weights and momentum as they were. */
    int (*profile)(struct engine *engine, struct gpu_node *nodes, int most);

    /* "CUDA 13.0 (driver 13.0), cuDNN 9.19.0, cuBLAS 13.1.0, NCCL 2.28.9" */
    void (*versions)(char *text, size_t bytes);
};

/* NULL where it cannot be had; `why` then says what is missing and what would help. Cheap to call again. */
const struct gpu_part *gpu_load(char *why, size_t why_bytes);

/* The engine `cudnn` as the program knows it: loads the part, then opens the real one. */
extern const struct engine_ops engine_cudnn;

#endif
