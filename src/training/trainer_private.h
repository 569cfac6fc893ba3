/* trainer_private.h - what trainer.c and epoch.c share: a trainer, how it tells and how it saves. */
#ifndef DTRAIN_TRAINING_TRAINER_PRIVATE_H
#define DTRAIN_TRAINING_TRAINER_PRIVATE_H

#include "run_files.h"
#include "trainer.h"

struct trainer {
    struct trainer_setup setup;
    bool leader; /* rank 0 of the group: has the files */
    struct terms terms;
    struct run_state state; /* weights and velocity: copies of the engine's, for files and digests */
    struct engine *engine;
    uint32_t *order;        /* of the open epoch */
    uint32_t *order_ahead;  /* of epoch ahead, drawn while a GPU is at the one before; NULL: on CPUs */
    uint64_t ahead;         /* UINT64_MAX: of none */
    struct run_files files; /* the leader's */

    size_t reach; /* of the open epoch: positions that may be used before --max-steps is reached */
    bool spent;   /* it has all its epochs or steps already */
    struct train_report last;

    double mark;        /* when the clock was last read into progress */
    double next_report; /* of a step */
    double next_save;   /* at the end of an epoch: not before */
    double images_per_second;
};

/* Adds the time since the last reading to the run's seconds. */
void trainer_read_clock(struct trainer *trainer);

/* Tells the study how far it is. metrics: of an epoch that was closed; or NULL. */
void trainer_report(struct trainer *trainer, enum event_kind kind, const struct epoch_metrics *metrics);

/* Before anything is saved that was learned from the data: are they what they were? A GPU has had its own copy since
 * the start. Collective. */
bool trainer_trust_data(struct trainer *trainer, struct error *error);

/* Reads weights and velocity. Every replica must hold the same, above all before rank 0's are saved. Collective. */
bool trainer_compare_replicas(struct trainer *trainer, struct error *error);

#endif
