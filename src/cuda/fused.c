#include "src/cuda/fused.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "device.h"
#include "exact_sum.h"
#include "kernels/fused/fused.h"
#include "memory.h"
#include "philox.h"
#include "range.h"
#include "sampler.h"

enum {
    STEPS_A_CALL = 1024, /* at most, so that the trainer can say how it goes; a constant, as ranks must agree */
    BURST = 32,          /* steps that several ranks queue at once; at most two bursts wait on the device */
};

_Static_assert((int)FUSED_LOSS == (int)FUSED_GRADIENT + (int)SLOT_LOSS && (int)FUSED_STOP == (int)FUSED_LOSS + 1 &&
                   (int)SLOT_STOP == 1 && (int)SLOT_REFUSED == 2 && (int)FUSED_REFUSED == (int)FUSED_LOSS + 2,
               "the device sums what the engine sums");

/* Pinned host memory: the device reads and writes it. */
struct pinned {
    struct fused_state state;
    struct fused_evaluation evaluation;
    struct fused_trouble trouble;
    volatile int32_t stop; /* this rank's wish */
};

struct fused {
    struct engine base;
    cudaStream_t stream;
    cudaEvent_t marks[2];
    uint8_t *train, *test; /* records */
    uint32_t *order;
    /* What launches read and write in turns: `now` is what the last one left. */
    float *weights[2], *velocity[2];
    struct fused_state *state[2];
    int now;
    int64_t *sums; /* (3, FUSED_SUMS_PITCH) */
    void *mail;
    uint32_t *arrived, groups, round;
    struct fused_evaluation *evaluation;
    struct pinned *pinned;
};

/* With its GPU made the calling thread's. */
static struct fused *fused_of(struct engine *engine)
{
    device_use(comm_local_rank(engine->setup.comm));
    return (struct fused *)engine; /* base is first */
}

/* --- opening -------------------------------------------------------------------------------------------------- */

/* Whether a device can run it. */
static bool fits(int device, uint32_t *groups, char *why, size_t why_bytes)
{
    struct cudaDeviceProp properties;
    CUDA_CHECK(fused_fits(device, groups));
    if (*groups > 0)
        return true;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    snprintf(
        why, why_bytes,
        "%.79s lacks what a step in one kernel needs: %d multiprocessors, %d KB of shared memory for a block; give "
        "--engine cudnn",
        properties.name, FUSED_SEATS, (int)(fused_shared_bytes() / 1024));
    return false;
}

static bool available(char *why, size_t why_bytes)
{
    uint32_t groups;
    return device_available(why, why_bytes) && fits(0, &groups, why, why_bytes);
}

static void *get(size_t bytes, cudaStream_t stream)
{
    void *memory;
    CUDA_CHECK(cudaMalloc(&memory, bytes));
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream));
    return memory;
}

/* All before and the copy itself are done when it returns. */
static void copy(struct fused *fused, void *to, const void *from, size_t bytes)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, fused->stream));
    CUDA_CHECK(cudaStreamSynchronize(fused->stream));
}

static uint8_t *upload(struct fused *fused, const struct split *split)
{
    uint8_t *records = get(split->count * RECORD_BYTES, fused->stream);
    for (size_t i = 0; i < split->count; i += split->per_file)
        copy(fused, records + i * RECORD_BYTES, split_record(split, i), split->per_file * RECORD_BYTES);
    return records;
}

static void allocate(struct fused *fused)
{
    const struct dataset *data = fused->base.setup.data;
    cudaStream_t stream = fused->stream;
    fused->train = upload(fused, &data->train);
    fused->test = upload(fused, &data->test);
    fused->order = get(data->train.count * sizeof *fused->order, stream);
    for (int i = 0; i < 2; i++) {
        fused->weights[i] = get(LENET5_WEIGHTS * sizeof(float), stream);
        fused->velocity[i] = get(LENET5_WEIGHTS * sizeof(float), stream);
        fused->state[i] = get(sizeof *fused->state[i], stream);
        CUDA_CHECK(cudaEventCreateWithFlags(&fused->marks[i], cudaEventDisableTiming));
    }
    fused->sums = get(3 * FUSED_SUMS_PITCH * sizeof *fused->sums, stream);
    fused->mail = get(fused_mail_bytes(fused->groups), stream);
    fused->arrived = get(fused_arrived_bytes(fused->groups), stream);
    fused->evaluation = get(sizeof *fused->evaluation, stream);
    CUDA_CHECK(cudaHostAlloc((void **)&fused->pinned, sizeof *fused->pinned, cudaHostAllocDefault));
    memset(fused->pinned, 0, sizeof *fused->pinned);
}

