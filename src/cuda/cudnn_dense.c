#include "cudnn_dense.h"

#include <math.h>
#include <stdio.h>

#include "check.h"

/* --- matrix products: cuBLAS counts columns first, so it sees every row-major matrix transposed -------- */

static void multiply(struct cudnn_net *net, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                     const float *a, int lda, const float *b, int ldb, float *c, int ldc)
{
    const float one = 1, zero = 0;
    CUBLAS_CHECK(cublasGemmEx(net->blas, op_a, op_b, m, n, k, &one, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, &zero, c,
                              CUDA_R_32F, ldc, net->compute, CUBLAS_GEMM_DEFAULT));
}

/* A dense layer of `count` samples: x (count, in), w (out, in), y (count, out). */
struct dense {
    int count, in, out;
    enum tensor w;
};

static void dense_forward(struct cudnn_net *net, struct dense layer, const float *x, float *y)
{
    multiply(net, CUBLAS_OP_T, CUBLAS_OP_N, layer.out, layer.count, layer.in, tensor(net->weights, layer.w), layer.in,
             x, layer.in, y, layer.out);
}

static void dense_dgrad(struct cudnn_net *net, struct dense layer, const float *dy, float *dx)
{
    multiply(net, CUBLAS_OP_N, CUBLAS_OP_N, layer.in, layer.count, layer.out, tensor(net->weights, layer.w), layer.in,
             dy, layer.out, dx, layer.in);
}

static struct dense conv3_of(int n)
{
    return (struct dense){n, POOL2_NUMBERS, CONV3_ELEMENTS, CONV3_W};
}

static struct dense fc1_of(int n)
{
    return (struct dense){n, CONV3_ELEMENTS, FC1_ELEMENTS, FC1_W};
}

static struct dense fc2_of(int n)
{
    return (struct dense){n, FC1_ELEMENTS, LENET5_CLASSES, FC2_W};
}

/* --- the passes ---------------------------------------------------------------------------------------- */

void dense_conv3(struct cudnn_net *net, int n)
{
    dense_forward(net, conv3_of(n), net->pool2_y, net->conv3_y);
    net_mark(net, "conv3", "forward");
}

void dense_logits(struct cudnn_net *net, int n, uint32_t count, struct cuda_dropout dropout)
{
    const float *bias3 = tensor(net->weights, CONV3_B), *bias1 = tensor(net->weights, FC1_B);
    CUDA_CHECK(cuda_activation_forward(DROPOUT_CONV3, dropout, count, bias3, net->conv3_y, net->stream));
    net_mark(net, "conv3", "dropout");
    dense_forward(net, fc1_of(n), net->conv3_y, net->fc1_y);
    net_mark(net, "fc1", "forward");
    CUDA_CHECK(cuda_activation_forward(DROPOUT_FC1, dropout, count, bias1, net->fc1_y, net->stream));
    net_mark(net, "fc1", "dropout");
    dense_forward(net, fc2_of(n), net->fc1_y, net->logits);
    net_mark(net, "fc2", "forward");
}

static void step_in_parts(struct cudnn_net *net, uint32_t count, struct cuda_dropout dropout)
{
    int n = (int)count;
    dense_logits(net, n, count, dropout);
    CUDA_CHECK(cuda_loss(count, net->logits, tensor(net->weights, FC2_B), net->labels, net->losses, net->logits,
                         net->sums, net->stream));
    net_mark(net, "softmax", "loss");
    dense_dgrad(net, fc2_of(n), net->logits, net->d_fc1_y);
    net_mark(net, "fc2", "input");
    CUDA_CHECK(cuda_activation_backward(DROPOUT_FC1, dropout.masks, count, net->fc1_y, net->d_fc1_y, net->stream));
    net_mark(net, "fc1", "dropout back");
    dense_dgrad(net, fc1_of(n), net->d_fc1_y, net->d_conv3_y);
    net_mark(net, "fc1", "input");
    CUDA_CHECK(
        cuda_activation_backward(DROPOUT_CONV3, dropout.masks, count, net->conv3_y, net->d_conv3_y, net->stream));
    net_mark(net, "conv3", "dropout back");
}

static void step_in_one_kernel(struct cudnn_net *net, uint32_t count, struct cuda_dropout dropout)
{
    struct cuda_head head = {
        .weights = net->weights,
        .labels = net->labels,
        .conv3 = net->conv3_y,
        .fc1 = net->fc1_y,
        .losses = net->losses,
        .dlogits = net->logits,
        .dfc1 = net->d_fc1_y,
        .dconv3 = net->d_conv3_y,
    };
    CUDA_CHECK(cuda_head(dropout, count, head, net->sums, net->stream));
    net_mark(net, "dense", "there and back");
}

void dense_step(struct cudnn_net *net, bool one_kernel, uint32_t count, struct cuda_dropout dropout)
{
    if (one_kernel)
        step_in_one_kernel(net, count, dropout);
    else
        step_in_parts(net, count, dropout);
}

void dense_weight_gradient(struct cudnn_net *net, uint32_t count, cudaStream_t stream)
{
    struct cuda_dense dense = {
        .pool2 = net->pool2_y,
        .conv3 = net->conv3_y,
        .fc1 = net->fc1_y,
        .dconv3 = net->d_conv3_y,
        .dfc1 = net->d_fc1_y,
        .dlogits = net->logits,
    };
    CUDA_CHECK(cuda_dense_weight_gradient(dense, count, net->gradient, stream));
    net_mark(net, "dense", "weights");
}

void dense_conv3_input_gradient(struct cudnn_net *net, int n)
{
    dense_dgrad(net, conv3_of(n), net->d_conv3_y, net->d_pool2_y);
    net_mark(net, "conv3", "input");
}

/* --- the choice ---------------------------------------------------------------------------------------- */

/* One way under the clock. Without masks: what they cost is the same both ways. */
struct timed {
    struct cudnn_net *net;
    bool one_kernel;
    uint32_t count;
};

static bool run_timed(const void *context)
{
    const struct timed *timed = context;
    dense_step(timed->net, timed->one_kernel, timed->count, (struct cuda_dropout){NULL, NULL, 0});
    return true;
}

bool dense_choose_one_kernel(struct cudnn_net *net, struct chooser *chooser, uint32_t count)
{
    char key[100];
    snprintf(key, sizeof key, "dense layers, %u samples %s", count, engine_precision_name(net->precision));
    const cJSON *known = cJSON_GetObjectItemCaseSensitive(chooser_recall(chooser, key), "fused");
    if (cJSON_IsBool(known))
        return cJSON_IsTrue(known);
    float parts = chooser_time(chooser, run_timed, &(struct timed){net, false, count});
    float whole = chooser_time(chooser, run_timed, &(struct timed){net, true, count});
    cJSON *note = chooser_note(chooser, key);
    cJSON_AddBoolToObject(note, "fused", whole <= parts);
    cJSON_AddNumberToObject(note, "microseconds", fmin(whole, parts));
    cJSON_AddNumberToObject(note, "microseconds_otherwise", fmax(whole, parts));
    return whole <= parts;
}
