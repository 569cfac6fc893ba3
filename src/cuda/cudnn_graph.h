/* cudnn_graph.h - a convolution of LeNet-5 as a graph of cuDNN's backend: which plans a device offers for
 * it, how exact they are, and running one.
 *
 * All convolutions are 5x5, stride 1, without padding, fp32 in NCHW. Planning needs a description of the
 * device, not the device. Errors of the library that cannot be answered end the job (check.h).
 */
#ifndef DTRAIN_CUDA_CUDNN_GRAPH_H
#define DTRAIN_CUDA_CUDNN_GRAPH_H

#include <cudnn.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

/* y from x and w; bias and ReLU are the pool's: see cudnn_net.h. */
struct conv {
    int samples, channels, side; /* x (N, C, side, side); side of y is side - 4 */
    int outputs;                 /* w (outputs, C, 5, 5) */
};

/* Device memory, on 16 bytes; y is written, the others are read. */
struct conv_tensors {
    void *x, *w, *y;
};

enum { CONV_CANDIDATES = 64 };

/* A way to do it that cuDNN proposes. */
struct conv_candidate {
    int64_t engine;          /* cuDNN's number */
    int64_t workspace_bytes; /* known once built */
    cudnnBackendDescriptor_t config;
    cudnnBackendDescriptor_t plan; /* NULL until built */
};

struct conv_graph {
    struct conv conv;
    int count; /* candidates that are deterministic and of the precision asked for, the likeliest first */
    struct conv_candidate candidates[CONV_CANDIDATES];

    /* Private. */
    cudnnBackendDescriptor_t device; /* borrowed */
    cudnnBackendDescriptor_t owned[2 * CONV_CANDIDATES + 32];
    int owned_count;
};

/* The device of a handle, and one described by cuDNN's JSON. The caller destroys the descriptor. */
cudnnBackendDescriptor_t conv_device_of(cudnnHandle_t handle);
cudnnBackendDescriptor_t conv_device_described(const char *json);

/* No candidates is count 0. The device is borrowed. */
struct conv_graph *conv_graph_open(cudnnBackendDescriptor_t device, const struct conv *conv, enum precision precision);
void conv_graph_close(struct conv_graph *graph);

/* Builds the plan of a candidate, once. False: the library does not support it after all. */
bool conv_graph_build(struct conv_graph *graph, int candidate);

/* What a built plan is to run on: to be made once, run often, destroyed by the caller before the graph. */
cudnnBackendDescriptor_t conv_bind(const struct conv_tensors *tensors, void *workspace);

/* On the handle's stream. False: this plan does not run (some refuse only now). */
bool conv_graph_run(const struct conv_graph *graph, int candidate, cudnnHandle_t handle,
                    cudnnBackendDescriptor_t bound);

#endif
