#include "cudnn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cudnn_net.h"
#include "exact_sum.h"
#include "sampler.h"
#include "src/gpu/check.h"
#include "src/gpu/device.h"

enum {
    EVALUATED = 512,     /* samples of a pass in predict mode, at most */
    BURST = 32,          /* steps queued at once; at most two bursts wait on the device */
    STEPS_A_CALL = 1024, /* at most, so that the trainer can say how it goes; a constant, as ranks must agree */
};

/* Host memory that the device reads and writes. */
struct shared {
    struct cuda_step step;
    struct cuda_evaluation evaluation;
    float sums[CUDA_SUMS];
    volatile int32_t stop; /* this rank's wish */
};

/* A whole step as a CUDA graph: what differs from step to step lies in device memory. */
struct step_graph {
    size_t samples; /* of the global batch; 0: there is no such batch */
    cudaGraphExec_t exec;
};

struct cudnn {
    struct engine base;
    struct cudnn_net net;
    uint8_t *train, *test; /* records */
    uint32_t *order;
    struct cuda_step *step;
    struct cuda_evaluation *evaluation;
    struct shared *shared;
    int64_t sums[LENET5_WEIGHTS + SUM_SLOTS]; /* of the plain step */
    const struct net_shape *evaluated; /* what passes at once in predict mode */
    struct step_graph full, tail;
    cudaEvent_t marks[2]; /* behind the bursts */
};

static struct cudnn *cudnn_of(struct engine *engine)
{
    struct cudnn *cudnn = (struct cudnn *)engine; /* base is first */
    device_use(comm_slot(engine->setup.comm));    /* of this thread */
    return cudnn;
}

/* --- waiting and copying ------------------------------------------------------------------------------- */

/* Work on the device that may wait for other ranks. */
struct pending {
    struct cudnn *cudnn;
    cudaEvent_t mark;
    const volatile sig_atomic_t *stop; /* or NULL */
};

static bool is_done(void *context)
{
    struct pending *pending = context;
    if (pending->stop != NULL)
        pending->cudnn->shared->stop = *pending->stop;
    cudaError_t status = cudaEventQuery(pending->mark);
    if (status == cudaErrorNotReady)
        return false;
    CUDA_CHECK(status);
    return true;
}

static void wait_for(struct cudnn *cudnn, cudaEvent_t mark, const volatile sig_atomic_t *stop)
{
    comm_wait(cudnn->base.setup.comm, is_done, &(struct pending){cudnn, mark, stop}, "the gradient sum");
}

/* Both are in place when it returns. */
static void copy(struct cudnn *cudnn, void *to, const void *from, size_t bytes)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cudnn->net.stream));
    CUDA_CHECK(cudaStreamSynchronize(cudnn->net.stream));
}

/* --- opening ------------------------------------------------------------------------------------------- */

static bool available(char *why, size_t why_bytes)
{
    return device_available(why, why_bytes);
}

static void share_of(const struct cudnn *cudnn, size_t samples, size_t *position, size_t *count)
{
    size_t end;
    struct comm *comm = cudnn->base.setup.comm;
    sampler_share(samples, comm_rank(comm), comm_size(comm), position, &end);
    *count = end - *position;
}

static void upload_split(struct cudnn *cudnn, const struct split *split, uint8_t **records)
{
    CUDA_CHECK(cudaMalloc((void **)records, split->count * RECORD_BYTES));
    for (size_t i = 0; i < split->count; i += split->per_file)
        copy(cudnn, *records + i * RECORD_BYTES, split_record(split, i), split->per_file * RECORD_BYTES);
}

static void allocate(struct cudnn *cudnn)
{
    const struct dataset *data = cudnn->base.setup.data;
    upload_split(cudnn, &data->train, &cudnn->train);
    upload_split(cudnn, &data->test, &cudnn->test);
    CUDA_CHECK(cudaMalloc((void **)&cudnn->order, data->train.count * sizeof *cudnn->order));
    CUDA_CHECK(cudaMalloc((void **)&cudnn->step, sizeof *cudnn->step));
    CUDA_CHECK(cudaMalloc((void **)&cudnn->evaluation, sizeof *cudnn->evaluation));
    CUDA_CHECK(cudaMemsetAsync(cudnn->order, 0, data->train.count * sizeof *cudnn->order, cudnn->net.stream));
    CUDA_CHECK(cudaHostAlloc((void **)&cudnn->shared, sizeof *cudnn->shared, cudaHostAllocDefault));
    memset(cudnn->shared, 0, sizeof *cudnn->shared);
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventCreateWithFlags(&cudnn->marks[i], cudaEventDisableTiming));
}

