/* train_trials.h - a rank trains its trials: an epoch of each in turn, the steps of all side by side, or each trial
 * in a thread of its own, of which one runs while the others wait for the GPU (turns.h).
 */
#ifndef DTRAIN_TRAINING_TRAIN_TRIALS_H
#define DTRAIN_TRAINING_TRAIN_TRIALS_H

#include "messenger.h"
#include "trainer.h"

/* The trials that this rank trains, with the others of its group. All pointers are borrowed. */
struct rank_trials {
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
void train_trials(const struct rank_trials *trials);

#endif
