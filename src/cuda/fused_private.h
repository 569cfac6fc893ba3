/* fused_private.h - the fused engine's inside: a net's state, what the nets of a rank share, and training
 * (fused_train.c) for the table of operations (fused.c).
 */
#ifndef DTRAIN_CUDA_FUSED_PRIVATE_H
#define DTRAIN_CUDA_FUSED_PRIVATE_H

#include "fused.h"
#include "kernels/fused/fused.h"
#include "queue.h"

/* Pinned host memory: the device reads and writes it. */
struct fused_pinned {
    struct fused_state states[FUSED_NETS]; /* of the nets of a launch */
    struct fused_trouble trouble;
};

/* What the nets of a rank share: those that were opened beside each other. One thread at a time uses it, from a launch
 * to its end. */
struct fused_device {
    struct queue queue;
    int nets;                  /* that are open */
    uint32_t groups;           /* that this GPU holds at once */
    uint32_t least_groups;     /* and the one of the ranks that holds the fewest */
    void *exported;            /* what other GPUs may reach: counters for FUSED_NETS, then the sums */
    int64_t *sums;             /* (3, nets of the launch, FUSED_SUMS_PITCH) */
    struct fused_peers *peers; /* (FUSED_NETS); NULL: sums are added up between launches */
    void *mapped[FUSED_PEERS]; /* `exported` of the other ranks; NULL: it is this rank's */
    void *mail;                /* of all groups, as launches divide them */
    uint32_t *arrived, round;  /* round: the next one's number (kernels/fused) */
    struct fused_pinned *pinned;
};

struct fused {
    struct engine base;
    struct fused_device *device;
    uint32_t *order;
    /* What launches read and write in turns: `now` is what the last one left. */
    float *weights[2], *velocity[2];
    struct fused_state *state[2];
    int now;
};

/* The engine, with its GPU made the calling thread's. */
struct fused *fused_of(struct engine *engine);

/* The first of `count` rounds of which the mail has nothing. */
uint32_t fused_take_rounds(struct fused_device *device, uint32_t count);

/* Memory that other processes may map, as a whole, for the sums of `nets` nets. */
void fused_peers_export(struct fused_device *device, size_t nets);

/* fused_peers.c. Collective: maps what the other ranks export, so that kernels sum over the ranks; closing comes before
 * any frees its own. */
bool fused_peers_open(struct fused_device *device, struct error *error);
void fused_peers_close(struct fused_device *device);

/* Ends the job after a launch has failed in which ranks sum; returns if none of them is lost. */
void fused_peers_failed(struct fused_device *device);

/* Nets that are launched together, again and again. */
struct fused_team {
    struct fused_device *device;
    int count;
    struct fused *nets[FUSED_NETS];
    struct fused_run runs[FUSED_NETS];
    size_t steps[FUSED_NETS]; /* that each does of its span */
};

/* The team of these engines, each with the steps of its span. */
void fused_begin(struct fused_team *team, struct engine *const *engines, int count, const struct span *spans);

/* Queues a launch of the runs; a single one with `clocks` by the kernel that reads them. */
void fused_launch(struct fused_team *team);

/* As in engine.h. */
int fused_at_once(struct engine *engine, int count);
void fused_train_several(struct engine *const *engines, int count, const struct span *spans,
                         struct train_report *reports);
bool fused_train_alone(struct engine *engine, const struct span *span, struct train_report *report);
void fused_gradient(struct engine *engine, uint64_t step, size_t first, size_t end);
void fused_update(struct engine *engine, float learning_rate, size_t samples);

#endif