/* The part of this rank in a batch of `samples`. False with *error set when there is no plan for it. */
static bool find_batch(struct cudnn *cudnn, size_t samples, struct net_batch *batch, struct error *error)
{
    size_t position, count;
    share_of(cudnn, samples, &position, &count);
    *batch = (struct net_batch){
        .records = cudnn->train,
        .order = cudnn->order,
        .step = cudnn->step,
        .masks = &cudnn->base.setup.masks,
        .first = (uint32_t)position,
    };
    if (count > 0)
        batch->shape = net_find_shape(&cudnn->net, (uint32_t)count, true, error);
    return count == 0 || batch->shape != NULL;
}

static void queue_step(struct cudnn *cudnn, const struct net_batch *batch, size_t samples)
{
    struct comm *comm = cudnn->base.setup.comm;
    struct cudnn_net *net = &cudnn->net;
    net_gradient(net, batch);
    if (comm_sums_on_device(comm))
        comm_sum_on_device(comm, net->sums, CUDA_SUMS, net->stream);
    CUDA_CHECK(cuda_sgd(cudnn->base.setup.momentum, (uint32_t)samples, net->sums, net->velocity, net->weights,
                        cudnn->step, net->stream));
}

/* Collective. The first time for real, so that what the libraries do only once is not captured; it changes
 * nothing, as if after a stop. */
