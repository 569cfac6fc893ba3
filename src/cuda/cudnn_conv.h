/* cudnn_conv.h - a convolution by the fastest of cuDNN's plans for it. */
#ifndef DTRAIN_CUDA_CUDNN_CONV_H
#define DTRAIN_CUDA_CUDNN_CONV_H

#include "cudnn_choose.h"
#include "cudnn_graph.h"

/* What all convolutions of a net are planned with. Workspace is scratch memory that everything on the stream
 * shares. */
struct conv_planner {
    struct chooser *chooser;
    cudnnHandle_t handle; /* set to the chooser's stream */
    cudnnBackendDescriptor_t device;
    enum precision precision;
    void *workspace;
    size_t workspace_bytes;
};

void conv_planner_open(struct conv_planner *planner, struct chooser *chooser, cudnnHandle_t handle,
                       enum precision precision, void *workspace, size_t workspace_bytes);
void conv_planner_close(struct conv_planner *planner);

/* A convolution ready to run on its tensors. */
struct conv_choice {
    struct conv_graph *graph;
    int candidate;
    cudnnBackendDescriptor_t bound;
};

/* False, with *error (EXIT_RUNTIME), when the device has no way to do it. Overwrites what the pass writes. */
bool conv_choose(const struct conv_planner *planner, const struct conv *conv, const struct conv_tensors *tensors,
                 struct conv_choice *choice, struct error *error);
void conv_run(const struct conv_choice *choice, cudnnHandle_t handle);
void conv_release(struct conv_choice *choice); /* an empty one too */

#endif
