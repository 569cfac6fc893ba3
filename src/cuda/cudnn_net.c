#include "cudnn_net.h"

#include <stdlib.h>

#include "check.h"
#include "cudnn_dense.h"
#include "memory.h"
#include "range.h"

enum { FORKS = sizeof((struct cudnn_net *)0)->forks / sizeof(cudaEvent_t) };

void net_open(struct cudnn_net *net, cudaStream_t stream, uint32_t most, enum precision precision,
              struct chooser *chooser)
{
    static const cublasComputeType_t computes[] = {
        [PRECISION_FP32] = CUBLAS_COMPUTE_32F_PEDANTIC,
        [PRECISION_TF32] = CUBLAS_COMPUTE_32F_FAST_TF32,
    };
    *net = (struct cudnn_net){.stream = stream, .most = most, .precision = precision, .compute = computes[precision]};
    CUDA_CHECK(cudaStreamCreateWithFlags(&net->side, cudaStreamNonBlocking));
    for (int i = 0; i < FORKS; i++)
        CUDA_CHECK(cudaEventCreateWithFlags(&net->forks[i], cudaEventDisableTiming));
    buffers_open(net);
    CUDNN_CHECK(cudnnCreate(&net->dnn));
    CUDNN_CHECK(cudnnSetStream(net->dnn, net->stream));
    conv_planner_open(&net->planner, chooser, net->dnn, precision, net->workspace, CUDNN_WORKSPACE);
    CUBLAS_CHECK(cublasCreate(&net->blas));
    CUBLAS_CHECK(cublasSetStream(net->blas, net->stream));
    /* A workspace of its own, one stream, no atomics: the same bits on every run. */
    CUBLAS_CHECK(cublasSetWorkspace(net->blas, (char *)net->workspace + CUDNN_WORKSPACE, CUBLAS_WORKSPACE));
    CUBLAS_CHECK(cublasSetAtomicsMode(net->blas, CUBLAS_ATOMICS_NOT_ALLOWED));
}

static void free_shape(struct net_shape *shape)
{
    conv_release(&shape->conv2);
    free(shape);
}

void net_close(struct cudnn_net *net)
{
    while (net->shapes != NULL) {
        struct net_shape *next = net->shapes->next;
        free_shape(net->shapes);
        net->shapes = next;
    }
    CUBLAS_CHECK(cublasDestroy(net->blas));
    conv_planner_close(&net->planner);
    CUDNN_CHECK(cudnnDestroy(net->dnn));
    buffers_close(net);
    for (int i = 0; i < FORKS; i++)
        CUDA_CHECK(cudaEventDestroy(net->forks[i]));
    CUDA_CHECK(cudaStreamDestroy(net->side));
}

/* --- shapes ------------------------------------------------------------------------------------------ */

static bool choose(struct cudnn_net *net, struct net_shape *shape, struct error *error)
{
    struct conv conv2 = {(int)shape->count, 6, 14, 16};
    struct conv_tensors on = {net->pool1_y, tensor(net->weights, CONV2_W), net->conv2_y};
    if (!conv_choose(&net->planner, &conv2, &on, &shape->conv2, error))
        return false;
    if (shape->backward)
        shape->one_kernel = dense_choose_one_kernel(net, net->planner.chooser, shape->count);
    return true;
}

const struct net_shape *net_find_shape(struct cudnn_net *net, uint32_t count, bool backward, struct error *error)
{
    for (struct net_shape *shape = net->shapes; shape != NULL; shape = shape->next)
        if (shape->count == count && shape->backward >= backward)
            return shape;
    struct net_shape *shape = memory_allocate(1, sizeof *shape, "the plans of a batch");
    shape->count = count;
    shape->backward = backward;
    if (!choose(net, shape, error)) {
        free_shape(shape);
        return NULL;
    }
    shape->next = net->shapes;
    net->shapes = shape;
    return shape;
}

/* --- the passes ----------------------------------------------------------------------------------------- */