static void capture_step(struct cudnn *cudnn, struct net_batch *batch, struct step_graph *graph)
{
    cudaGraph_t captured;
    cudaStream_t stream = cudnn->net.stream;
    if (graph->samples == 0)
        return;
    batch->stop = &cudnn->shared->stop;
    copy(cudnn, cudnn->step, &(struct cuda_step){.stopped = 1}, sizeof *cudnn->step);
    queue_step(cudnn, batch, graph->samples);
    CUDA_CHECK(cudaEventRecord(cudnn->marks[0], stream));
    wait_for(cudnn, cudnn->marks[0], NULL);
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed)); /* NCCL works in other threads, too */
    queue_step(cudnn, batch, graph->samples);
    CUDA_CHECK(cudaStreamEndCapture(stream, &captured));
    CUDA_CHECK(cudaGraphInstantiate(&graph->exec, captured, 0));
    CUDA_CHECK(cudaGraphDestroy(captured));
    CUDA_CHECK(cudaGraphUpload(graph->exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

/* Sums of one rank need no transport, and no copy to the host. */
static bool trains_on_device(const struct cudnn *cudnn)
{
    return comm_size(cudnn->base.setup.comm) == 1 || comm_sums_on_device(cudnn->base.setup.comm);
}

static size_t max_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void close_cudnn(struct engine *engine);

static struct engine *open_cudnn(const struct engine_setup *setup, struct error *error)
{
    struct cudnn *cudnn = calloc(1, sizeof *cudnn);
    struct net_batch full, tail;
    size_t count = setup->data->train.count, test = setup->data->test.count, position, most, most_tail;
    size_t evaluated = count + test < EVALUATED ? max_of(count, test) : EVALUATED;
    cudnn->base = (struct engine){&cudnn_engine, *setup, NULL, cudnn->sums, LENET5_WEIGHTS};
    device_use(comm_slot(setup->comm));
    cudnn->full.samples = count >= setup->batch_size ? setup->batch_size : 0;
    cudnn->tail.samples = count % setup->batch_size;
    share_of(cudnn, cudnn->full.samples, &position, &most);
    share_of(cudnn, cudnn->tail.samples, &position, &most_tail);
    net_open(&cudnn->net, (uint32_t)max_of(evaluated, max_of(most, most_tail)), setup->precision);
    allocate(cudnn);
    cudnn->evaluated = net_find_shape(&cudnn->net, (uint32_t)evaluated, false, error);
    bool planned = cudnn->evaluated != NULL && find_batch(cudnn, cudnn->full.samples, &full, error) &&
                   find_batch(cudnn, cudnn->tail.samples, &tail, error);
    if (!comm_agree(setup->comm, error) || !planned) {
        close_cudnn(&cudnn->base);
        return NULL;
    }
    if (trains_on_device(cudnn)) {
        capture_step(cudnn, &full, &cudnn->full);
        capture_step(cudnn, &tail, &cudnn->tail);
    }
    return &cudnn->base;
}

static void close_cudnn(struct engine *engine)
{
    struct cudnn *cudnn = cudnn_of(engine);
    for (int i = 0; i < 2; i++) {
        struct step_graph *graph = i == 0 ? &cudnn->full : &cudnn->tail;
        if (graph->exec != NULL)
            CUDA_CHECK(cudaGraphExecDestroy(graph->exec));
        CUDA_CHECK(cudaEventDestroy(cudnn->marks[i]));
    }
    CUDA_CHECK(cudaFreeHost(cudnn->shared));
    CUDA_CHECK(cudaFree(cudnn->evaluation));
    CUDA_CHECK(cudaFree(cudnn->step));
    CUDA_CHECK(cudaFree(cudnn->order));
    CUDA_CHECK(cudaFree(cudnn->test));
    CUDA_CHECK(cudaFree(cudnn->train));
    net_close(&cudnn->net);
    free(cudnn);
}

static void begin_epoch(struct engine *engine, const uint32_t *order)
{
    struct cudnn *cudnn = cudnn_of(engine);
    engine->order = order;
    copy(cudnn, cudnn->order, order, engine->setup.data->train.count * sizeof *order);
}

/* --- training ------------------------------------------------------------------------------------------ */

static void write_step(struct cudnn *cudnn, uint64_t step, size_t first, float learning_rate)
{
    cudnn->shared->step =
        (struct cuda_step){.step = step, .position = (uint32_t)first, .learning_rate = learning_rate};
    copy(cudnn, cudnn->step, &cudnn->shared->step, sizeof *cudnn->step);
}

static const struct step_graph *find_graph(const struct cudnn *cudnn, size_t samples)
{
    const struct step_graph *graph = samples == cudnn->full.samples ? &cudnn->full : &cudnn->tail;
    return graph->samples == samples ? graph : NULL;
}

/* Before a burst: until the one before the last is done, with a mark behind the last. */
static void keep_pace(struct cudnn *cudnn, int burst, const volatile sig_atomic_t *stop)
{
    wait_for(cudnn, cudnn->marks[burst % 2], stop);
    CUDA_CHECK(cudaEventRecord(cudnn->marks[burst % 2], cudnn->net.stream));
}

/* Queues steps to the end of the span, at most STEPS_A_CALL. Those after a stop or a refusal do nothing. */
static void queue_steps(struct cudnn *cudnn, const struct span *span)
{
    size_t first = span->first, batch = cudnn->base.setup.batch_size;
    for (int i = 0; i < STEPS_A_CALL && first < span->last; i++) {
        size_t samples = span->last - first < batch ? span->last - first : batch;
        const struct step_graph *graph = find_graph(cudnn, samples);
        if (graph == NULL)
            break; /* the next call does it without */
        if (i % BURST == 0)
            keep_pace(cudnn, i / BURST, span->stop);
        CUDA_CHECK(cudaGraphLaunch(graph->exec, cudnn->net.stream));
        first += samples;
    }
}

static void train(struct engine *engine, const struct span *span, struct train_report *report)
{
    struct cudnn *cudnn = cudnn_of(engine);
    size_t left = span->last - span->first, batch = engine->setup.batch_size;
    if (!trains_on_device(cudnn) || find_graph(cudnn, left < batch ? left : batch) == NULL) {
        engine_train_one(engine, span, report);
        return;
    }
    struct cuda_step *done = &cudnn->shared->step;
    cudnn->shared->stop = *span->stop;
    write_step(cudnn, span->step, span->first, span->learning_rate);
    queue_steps(cudnn, span);
    CUDA_CHECK(cudaMemcpyAsync(done, cudnn->step, sizeof *done, cudaMemcpyDefault, cudnn->net.stream));
    CUDA_CHECK(cudaEventRecord(cudnn->marks[0], cudnn->net.stream));
    wait_for(cudnn, cudnn->marks[0], span->stop);

    report->steps = done->applied;
    report->samples = done->applied * batch < left ? done->applied * batch : left;
    report->loss = llround(done->loss / EXACT_UNIT);
    report->stopped = done->stopped;
    report->not_finite = done->not_finite;
}

/* --- the plain step: sums by way of the host ----------------------------------------------------------- */

/* A float to fixed point, if it is finite and not too big. */
static bool to_exact(float value, double limit, int64_t *sum)
{
    bool fits = fabs((double)value) < limit;
    *sum = fits ? llrint((double)value / EXACT_UNIT) : 0;
    return fits;
}

/* A rank's sums stand for as many terms as it has tiles, so that many limits are its share of the range. */
static void export_sums(struct cudnn *cudnn, size_t samples)
{
    double limit = (double)EXACT_LIMIT * (double)((samples + TILE - 1) / TILE);
    const float *sums = cudnn->shared->sums;
    int64_t *slots = cudnn->sums + LENET5_WEIGHTS, refused = sums[CUDA_SUMS_REFUSED] != 0;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        refused += !to_exact(sums[i], limit, &cudnn->sums[i]);
    refused += !to_exact(sums[CUDA_SUMS_LOSS], limit, &slots[SLOT_LOSS]);
    slots[SLOT_STOP] = 0;
    slots[SLOT_REFUSED] = refused;
}

static void gradient(struct engine *engine, uint64_t step, size_t first, size_t last)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct net_batch batch;
    struct error error = {0};
    if (!find_batch(cudnn, last - first, &batch, &error))
        gpu_failed("cuDNN", "a batch of another size", __FILE__, __LINE__, error.text);
    write_step(cudnn, step, first, 0);
    net_gradient(&cudnn->net, &batch);
    copy(cudnn, cudnn->shared->sums, cudnn->net.sums, sizeof cudnn->shared->sums);
    export_sums(cudnn, batch.shape != NULL ? batch.shape->count : TILE);
}

static void update(struct engine *engine, float learning_rate, size_t samples)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct cudnn_net *net = &cudnn->net;
    exact_sum_read(LENET5_WEIGHTS, cudnn->sums, 1, cudnn->shared->sums);
    memset(cudnn->shared->sums + LENET5_WEIGHTS, 0, (CUDA_SUMS - LENET5_WEIGHTS) * sizeof(float));
    copy(cudnn, net->sums, cudnn->shared->sums, sizeof cudnn->shared->sums);
    write_step(cudnn, 0, 0, learning_rate);
    CUDA_CHECK(cuda_sgd(engine->setup.momentum, (uint32_t)samples, net->sums, net->velocity, net->weights,
                        cudnn->step, net->stream));
    CUDA_CHECK(cudaStreamSynchronize(net->stream));
}

