/* What each node of a training step costs, by events between them. */
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "clock.h"
#include "cudnn_private.h"
#include "median.h"
#include "memory.h"

enum { ROUNDS = 11, WARM_UP = 2 };

struct recorder {
    cudaStream_t stream;
    cudaEvent_t *events; /* the one behind node i is i + 1 */
    struct gpu_node *nodes;
    int count, most;
};

static void record(void *context, const char *layer, const char *pass)
{
    struct recorder *recorder = context;
    if (recorder->count == recorder->most)
        return;
    recorder->nodes[recorder->count++] = (struct gpu_node){.layer = layer, .pass = pass};
    CUDA_CHECK(cudaEventRecord(recorder->events[recorder->count], recorder->stream));
}

/* Keeps the stream from starting before all is queued: launching takes longer than running. Not the first time:
 * what loads code at its first launch may wait for the stream. And not for ever: under a profiler, or with
 * CUDA_LAUNCH_BLOCKING, each launch waits for its end, and so for the gate. */
struct gate {
    atomic_bool open;
    double gives_up; /* on the clock, seconds */
};
static const double HELD_SECONDS = 0.5;

static void hold(void *context)
{
    struct gate *gate = context;
    while (!atomic_load(&gate->open) && clock_seconds() < gate->gives_up)
        ;
}

static void queue_round(struct cudnn *cudnn, struct recorder *recorder, const struct net_batch *batch, bool held)
{
    struct gate gate = {false, clock_seconds() + HELD_SECONDS};
    recorder->count = 0;
    /* Each round takes the epoch's first batch, at a rate that is not zero: the update does all of its work. */
    queue_copy(&cudnn->queue, cudnn->step, &(struct cuda_step){.learning_rate = 1e-3f}, sizeof *cudnn->step);
    if (held)
        CUDA_CHECK(cudaLaunchHostFunc(recorder->stream, hold, &gate));
    CUDA_CHECK(cudaEventRecord(recorder->events[0], recorder->stream));
    cudnn_queue_step(cudnn, batch, cudnn->full.samples);
    atomic_store(&gate.open, true);
    queue_finish(&cudnn->queue, NULL);
}

static void profile(struct cudnn *cudnn, struct recorder *recorder, const struct net_batch *batch)
{
    double(*times)[ROUNDS] = memory_allocate((size_t)recorder->most, sizeof *times, "the times of a step");
    for (int round = -WARM_UP; round < ROUNDS; round++) {
        queue_round(cudnn, recorder, batch, round > -WARM_UP);
        for (int i = 0; i < recorder->count && round >= 0; i++) {
            float milliseconds;
            CUDA_CHECK(cudaEventElapsedTime(&milliseconds, recorder->events[i], recorder->events[i + 1]));
            times[i][round] = 1e3 * (double)milliseconds;
        }
    }
    for (int i = 0; i < recorder->count; i++)
        recorder->nodes[i].microseconds = median(times[i], ROUNDS);
    free(times);
}

int cudnn_profile(struct engine *engine, struct gpu_node *nodes, int most)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct net_batch batch;
    struct error none = {0};
    struct recorder recorder = {.stream = cudnn->queue.stream, .nodes = nodes, .most = most};
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS]; /* as they were, and are to be afterwards */
    engine->ops->read(engine, weights, velocity);
    recorder.events = memory_allocate((size_t)most + 1, sizeof *recorder.events, "the events of a step");
    for (int i = 0; i <= most; i++)
        CUDA_CHECK(cudaEventCreate(&recorder.events[i]));
    cudnn_find_batch(cudnn, cudnn->full.samples, &batch, &none); /* planned at the start */
    cudnn->net.mark = record;
    cudnn->net.mark_context = &recorder;
    profile(cudnn, &recorder, &batch);
    cudnn->net.mark = NULL;
    engine->ops->write(engine, weights, velocity);
    for (int i = 0; i <= most; i++)
        CUDA_CHECK(cudaEventDestroy(recorder.events[i]));
    free(recorder.events);
    return recorder.count;
}