/* To conv3 without its bias. The first `count` of the shape's samples matter. train: a way back follows. */
static void forward(struct cudnn_net *net, const struct net_shape *shape, uint32_t count, struct cuda_input input,
                    struct cuda_dropout dropout, bool train)
{
    cudaStream_t stream = net->stream;
    range_begin("forward");
    CUDA_CHECK(cuda_conv1_forward(input, dropout, count, net->weights, train ? net->images : NULL, net->labels,
                                  net->pool1_y, train ? net->origin1 : NULL, stream));
    net_mark(net, "conv1", "forward");
    conv_run(&shape->conv2, net->dnn);
    net_mark(net, "conv2", "forward");
    CUDA_CHECK(cuda_pool_forward(dropout, count, net->conv2_y, tensor(net->weights, CONV2_B), net->pool2_y,
                                 train ? net->origin2 : NULL, stream));
    net_mark(net, "pool2", "forward");
    dense_conv3(net, (int)shape->count);
    range_end();
}

/* What `stream` does next comes after what `other` has been given so far. */
static void follow(cudaStream_t stream, cudaStream_t other, cudaEvent_t fork)
{
    if (stream == other)
        return;
    CUDA_CHECK(cudaEventRecord(fork, other));
    CUDA_CHECK(cudaStreamWaitEvent(stream, fork, 0));
}

/* From the gradients before the biases of the dense layers to the gradients of all weights. One kernel alone leaves
 * much of a GPU idle, so two branches run beside each other, but where each is to be timed. */
static void backward(struct cudnn_net *net, uint32_t count, const struct masks *masks)
{
    cudaStream_t stream = net->stream, side = net->mark != NULL ? stream : net->side;
    range_begin("backward");
    follow(side, stream, net->forks[0]);
    dense_weight_gradient(net, count, side);
    dense_conv3_input_gradient(net, (int)count);
    follow(side, stream, net->forks[1]);
    CUDA_CHECK(cuda_conv_weight_gradient(DROPOUT_CONV2, masks, count, net->pool1_y, net->d_pool2_y, net->origin2,
                                         net->parts2, side));
    net_mark(net, "conv2", "weights");
    CUDA_CHECK(
        cuda_conv2_input_gradient(masks, count, net->weights, net->d_pool2_y, net->origin2, net->d_pool1_y, stream));
    net_mark(net, "conv2", "input");
    CUDA_CHECK(cuda_conv_weight_gradient(DROPOUT_CONV1, masks, count, net->images, net->d_pool1_y, net->origin1,
                                         net->parts1, stream));
    net_mark(net, "conv1", "weights");
    follow(stream, side, net->forks[2]);
    range_end();
}

static void pass(struct cudnn_net *net, const struct net_batch *batch)
{
    const struct net_shape *shape = batch->shape;
    struct cuda_dropout dropout = {batch->masks, batch->step, batch->first};
    struct cuda_input input = {batch->records, batch->order, batch->step, batch->first};
    forward(net, shape, shape->count, input, dropout, true);
    range_begin("dense layers, there and back");
    dense_step(net, shape->one_kernel, shape->count, dropout);
    range_end();
    backward(net, shape->count, batch->masks);
}

void net_gradient(struct cudnn_net *net, const struct net_batch *batch)
{
    uint32_t count = batch->shape != NULL ? batch->shape->count : 0;
    if (count > 0)
        pass(net, batch);
    else /* nothing but the slot of what is refused */
        CUDA_CHECK(cuda_loss(0, NULL, NULL, NULL, NULL, NULL, net->sums, net->stream));
    struct cuda_rows rows = {net->parts1, net->parts2, net->d_conv3_y, net->d_fc1_y, net->logits, net->losses};
    CUDA_CHECK(cuda_finish_gradient(rows, count, net->gradient, batch->stop, net->sums, net->stream));
    net_mark(net, "sums", "finish");
}

void net_evaluate(struct cudnn_net *net, const struct net_shape *shape, const uint8_t *records, uint32_t first,
                  uint32_t count, struct evaluation *sum)
{
    struct cuda_dropout none = {NULL, NULL, 0};
    forward(net, shape, count, (struct cuda_input){records, NULL, NULL, first}, none, false);
    dense_logits(net, (int)shape->count, count, none);
    CUDA_CHECK(cuda_evaluate(count, net->logits, tensor(net->weights, FC2_B), net->labels, sum, net->stream));
}
