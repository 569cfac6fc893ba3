/* gpu.h - the part of dtrain that needs CUDA: a shared object beside the program (of ./dtrain it is
 * ./dtrain-cuda.so), loaded the first time somebody asks for a GPU. The program neither links nor starts
 * CUDA, so it runs, and starts as fast, where there is no driver, no device or no library.
 */
#ifndef DTRAIN_GPU_H
#define DTRAIN_GPU_H

#include <stdbool.h>
#include <stddef.h>

#include "dropout.h"
#include "engine.h"

/* Something that a training step queues: a kernel, or a few of a library's. Or a phase of the fused kernel. */
struct gpu_node {
    const char *layer, *pass;
    double microseconds;
    double slowest; /* of a phase: of the slowest block, where microseconds is the mean over the blocks; else 0 */
};

/* A pass of the dropout family to be timed. */
struct dropout_pass {
    const struct dropout *dropout; /* NULL: a plain copy instead */
    struct dropout_stream numbers;
    bool backward;
};

/* The GPU of one rank. Plain data. */
struct device {
    char host[64];         /* as NCCL tells hosts apart: NCCL_HOSTID if set, else the host's name */
    int visible;           /* GPUs this process sees */
    int present;           /* GPUs of the host, seen or not; 0: unknown */
    int index;             /* the one it uses among those it sees; -1: none */
    char uuid[48];         /* "GPU-..." */
    char bus[24];          /* its card's PCI bus id, "0000:61:00.0": slices of one card (MIG) have the same */
    char name[80];         /* "NVIDIA H200" */
    char visible_list[80]; /* CUDA_VISIBLE_DEVICES; "" if it is not set */
    char why[160];         /* index -1: what is missing */
};

enum { GPU_LIBRARIES = 3 };

/* What the shared object exports, under the name dtrain_gpu_part. */
struct gpu_part {
    const char *revision; /* it was built from; another than the program's is refused */
    const struct engine_ops *fused, *cudnn;
    const struct transport *nccl;

    /* What this process sees, and which GPU is this local rank's. */
    void (*look)(int local_rank, struct device *device);

    /* Whether kernels on this rank's GPU reach the memory of those of all `count` ranks, which each have their own, of
     * this host; `why` says which they do not. */
    bool (*reaches)(const struct device *all, int count, int rank, char *why, size_t why_bytes);

    /* Whether this process sees the GPUs of all `count` ranks that are on its host. */
    bool (*sees)(const struct device *all, int count, int rank);

    /* Collective, where every rank has a GPU of its own: whether each can map GPU memory of all others of its host,
     * which a container, a batch system or MIG may forbid; `error` says which cannot. Tries it. */
    bool (*can_map)(struct comm *comm, struct error *error);

    /* Collective: what a full training step of an open cudnn engine consists of, nodes[0 .. return), at most
     * `most`; times are medians outside of a CUDA graph, with nothing between the nodes but an event. Leaves
     * weights and velocity as they were. */
    int (*cudnn_profile)(struct engine *engine, struct gpu_node *nodes, int most);

    /* The same of an open fused engine, of this rank's share alone: the phases of a step, by a kernel that reads clocks
     * between them. */
    int (*fused_profile)(struct engine *engine, struct gpu_node *nodes, int most);

    /* What a pass over device memory costs on the first visible GPU: a median. x and y, count floats each, lie in host
     * memory; what the pass does not write of y stays as it was. Errors of dropout_cuda.h. */
    bool (*time_dropout)(const struct dropout_pass *pass, size_t count, const float *x, float *y, double *microseconds,
                         struct error *error);

    /* "CUDA 13.0 (the driver's: 13.0), cuDNN 9.19.0, cuBLAS 13.1.0, NCCL 2.28.9" */
    void (*versions)(char *text, size_t bytes);

    /* Where the libraries lie that were found for it: cuDNN's, cuBLAS's and NCCL's files. */
    void (*libraries)(const char *paths[GPU_LIBRARIES]);
};

/* NULL where it cannot be had; `why` then says what is missing and what would help. Cheap to call again. */
const struct gpu_part *gpu_load(char *why, size_t why_bytes);

/* The same where there is no driver: good for versions and libraries alone. */
const struct gpu_part *gpu_load_without_driver(char *why, size_t why_bytes);

/* Whether it lies beside the program. Loads nothing. */
bool gpu_is_built(void);

/* The part's engines, for the list in engine.c: gpu_load, and what it says. */
const struct engine_ops *gpu_find_cudnn(char *why, size_t why_bytes);
const struct engine_ops *gpu_find_fused(char *why, size_t why_bytes);

#endif
