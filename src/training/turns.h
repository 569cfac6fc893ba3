/* turns.h - several jobs at once that need no locks: each has a thread of its own, but only one runs at a
 * time, and it passes the turn on only where it waits. So the waits overlap, and nothing else.
 */
#ifndef DTRAIN_TRAINING_TURNS_H
#define DTRAIN_TRAINING_TURNS_H

struct turns; /* opaque */

/* Runs job(context, number, turns) for numbers 0..count-1, and returns when all have returned. */
void turns_run(int count, void (*job)(void *context, int number, struct turns *turns), void *context);

/* Called by a job (the argument is its struct turns): lets the others go on for a moment. */
void turns_pass(void *context);

#endif
