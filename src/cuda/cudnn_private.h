/* cudnn_private.h - the cudnn engine's inside: its state, with planning across ranks (cudnn_plan.c) and training
 * (cudnn_train.c) for the table of operations (cudnn.c).
 */
#ifndef DTRAIN_CUDA_CUDNN_PRIVATE_H
#define DTRAIN_CUDA_CUDNN_PRIVATE_H

#include "cudnn.h"
#include "cudnn_net.h"
#include "queue.h"

/* A whole step as a CUDA graph: what differs from step to step lies in device memory. */
struct step_graph {
    size_t samples; /* of the global batch; 0: there is no such batch */
    cudaGraphExec_t exec;
};

struct cudnn {
    struct engine base;
    struct queue queue;
    struct cudnn_net net;
    struct chooser chooser;
    uint32_t *order;
    struct cuda_step *step, *host_step; /* the latter in pinned host memory */
    const struct net_shape *evaluated;  /* what passes at once in predict mode */
    struct step_graph full, tail;
};

/* The engine, with its GPU made the calling thread's. */
struct cudnn *cudnn_of(struct engine *engine);

/* Positions [*position, *position + *count) of a batch of `samples` are this rank's. */
void cudnn_share(const struct cudnn *cudnn, size_t samples, size_t *position, size_t *count);

/* Collective: plans for this rank's parts in the batches that an epoch has, and for `evaluated` samples at
 * once in predict mode. *error set where there are none. */
void cudnn_plan(struct cudnn *cudnn, size_t evaluated, struct error *error);

/* Collective: makes the graphs of whole steps, if the sums over ranks can be part of them. */
void cudnn_capture_steps(struct cudnn *cudnn);

/* The part of this rank in a batch of `samples`. False with *error set when there is no plan for it. */
bool cudnn_find_batch(struct cudnn *cudnn, size_t samples, struct net_batch *batch, struct error *error);

/* Queues a step, with the sums over ranks where they are summed on the device. */
void cudnn_queue_step(struct cudnn *cudnn, const struct net_batch *batch, size_t samples);

/* As in engine.h. */
bool cudnn_train(struct engine *engine, const struct span *span, struct train_report *report);
void cudnn_gradient(struct engine *engine, uint64_t step, size_t first, size_t end);
void cudnn_update(struct engine *engine, float learning_rate, size_t samples);
void cudnn_read_sums(const struct engine *engine, const int64_t *sums, int64_t *canonical);

#endif
