#include "cudnn.h"

#include <stdlib.h>

#include "check.h"
#include "cudnn_private.h"
#include "device.h"
#include "device_memory.h"
#include "memory.h"
#include "range.h"

enum { EVALUATED = 512 }; /* samples of a pass in predict mode, at most */

/* --- opening ------------------------------------------------------------------------------------------- */

static void allocate(struct cudnn *cudnn)
{
    size_t count = cudnn->base.setup.data->train.count;
    cudnn->order = queue_allocate(&cudnn->queue, count * sizeof *cudnn->order, "the order of an epoch");
    cudnn->step = queue_allocate(&cudnn->queue, sizeof *cudnn->step, "the step's number and rate");
    cudnn->host_step = device_allocate_pinned(sizeof *cudnn->host_step, "what the host reads after a step");
}

/* The sums that the host adds up. Pinning is optional: it only makes the copies faster. */
static void pin_sums(const struct comm_sums *sums)
{
    size_t bytes = sums->count * sizeof *sums->terms;
    cudaHostRegister(sums->terms, bytes, cudaHostRegisterDefault);
    if (sums->totals != sums->terms)
        cudaHostRegister((void *)sums->totals, bytes, cudaHostRegisterDefault);
    cudaGetLastError(); /* clears it */
}

static void unpin_sums(const struct comm_sums *sums)
{
    cudaHostUnregister(sums->terms);
    if (sums->totals != sums->terms)
        cudaHostUnregister((void *)sums->totals);
    cudaGetLastError();
}

static size_t max_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void close_cudnn(struct engine *engine)
{
    struct cudnn *cudnn = cudnn_of(engine);
    if (cudnn->full.exec != NULL)
        CUDA_CHECK(cudaGraphExecDestroy(cudnn->full.exec));
    if (cudnn->tail.exec != NULL)
        CUDA_CHECK(cudaGraphExecDestroy(cudnn->tail.exec));
    CUDA_CHECK(cudaFreeHost(cudnn->host_step));
    CUDA_CHECK(cudaFree(cudnn->step));
    CUDA_CHECK(cudaFree(cudnn->order));
    chooser_close(&cudnn->chooser);
    net_close(&cudnn->net);
    queue_close(&cudnn->queue);
    unpin_sums(cudnn->base.sums);
    comm_sums_close(cudnn->base.sums);
    free(cudnn);
}

/* How many samples may pass at once: those of this rank's largest part of a batch, those of a check. */
static uint32_t most_samples(const struct cudnn *cudnn, size_t evaluated)
{
    size_t position, full, tail;
    cudnn_share(cudnn, cudnn->full.samples, &position, &full);
    cudnn_share(cudnn, cudnn->tail.samples, &position, &tail);
    return (uint32_t)max_of(evaluated, max_of(full, tail));
}

static struct engine *open_cudnn(const struct engine_setup *setup, struct error *error)
{
    struct cudnn *cudnn = memory_allocate(1, sizeof *cudnn, "the cudnn engine");
    size_t train = setup->data->train.count, test = setup->data->test.count;
    size_t evaluated = max_of(train, test) < EVALUATED ? max_of(train, test) : EVALUATED;
    struct comm_sums *sums = comm_sums_open(setup->comm, LENET5_WEIGHTS + SUM_SLOTS);
    cudnn->base = (struct engine){&engine_cudnn, *setup, NULL, sums, LENET5_WEIGHTS};
    cudnn->full.samples = train >= setup->batch_size ? setup->batch_size : 0;
    cudnn->tail.samples = train % setup->batch_size;
    device_use(comm_local_rank(setup->comm));
    if (!device_suits(setup->comm, error)) {
        comm_sums_close(sums);
        free(cudnn);
        return NULL;
    }
    pin_sums(sums);
    queue_open(&cudnn->queue, setup);
    net_open(&cudnn->net, cudnn->queue.stream, most_samples(cudnn, evaluated), setup->precision, &cudnn->chooser);
    comm_away(setup->comm); /* the cache may lie on a slow file system */
    chooser_open(&cudnn->chooser, cudnn->queue.stream, setup->comm);
    comm_back(setup->comm);
    allocate(cudnn);
    range_begin("choice of plans");
    cudnn_plan(cudnn, evaluated, error);
    range_end();
    if (!comm_agree(setup->comm, error)) {
        close_cudnn(&cudnn->base);
        return NULL;
    }
    cudnn_capture_steps(cudnn);
    return &cudnn->base;
}

static void begin_epoch(struct engine *engine, const uint32_t *order)
{
    struct cudnn *cudnn = cudnn_of(engine);
    range_begin("new epoch");
    queue_copy(&cudnn->queue, cudnn->order, order, engine->setup.data->train.count * sizeof *order);
    range_end();
}

/* --- evaluation, state --------------------------------------------------------------------------------- */

static void evaluate_cudnn(struct engine *engine, const struct split *split, size_t first, size_t end,
                           struct evaluation *sum)
{
    struct cudnn *cudnn = cudnn_of(engine);
    const struct net_shape *shape = cudnn->evaluated;
    const uint8_t *records = queue_records(&cudnn->queue, split);
    range_begin("check");
    queue_begin_evaluation(&cudnn->queue);
    for (size_t i = first; i < end; i += shape->count)
        net_evaluate(&cudnn->net, shape, records, (uint32_t)i,
                     (uint32_t)(end - i < shape->count ? end - i : shape->count), cudnn->queue.evaluation);
    queue_end_evaluation(&cudnn->queue, sum);
    range_end();
}

static void read_state(struct engine *engine, float *weights, float *velocity)
{
    struct cudnn *cudnn = cudnn_of(engine);
    range_begin(velocity != NULL ? "checkpoint" : "weights to the host");
    if (weights != NULL)
        queue_copy(&cudnn->queue, weights, cudnn->net.weights, LENET5_WEIGHTS * sizeof *weights);
    if (velocity != NULL)
        queue_copy(&cudnn->queue, velocity, cudnn->net.velocity, LENET5_WEIGHTS * sizeof *velocity);
    range_end();
}

static void write_state(struct engine *engine, const float *weights, const float *velocity)
{
    struct cudnn *cudnn = cudnn_of(engine);
    if (weights != NULL)
        queue_copy(&cudnn->queue, cudnn->net.weights, weights, LENET5_WEIGHTS * sizeof *weights);
    if (velocity != NULL)
        queue_copy(&cudnn->queue, cudnn->net.velocity, velocity, LENET5_WEIGHTS * sizeof *velocity);
}

static cJSON *choices(struct engine *engine)
{
    return cJSON_Duplicate(cudnn_of(engine)->chooser.all, true);
}

const struct engine_ops engine_cudnn = {
    .name = "cudnn",
    .on_gpu = true,
    .available = device_available,
    .open = open_cudnn,
    .close = close_cudnn,
    .begin_epoch = begin_epoch,
    .gradient = cudnn_gradient,
    .update = cudnn_update,
    .train = cudnn_train,
    .evaluate = evaluate_cudnn,
    .read = read_state,
    .write = write_state,
    .choices = choices,
    .read_sums = cudnn_read_sums,
};
