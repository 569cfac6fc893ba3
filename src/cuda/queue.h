/* queue.h - what both GPU engines have: a stream, the data set in device memory, and the host's part in a call that
 * trains or evaluates: it queues steps not too far ahead of the device, and waits.
 * Owned by its engine, used by one thread at a time; what CUDA refuses ends the job (check.h).
 *
 * While it waits the host hands this rank's wish to stop on to the device, and other ranks are watched over.
 */
#ifndef DTRAIN_CUDA_QUEUE_H
#define DTRAIN_CUDA_QUEUE_H

#include <cuda_runtime_api.h>

#include "engine.h"

/* Pinned host memory: the device reads and writes it. */
struct queue_words {
    volatile int32_t stop;   /* this rank's wish */
    volatile uint32_t looks; /* grows while the host waits: it watches over the other ranks */
    struct evaluation evaluation;
};

struct queue {
    cudaStream_t stream;
    struct comm *comm;
    const struct dataset *data;
    uint8_t *train, *test; /* records, in device memory */
    struct queue_words *words;
    struct evaluation *evaluation; /* in device memory */
    cudaEvent_t marks[2];          /* events, each recorded behind a burst of steps */

    /* Called when queued work has failed, before the job ends with CUDA's message, so that the engine can say more; or
     * NULL. */
    void (*failed)(struct queue *queue);
};

/* On the calling thread's GPU. The caller sets `failed`. */
void queue_open(struct queue *queue, const struct engine_setup *setup);
void queue_close(struct queue *queue);

/* Fresh device memory, zeroed on the stream; the caller frees it by cudaFree. purpose: as for device_allocate. */
void *queue_allocate(struct queue *queue, size_t bytes, const char *purpose);

/* Copies on the stream; all before and the copy itself are done when it returns. */
void queue_copy(struct queue *queue, void *to, const void *from, size_t bytes);

/* The split's records, in device memory. */
const uint8_t *queue_records(const struct queue *queue, const struct split *split);

/* Until all that is queued is done, which may wait for other ranks. stop: this rank's wish; or NULL. */
void queue_finish(struct queue *queue, const volatile sig_atomic_t *stop);

/* Before step i of a call is queued: waits where many are queued already. */
void queue_keep_pace(struct queue *queue, size_t i, const volatile sig_atomic_t *stop);

/* An evaluation: begins with queue->evaluation at 0, to which the device adds; and ends with a wait, and the sum added
 * to *sum. */
void queue_begin_evaluation(struct queue *queue);
void queue_end_evaluation(struct queue *queue, struct evaluation *sum);

/* How many steps of a span one call does: not all of a long one, so that the trainer can say how it goes, and no more
 * than have room for their loss in an int64. The same on all ranks. */
size_t span_steps(const struct span *span, size_t batch_size);

/* How many samples so many steps from the span's first on have. */
size_t span_samples(const struct span *span, size_t batch_size, size_t steps);

#endif
