/* cudnn_choose.h - which of a convolution's candidates to use.
 *
 * All are timed once, on the device and in a CUDA graph as they will run; the fastest is remembered in the
 * user's cache (cudnn.json), under the device, the versions, the shape and the precision. So a later run
 * starts faster and computes the same bits.
 */
#ifndef DTRAIN_ENGINE_CUDNN_CHOOSE_H
#define DTRAIN_ENGINE_CUDNN_CHOOSE_H

#include <cjson/cJSON.h>
#include <cuda_runtime_api.h>

#include "cudnn_graph.h"

/* The tools for it. Workspace is scratch memory that everything on the stream shares. */
struct chooser {
    cudnnHandle_t handle; /* set to the stream */
    cudaStream_t stream;
    cudnnBackendDescriptor_t device;
    enum precision precision;
    void *workspace;
    size_t workspace_bytes;
    cJSON *cache, *choices; /* the file; in it, the choices for this device */
    bool changed;
};

void chooser_open(struct chooser *chooser, cudnnHandle_t handle, cudaStream_t stream,
                  enum precision precision, void *workspace, size_t workspace_bytes);
void chooser_close(struct chooser *chooser); /* writes what is new to the cache */

/* A convolution ready to run on its tensors. */
struct conv_choice {
    struct conv_graph *graph;
    int candidate;
    cudnnBackendDescriptor_t bound;
};

/* False, with *error (EXIT_RUNTIME), when the device has no way to do it. Overwrites what the pass writes. */
bool conv_choose(struct chooser *chooser, const struct conv *conv, const struct conv_tensors *tensors,
                 struct conv_choice *choice, struct error *error);
void conv_run(const struct conv_choice *choice, cudnnHandle_t handle);
void conv_release(struct conv_choice *choice); /* an empty one too */

#endif