static struct engine *open_fused(const struct engine_setup *setup, struct error *error)
{
    char why[300];
    int device;
    struct fused *fused = memory_allocate(1, sizeof *fused, "the fused engine");
    struct comm_sums *sums = comm_sums_open(setup->comm, FUSED_SUMS);
    fused->base = (struct engine){&engine_fused, *setup, NULL, sums, FUSED_GRADIENT};
    fused->round = 1; /* fresh mail is of round 0 */
    device_use(comm_local_rank(setup->comm));
    CUDA_CHECK(cudaGetDevice(&device));
    if (setup->precision != PRECISION_FP32)
        error_set(error, EXIT_USAGE,
                  "--precision: engine fused computes in fp32 alone; leave it out, or --engine cudnn");
    else if (!fits(device, &fused->groups, why, sizeof why))
        error_set(error, EXIT_RUNTIME, "engine fused: rank %d on host %s: %s", comm_rank(setup->comm),
                  comm_host_name(setup->comm, comm_rank(setup->comm)), why);
    if (!comm_agree(setup->comm, error)) {
        comm_sums_close(sums);
        free(fused);
        return NULL;
    }
    CUDA_CHECK(fused_prepare());
    CUDA_CHECK(cudaStreamCreateWithFlags(&fused->stream, cudaStreamNonBlocking));
    allocate(fused);
    return &fused->base;
}

static void close_fused(struct engine *engine)
{
    struct fused *fused = fused_of(engine);
    void *all[] = {fused->train,       fused->test,        fused->order,     fused->weights[0], fused->weights[1],
                   fused->velocity[0], fused->velocity[1], fused->state[0],  fused->state[1],   fused->sums,
                   fused->mail,        fused->arrived,     fused->evaluation};
    CUDA_CHECK(cudaStreamSynchronize(fused->stream));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CUDA_CHECK(cudaFree(all[i]));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventDestroy(fused->marks[i]));
    CUDA_CHECK(cudaFreeHost(fused->pinned));
    CUDA_CHECK(cudaStreamDestroy(fused->stream));
    comm_sums_close(engine->sums);
    free(fused);
}

static void begin_epoch(struct engine *engine, const uint32_t *order)
{
    struct fused *fused = fused_of(engine);
    engine->order = order;
    copy(fused, fused->order, order, engine->setup.data->train.count * sizeof *order);
}

/* --- waiting --------------------------------------------------------------------------------------------------- */

/* Work on the device that may wait for other ranks. */
struct pending {
    struct fused *fused;
    cudaEvent_t mark;
    const volatile sig_atomic_t *stop; /* this rank's wish, handed on to the device meanwhile; or NULL */
};

static bool is_done(void *context)
{
    struct pending *pending = context;
    const struct fused_trouble *trouble = &pending->fused->pinned->trouble;
    if (pending->stop != NULL)
        pending->fused->pinned->stop = *pending->stop;
    cudaError_t status = cudaEventQuery(pending->mark);
    if (status == cudaErrorNotReady) {
        cudaGetLastError(); /* clears it: the next launch would find it */
        return false;
    }
    if (status != cudaSuccess && trouble->waited) {
        char text[160];
        snprintf(text, sizeof text, "block %u waited in vain for another one: for %u, and found %u", trouble->block,
                 trouble->wanted, trouble->found);
        gpu_failed("CUDA", "the fused step", __FILE__, __LINE__, text);
    }
    CUDA_CHECK(status);
    return true;
}

static void wait_for(struct fused *fused, cudaEvent_t mark, const volatile sig_atomic_t *stop)
{
    comm_wait(fused->base.setup.comm, is_done, &(struct pending){fused, mark, stop}, "the gradient sum");
}

static void finish(struct fused *fused, const volatile sig_atomic_t *stop)
{
    CUDA_CHECK(cudaEventRecord(fused->marks[0], fused->stream));
    wait_for(fused, fused->marks[0], stop);
}

/* --- launches -------------------------------------------------------------------------------------------------- */

