/* cudnn_buffers.h - a net on one GPU: its handles, and its device memory. */
#ifndef DTRAIN_CUDA_CUDNN_BUFFERS_H
#define DTRAIN_CUDA_CUDNN_BUFFERS_H

#include <cublas_v2.h>

#include "cudnn_conv.h"
#include "kernels/cuda/kernels.h"

enum { CUDNN_WORKSPACE = 64 << 20, CUBLAS_WORKSPACE = 32 << 20 }; /* bytes; cuBLAS's as it asks on Hopper */

/* Of a sample. */
enum { POOL1_NUMBERS = 6 * 14 * 14, POOL2_NUMBERS = 16 * 5 * 5 };

/* What depends on how many samples pass at once: made once for each such number. */
struct net_shape {
    struct net_shape *next;
    uint32_t count;
    bool backward;   /* it can go back, too */
    bool one_kernel; /* for the dense layers of a step: see dense_step */
    struct conv_choice conv2;
};

/* Tensors of the canonical layout: even rows of lenet5_parameters are weights, odd ones biases. */
enum tensor { CONV1_W, CONV1_B, CONV2_W, CONV2_B, CONV3_W, CONV3_B, FC1_W, FC1_B, FC2_W, FC2_B };

static inline float *tensor(float *canonical, enum tensor which)
{
    return canonical + lenet5_parameters[which].offset;
}

/* Device memory, N = most samples at once. Names: y is a layer's output, d_ the gradient of the loss by it. */
struct cudnn_net {
    cudaStream_t stream, side; /* side: gradients of weights, which only the end of the backward pass waits for */
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
    float *gradient;           /* of this rank's part, of the dense layers' weights: cuda_dense_weight_gradient */
    int64_t *sums;             /* (CUDA_SUMS) */

    void *arena, *workspace;                      /* the arena holds all buffers, also the four above */
    float *images;                                /* (N, 3, 32, 32), of a training step */
    float *pool1_y, *d_pool1_y;                   /* (N, 6, 14, 14) */
    float *conv2_y, *pool2_y, *d_pool2_y;         /* (N, 16, 10, 10), (N, 16, 5, 5) */
    float *conv3_y, *d_conv3_y, *fc1_y, *d_fc1_y; /* (N, 120), (N, 84) */
    float *logits;                                /* (N, 10), and then the gradient by them */
    float *losses;                                /* (N) */
    float *parts1, *parts2;                       /* of the convolutions' gradients: cuda_conv_weight_gradient */
    uint8_t *labels, *origin1, *origin2;          /* (N), (N, 6, 14, 14), (N, 16, 5, 5) */
};

/* Something of a step has been queued: for whoever looks what takes how long. */
static inline void net_mark(const struct cudnn_net *net, const char *layer, const char *pass)
{
    if (net->mark != NULL)
        net->mark(net->mark_context, layer, pass);
}

/* Allocates all of the net's memory, for `most` samples, and fills it: see there. Needs `most` and `stream`. */
void buffers_open(struct cudnn_net *net);
void buffers_close(struct cudnn_net *net);

#endif