/* --- evaluation, state --------------------------------------------------------------------------------- */

static void evaluate_cudnn(struct engine *engine, const struct split *split, size_t first, size_t last,
                           struct evaluation *sum)
{
    struct cudnn *cudnn = cudnn_of(engine);
    const struct net_shape *shape = cudnn->evaluated;
    const uint8_t *records = split == &engine->setup.data->train ? cudnn->train : cudnn->test;
    CUDA_CHECK(cudaMemsetAsync(cudnn->evaluation, 0, sizeof *cudnn->evaluation, cudnn->net.stream));
    for (size_t i = first; i < last; i += shape->count)
        net_evaluate(&cudnn->net, shape, records, (uint32_t)i,
                     (uint32_t)(last - i < shape->count ? last - i : shape->count), cudnn->evaluation);
    CUDA_CHECK(cudaMemcpyAsync(&cudnn->shared->evaluation, cudnn->evaluation, sizeof *cudnn->evaluation,
                               cudaMemcpyDefault, cudnn->net.stream));
    CUDA_CHECK(cudaEventRecord(cudnn->marks[0], cudnn->net.stream));
    wait_for(cudnn, cudnn->marks[0], NULL);
    sum->loss += cudnn->shared->evaluation.loss;
    sum->correct += cudnn->shared->evaluation.correct;
    sum->samples += (int64_t)(last - first);
}

static void read_state(struct engine *engine, float *weights, float *momentum)
{
    struct cudnn *cudnn = cudnn_of(engine);
    if (weights != NULL)
        copy(cudnn, weights, cudnn->net.weights, LENET5_WEIGHTS * sizeof *weights);
    if (momentum != NULL)
        copy(cudnn, momentum, cudnn->net.velocity, LENET5_WEIGHTS * sizeof *momentum);
}

static void write_state(struct engine *engine, const float *weights, const float *momentum)
{
    struct cudnn *cudnn = cudnn_of(engine);
    if (weights != NULL)
        copy(cudnn, cudnn->net.weights, weights, LENET5_WEIGHTS * sizeof *weights);
    if (momentum != NULL)
        copy(cudnn, cudnn->net.velocity, momentum, LENET5_WEIGHTS * sizeof *momentum);
}

static void read_gradient(struct engine *engine, size_t samples, float *gradient_out)
{
    exact_sum_read(LENET5_WEIGHTS, cudnn_of(engine)->sums, 1 / (double)samples, gradient_out);
}

const struct engine_ops cudnn_engine = {
    .name = "cudnn",
    .on_gpu = true,
    .available = available,
    .open = open_cudnn,
    .close = close_cudnn,
    .begin_epoch = begin_epoch,
    .gradient = gradient,
    .update = update,
    .train = train,
    .evaluate = evaluate_cudnn,
    .read = read_state,
    .write = write_state,
    .read_gradient = read_gradient,
};
