/* messenger.h - news between the groups of a study: each group's leader reports to world rank 0, which displays it,
 * and a stop of one group stops all. Once ranks are split, the messenger raises the stop flag (signals.h)
 * on those that had no signal.
 */
#ifndef DTRAIN_TRAINING_MESSENGER_H
#define DTRAIN_TRAINING_MESSENGER_H

#include <stdbool.h>

#include "comm.h"
#include "display.h"
#include "run.h"

/* All pointers are borrowed. */
struct messenger {
    struct comm *world;
    const int *leaders; /* of each group: a world rank */
    int count;
    struct display *display; /* used on world rank 0 */
    int told, ended;         /* on world rank 0: leaders that were told to stop, or have reported their last */
};

/* On the leader of a group, called often while it trains (context: its struct messenger): passes an event on, and
 * learns of a stop. */
void messenger_report(void *context, const struct event *event);

/* On every rank of a group that was stopped, whichever rank had the signal; its leader tells world rank 0. */
void messenger_stop(struct messenger *messenger, bool leader);

/* Collective over the world: until all groups have ended; world rank 0 displays what they report meanwhile. `leader`:
 * this rank is its group's. */
void messenger_wait(struct messenger *messenger, bool leader);

#endif
