#include "queue.h"

#include <string.h>

#include "check.h"
#include "device.h"
#include "device_memory.h"
#include "exact_sum.h"

enum {
    BURST = 32,        /* steps queued at once; at most two bursts wait on the device */
    SPAN_STEPS = 1024, /* of a call, at most */
};

void *queue_allocate(struct queue *queue, size_t bytes, const char *purpose)
{
    void *memory = device_allocate(bytes, purpose);
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, queue->stream));
    return memory;
}

void queue_copy(struct queue *queue, void *to, const void *from, size_t bytes)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue->stream));
    CUDA_CHECK(cudaStreamSynchronize(queue->stream));
}

static uint8_t *upload(struct queue *queue, const struct split *split, const char *name)
{
    size_t bytes = split->count * RECORD_BYTES, words = (bytes + 3) / 4; /* in which the fused kernel reads them */
    uint8_t *records = queue_allocate(queue, words * 4, name);
    for (size_t i = 0; i < split->count; i += split->per_file)
        queue_copy(queue, records + i * RECORD_BYTES, split_record(split, i), split->per_file * RECORD_BYTES);
    return records;
}

void queue_open(struct queue *queue, const struct engine_setup *setup)
{
    *queue = (struct queue){.comm = setup->comm, .data = setup->data};
    CUDA_CHECK(cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventCreateWithFlags(&queue->marks[i], cudaEventDisableTiming));
    queue->train = upload(queue, &queue->data->train, "the training set");
    queue->test = upload(queue, &queue->data->test, "the test set");
    queue->evaluation = queue_allocate(queue, sizeof *queue->evaluation, "the sums of an evaluation");
    queue->words = device_allocate_pinned(sizeof *queue->words, "what host and device tell each other");
    memset(queue->words, 0, sizeof *queue->words);
}

void queue_close(struct queue *queue)
{
    CUDA_CHECK(cudaFreeHost(queue->words));
    CUDA_CHECK(cudaFree(queue->evaluation));
    CUDA_CHECK(cudaFree(queue->test));
    CUDA_CHECK(cudaFree(queue->train));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventDestroy(queue->marks[i]));
    CUDA_CHECK(cudaStreamDestroy(queue->stream));
}

const uint8_t *queue_records(const struct queue *queue, const struct split *split)
{
    return split == &queue->data->train ? queue->train : queue->test;
}

/* --- waiting ------------------------------------------------------------------------------------------- */

struct wait {
    struct queue *queue;
    cudaEvent_t mark;
    const volatile sig_atomic_t *stop;
    cudaError_t status;
};

static bool is_done(void *context)
{
    struct wait *wait = context;
    struct queue_words *words = wait->queue->words;
    if (wait->stop != NULL)
        words->stop = *wait->stop;
    words->looks++;
    wait->status = cudaEventQuery(wait->mark);
    if (wait->status == cudaErrorNotReady)
        cudaGetLastError(); /* clears it: the next launch would find it */
    return wait->status != cudaErrorNotReady;
}

static void wait_for(struct queue *queue, cudaEvent_t mark, const volatile sig_atomic_t *stop)
{
    struct wait wait = {.queue = queue, .mark = mark, .stop = stop};
    comm_wait(queue->comm, is_done, &wait, "the gradient sum");
    if (wait.status != cudaSuccess && queue->failed != NULL)
        queue->failed(queue);
    if (wait.status != cudaSuccess)
        gpu_failed("CUDA", "a step or a check on the GPU", __FILE__, __LINE__, cudaGetErrorString(wait.status));
}

void queue_finish(struct queue *queue, const volatile sig_atomic_t *stop)
{
    CUDA_CHECK(cudaEventRecord(queue->marks[0], queue->stream));
    wait_for(queue, queue->marks[0], stop);
}

/* At the start of a burst: marks the end of the one before, and waits for the end of the one before that. */
void queue_keep_pace(struct queue *queue, size_t i, const volatile sig_atomic_t *stop)
{
    size_t burst = i / BURST;
    if (i % BURST != 0)
        return;
    CUDA_CHECK(cudaEventRecord(queue->marks[burst % 2], queue->stream));
    wait_for(queue, queue->marks[(burst + 1) % 2], stop);
}

/* --- evaluation, spans --------------------------------------------------------------------------------- */

void queue_begin_evaluation(struct queue *queue)
{
    CUDA_CHECK(cudaMemsetAsync(queue->evaluation, 0, sizeof *queue->evaluation, queue->stream));
}

void queue_end_evaluation(struct queue *queue, struct evaluation *sum)
{
    struct evaluation *result = &queue->words->evaluation;
    CUDA_CHECK(cudaMemcpyAsync(result, queue->evaluation, sizeof *result, cudaMemcpyDefault, queue->stream));
    queue_finish(queue, NULL);
    sum->loss += result->loss;
    sum->correct += result->correct;
    sum->refused += result->refused;
}

size_t span_steps(const struct span *span, size_t batch_size)
{
    size_t left = span->end - span->first;
    size_t steps = left <= EXACT_MAX_TERMS ? (left + batch_size - 1) / batch_size : EXACT_MAX_TERMS / batch_size;
    return steps < SPAN_STEPS ? steps : SPAN_STEPS;
}

size_t span_samples(const struct span *span, size_t batch_size, size_t steps)
{
    size_t left = span->end - span->first;
    return steps * batch_size < left ? steps * batch_size : left;
}
