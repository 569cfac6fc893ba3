/* messenger.h - news between the groups of a study: each group's leader reports to world rank 0, which displays it,
 * and a signal to any rank stops all, also to one whose group has ended. The messenger raises the stop flag
 * (signals.h) on leaders that had no signal.
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
    int told;  /* to stop: on world rank 0 leaders so far; on another rank 1 once it has told world rank 0 */
    int ended; /* on world rank 0: leaders that have reported their last */
};

/* On the leader of a group, called often while it trains (context: its struct messenger): passes an event on, and
 * learns of a stop. */
void messenger_report(void *context, const struct event *event);

/* Collective over the world: until all groups have ended; world rank 0 displays what they report meanwhile, and a rank
 * that has been or is asked to stop tells it. `leader`: this rank is its group's. */
void messenger_wait(struct messenger *messenger, bool leader);

#endif