/* A run of launches: that of a span's steps, or of a part of a single one. */
static struct fused_run begin_run(struct fused *fused, uint64_t step, size_t first, size_t last, float learning_rate)
{
    const struct engine_setup *setup = &fused->base.setup;
    size_t batch = setup->batch_size, rest = (last - first) % batch, ranks = (size_t)comm_size(setup->comm);
    size_t tiles = ((batch + TILE - 1) / TILE + ranks - 1) / ranks; /* of a rank, at most */
    struct fused_run run = {
        .records = fused->train,
        .order = fused->order,
        .sums = fused->sums,
        .mail = fused->mail,
        .arrived = fused->arrived,
        .trouble = &fused->pinned->trouble,
        .seed = setup->masks.seed,
        .step = step,
        .momentum = setup->momentum,
        .learning_rate = learning_rate,
        .unit = {EXACT_UNIT * (1 / (double)batch), rest > 0 ? EXACT_UNIT * (1 / (double)rest) : 0},
        .batch = (uint32_t)batch,
        .position = (uint32_t)first,
        .last = (uint32_t)last,
        .rank = (uint32_t)comm_rank(setup->comm),
        .ranks = (uint32_t)ranks,
        .groups = (uint32_t)(tiles < fused->groups ? tiles : fused->groups),
    };
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++) {
        run.threshold[layer] = philox_threshold(setup->masks.p[layer]);
        run.scale[layer] = setup->masks.scale[layer];
    }
    CUDA_CHECK(cudaMemsetAsync(fused->state[fused->now], 0, sizeof *fused->state[0], fused->stream));
    CUDA_CHECK(cudaMemsetAsync(fused->sums, 0, 3 * FUSED_SUMS_PITCH * sizeof *fused->sums, fused->stream));
    return run;
}

static void clear_arrived(struct fused *fused)
{
    CUDA_CHECK(cudaMemsetAsync(fused->arrived, 0, fused_arrived_bytes(fused->groups), fused->stream));
}

static void launch(struct fused *fused, struct fused_run *run)
{
    int now = fused->now, next = 1 - now;
    run->weights = fused->weights[now], run->new_weights = fused->weights[next];
    run->velocity = fused->velocity[now], run->new_velocity = fused->velocity[next];
    run->before = fused->state[now], run->after = fused->state[next];
    run->round = fused->round;
    clear_arrived(fused);
    CUDA_CHECK(fused_train(run, fused->stream));
    fused->round += fused_rounds(run);
    fused->now = next;
}

/* --- training -------------------------------------------------------------------------------------------------- */

/* Before a burst: a mark behind the last one, and a wait for the one before that. */
static void keep_pace(struct fused *fused, uint32_t burst, const volatile sig_atomic_t *stop)
{
    CUDA_CHECK(cudaEventRecord(fused->marks[burst % 2], fused->stream));
    wait_for(fused, fused->marks[(burst + 1) % 2], stop);
}

/* A launch a step, which opens with the update of the one before; the last one does that alone. Those after a stop or a
 * refusal do nothing. */
static void queue_steps(struct fused *fused, struct fused_run *run, uint32_t steps, const volatile sig_atomic_t *stop)
{
    struct comm *comm = fused->base.setup.comm;
    for (uint32_t i = 0; i <= steps; i++) {
        uint32_t left = run->last - run->position, samples = left < run->batch ? left : run->batch;
        if (i % BURST == 0)
            keep_pace(fused, i / BURST, stop);
        run->steps = i < steps, run->buffer = i % 3;
        launch(fused, run);
        if (i < steps)
            comm_sum_on_device(comm, fused->sums + i % 3 * FUSED_SUMS_PITCH, FUSED_SUMS, fused->stream);
        run->pending = samples, run->position += samples, run->step++;
    }
}

static bool train(struct engine *engine, const struct span *span, struct train_report *report)
{
    struct fused *fused = fused_of(engine);
    struct comm *comm = engine->setup.comm;
    size_t left = span->last - span->first, batch = engine->setup.batch_size, steps = (left + batch - 1) / batch;
    if (comm_size(comm) > 1 && !comm_can_sum_on_device(comm))
        return false;
    steps = steps < STEPS_A_CALL ? steps : STEPS_A_CALL;
    range_begin("training steps");
    fused->pinned->stop = *span->stop;
    struct fused_run run = begin_run(fused, span->step, span->first, span->last, span->learning_rate);
    run.stop = &fused->pinned->stop;
    if (comm_size(comm) > 1)
        queue_steps(fused, &run, (uint32_t)steps, span->stop);
    else {
        run.steps = (uint32_t)steps, run.closes = 1;
        launch(fused, &run);
    }
    CUDA_CHECK(cudaMemcpyAsync(&fused->pinned->state, fused->state[fused->now], sizeof fused->pinned->state,
                               cudaMemcpyDefault, fused->stream));
    finish(fused, span->stop);
    range_end();

    const struct fused_state *done = &fused->pinned->state;
    report->steps = done->applied;
    report->samples = done->applied * batch < left ? done->applied * batch : left;
    report->loss = done->loss;
    report->stopped = done->stopped;
    report->not_finite = done->not_finite;
    return true;
}

