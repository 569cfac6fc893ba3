/* cudnn_net.h - LeNet-5 on one GPU: buffers, plans, and the order of the kernels of a pass.
 *
 * conv1 and the way back are the project's kernels, but for conv3's input; cuDNN has conv2 forward, cuBLAS conv3. Bias,
 * ReLU, dropout and pool of conv2 are one kernel (cuda_pool_forward), so its output is written once and read once, as if
 * cuDNN fused bias and ReLU into it; but of the bare convolution cuDNN offers more plans, and its ReLU may make a NaN 0.
 *
 * Everything is queued on `stream`, or beside it until it has joined again. Nothing here waits or knows of other ranks.
 */
#ifndef DTRAIN_ENGINE_CUDNN_NET_H
#define DTRAIN_ENGINE_CUDNN_NET_H

#include <cublas_v2.h>

#include "cudnn_conv.h"
#include "kernels/cuda/kernels.h"

/* What depends on how many samples pass at once: made once for each such number. */
struct net_shape {
    struct net_shape *next;
    uint32_t count;
    bool backward; /* it can go back, too */
    bool fused;    /* the dense layers of a step: see dense_step */
    struct conv_choice conv2;
};

/* Tensors of the canonical layout: even rows of lenet5_parameters are weights, odd ones biases. */
enum tensor { CONV1_W, CONV1_B, CONV2_W, CONV2_B, CONV3_W, CONV3_B, FC1_W, FC1_B, FC2_W, FC2_B };

static inline float *tensor(float *canonical, enum tensor which)
{
    return canonical + lenet5_parameters[which].offset;
}

/* Device memory, N = most samples at once. Names: a layer's x (input), y (output before its pool or dropout),
 * d_ of the loss by it. */
struct cudnn_net {
    cudaStream_t stream, side; /* side: gradients of weights that nothing waits for but the end of the way back */
    cudaEvent_t forks[3];      /* between the two */
    cudnnHandle_t dnn;
    struct conv_planner planner; /* outlives the plans: they borrow its description of the device */
    cublasHandle_t blas;
    cublasComputeType_t compute;
    enum precision precision;
    uint32_t most;
    struct net_shape *shapes;
    void (*mark)(void *context, const char *layer, const char *pass); /* behind each node of a step; or NULL */
    void *mark_context;

    float *weights, *velocity; /* (LENET5_WEIGHTS), canonical */
    float *gradient;           /* of this rank's part, of the dense layers' weights: cuda_dense_weights */
    int64_t *sums;             /* (CUDA_SUMS) */

    void *arena, *workspace;                          /* everything below lies in the arena */
    float *images;                                    /* (N, 3, 32, 32), of a training step */
    float *pool1_y, *d_pool1_y;                       /* (N, 6, 14, 14) */
    float *conv2_y, *pool2_y, *d_pool2_y;             /* (N, 16, 10, 10), (N, 16, 5, 5) */
    float *conv3_y, *d_conv3_y, *fc1_y, *d_fc1_y;     /* (N, 120), (N, 84) */
    float *logits;                                    /* (N, 10), and then the gradient by them */
    float *losses;                                    /* (N) */
    float *parts1, *parts2;                           /* of the convolutions' gradients: cuda_conv_weights */
    uint8_t *labels, *origin1, *origin2;              /* (N), (N, 6, 14, 14), (N, 16, 5, 5) */
};

/* The chooser is borrowed; it is opened on net->stream before the first shape. */
void net_open(struct cudnn_net *net, uint32_t most, enum precision precision, struct chooser *chooser);
void net_close(struct cudnn_net *net);

/* The shape of `count` samples (1..most): the one there is, or a new one. Choosing its plans overwrites the
 * buffers and waits. NULL with *error set when the device has no plan for it. */
const struct net_shape *net_find_shape(struct cudnn_net *net, uint32_t count, bool backward, struct error *error);

/* Something of a step has been queued: for whoever looks what takes how long. */
static inline void net_mark(const struct cudnn_net *net, const char *layer, const char *pass)
{
    if (net->mark != NULL)
        net->mark(net->mark_context, layer, pass);
}

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
void net_evaluate(struct cudnn_net *net, const struct net_shape *shape, const uint8_t *records,
                  uint32_t first, uint32_t count, struct cuda_evaluation *sum);

#endif
