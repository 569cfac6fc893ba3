/* cudnn_net.h - LeNet-5 on one GPU: plans, and the order of the kernels of a pass.
 *
 * conv1 and the backward pass are the project's kernels, but for conv3's input; cuDNN has conv2 forward, cuBLAS conv3,
 * and, where that is faster than the kernel for all of it, fc1 and fc2 (cudnn_dense.c).
 * Bias, ReLU, dropout and pool of conv2 are one kernel (cuda_pool_forward), so its output is written once and read
 * once, as if cuDNN fused bias and ReLU into it; but of the bare convolution cuDNN offers more plans, and its ReLU
 * may make a NaN 0.
 *
 * Everything is queued on `stream`, or beside it until it has joined again. Nothing here waits or knows of other ranks.
 */
#ifndef DTRAIN_CUDA_CUDNN_NET_H
#define DTRAIN_CUDA_CUDNN_NET_H

#include "cudnn_buffers.h"

/* Stream and chooser are borrowed; the chooser is opened on the stream before the first shape. */
void net_open(struct cudnn_net *net, cudaStream_t stream, uint32_t most, enum precision precision,
              struct chooser *chooser);
void net_close(struct cudnn_net *net);

/* The shape of `count` samples (1..most): the one there is, or a new one. Choosing its plans overwrites the
 * buffers and waits. NULL with *error set when the device has no plan for it. */
const struct net_shape *net_find_shape(struct cudnn_net *net, uint32_t count, bool backward, struct error *error);

/* A rank's part of a batch. */
struct net_batch {
    const struct net_shape *shape; /* NULL: the rank has no samples in it */
    const uint8_t *records;        /* the training set */
    const uint32_t *order;
    const struct cuda_step *step;
    const struct masks *masks;    /* host memory */
    uint32_t first;               /* position of the part in the global batch */
    const volatile int32_t *stop; /* this rank's wish, or NULL */
};

/* Forward and backward: leaves the sums over the part in net->sums. */
void net_gradient(struct cudnn_net *net, const struct net_batch *batch);

/* Predict mode on records [first, first + count), count at most the shape's: adds to *sum. */
void net_evaluate(struct cudnn_net *net, const struct net_shape *shape, const uint8_t *records, uint32_t first,
                  uint32_t count, struct evaluation *sum);

#endif
