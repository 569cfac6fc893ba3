/* schedule.h - in which order a rank trains its trials: each an epoch in turn, the steps of all side by side, or each
 * in a thread of its own, of which one runs while the others wait for the GPU (turns.h).
 */
#ifndef DTRAIN_TRAINING_SCHEDULE_H
#define DTRAIN_TRAINING_SCHEDULE_H

#include "messenger.h"
#include "trainer.h"

/* The trials of this rank. All pointers are borrowed. */
struct schedule {
    struct trainer *const *trainers; /* (count), begun */
    struct outcome *outcomes;        /* (count), of the same trials: status and error are filled in */
    int count;                       /* at least 1 */
    int first;                       /* the first one's number in the study; the others follow it */
    const struct engine_ops *engine;
    struct comm *group;          /* the ranks that train them */
    struct messenger *messenger; /* is told of a trial that fails, at once: others may go on for hours */
};

/* Trains every trial whose status is RUN_GOING to its end. When one was stopped the others are saved, too, and all end.
 * Collective over the group; returns on the thread that called, and uses no other by then. */
void schedule_train(const struct schedule *schedule);

#endif