/* --- the plain step: sums by way of the host --------------------------------------------------------------------- */

static void gradient(struct engine *engine, uint64_t step, size_t first, size_t last)
{
    struct fused *fused = fused_of(engine);
    struct fused_run run = begin_run(fused, step, first, last, 0);
    run.steps = 1;
    launch(fused, &run);
    finish(fused, NULL);
    copy(fused, engine->sums->terms, fused->sums, FUSED_SUMS * sizeof *fused->sums);
}

static void update(struct engine *engine, float learning_rate, size_t samples)
{
    struct fused *fused = fused_of(engine);
    struct fused_run run = begin_run(fused, 0, 0, samples, learning_rate);
    run.buffer = 1, run.pending = (uint32_t)samples;
    copy(fused, fused->sums, engine->sums->totals, FUSED_SUMS * sizeof *fused->sums);
    launch(fused, &run);
    finish(fused, NULL);
}

static void read_sums(const struct engine *engine, const int64_t *sums, int64_t *canonical)
{
    (void)engine;
    for (uint32_t i = 0; i < FUSED_GRADIENT; i++) {
        int at = fused_canonical(i);
        if (at >= 0)
            canonical[at] = sums[i];
    }
}

/* --- evaluation, state ----------------------------------------------------------------------------------------- */

static void evaluate_fused(struct engine *engine, const struct split *split, size_t first, size_t last,
                           struct evaluation *sum)
{
    struct fused *fused = fused_of(engine);
    struct fused_run run = {
        .records = split == &engine->setup.data->train ? fused->train : fused->test,
        .weights = fused->weights[fused->now],
        .mail = fused->mail,
        .arrived = fused->arrived,
        .trouble = &fused->pinned->trouble,
        .batch = (uint32_t)(last - first),
        .position = (uint32_t)first,
        .last = (uint32_t)last,
        .groups = fused->groups,
        .round = fused->round,
    };
    if (first == last)
        return;
    range_begin("check");
    clear_arrived(fused);
    CUDA_CHECK(cudaMemsetAsync(fused->evaluation, 0, sizeof *fused->evaluation, fused->stream));
    CUDA_CHECK(fused_evaluate(&run, fused->evaluation, fused->stream));
    fused->round += fused_rounds(&run);
    CUDA_CHECK(cudaMemcpyAsync(&fused->pinned->evaluation, fused->evaluation, sizeof *fused->evaluation,
                               cudaMemcpyDefault, fused->stream));
    finish(fused, NULL);
    range_end();
    sum->loss += fused->pinned->evaluation.loss;
    sum->correct += fused->pinned->evaluation.correct;
    sum->refused += fused->pinned->evaluation.refused;
    sum->samples += (int64_t)(last - first);
}

static void read_state(struct engine *engine, float *weights, float *momentum)
{
    struct fused *fused = fused_of(engine);
    if (weights != NULL)
        copy(fused, weights, fused->weights[fused->now], LENET5_WEIGHTS * sizeof *weights);
    if (momentum != NULL)
        copy(fused, momentum, fused->velocity[fused->now], LENET5_WEIGHTS * sizeof *momentum);
}

static void write_state(struct engine *engine, const float *weights, const float *momentum)
{
    struct fused *fused = fused_of(engine);
    if (weights != NULL)
        copy(fused, fused->weights[fused->now], weights, LENET5_WEIGHTS * sizeof *weights);
    if (momentum != NULL)
        copy(fused, fused->velocity[fused->now], momentum, LENET5_WEIGHTS * sizeof *momentum);
}

const struct engine_ops engine_fused = {
    .name = "fused",
    .on_gpu = true,
    .is_defined = true,
    .available = available,
    .open = open_fused,
    .close = close_fused,
    .begin_epoch = begin_epoch,
    .gradient = gradient,
    .update = update,
    .train = train,
    .evaluate = evaluate_fused,
    .read = read_state,
    .write = write_state,
    .read_sums = read_sums,
};
