/* watch.h - nobody waits for ever.
 *
 * Every wait for other ranks goes through watch_wait or watch_until. A rank that has waited for half the timeout sends
 * all ranks of its group a probe; a rank acknowledges probes from its own waits and, while it computes, from
 * watch_acknowledge. Those who have not acknowledged by the full timeout are lost: one message names them and their
 * hosts, and the job ends with EXIT_PEER_LOST. When all have, the wait goes on: slow is not lost. Should no rank of the
 * group have made progress between one round of probes and the next, three times in a row (a deadlock), the job ends as
 * well. Time in which a rank itself did not run, as when the whole job is stopped and goes on, counts for little: a
 * second or a quarter of the timeout, whichever is less, however long it was.
 *
 * mpirun sends SIGTERM to all ranks when one has died, and SIGKILL a second later: a rank whose wait does not end then
 * says where it stands (WATCH_POSITION).
 *
 * One thread at a time calls these: while a thread stands in for its rank (away.c), that one.
 */
#ifndef DTRAIN_COMM_WATCH_H
#define DTRAIN_COMM_WATCH_H

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>

struct watch; /* opaque: one a process */

/* Both are collective over `world`. */
struct watch *watch_open(MPI_Comm world, double timeout_seconds);
void watch_close(struct watch *watch);
bool watch_is_alone(const struct watch *watch);  /* the world has no other rank */
double watch_timeout(const struct watch *watch); /* in seconds, as given last */
void watch_set_timeout(struct watch *watch, double seconds);

/* The ranks that a wait is for, as ranks of the world. The arrays are borrowed. */
struct watch_group {
    int size;
    const int *world_ranks;
    const char *const *hosts; /* names, by rank of the group */
    const char *advice;       /* "; ...": what may help where all answer and none gets on. NULL: nothing */
};

/* Waits until done(context) is true, asking again and again. `what` is for the message: "the gradient sum". */
void watch_until(struct watch *watch, bool (*done)(void *context), void *context, const struct watch_group *group,
                 const char *what);

/* The same until a request is complete. `idle` (or NULL) is called now and then meanwhile. */
void watch_wait(struct watch *watch, MPI_Request *request, const struct watch_group *group, const char *what,
                void (*idle)(void *context), void *context);

/* Acknowledges the probes that have come. Not collective; cheap enough for every tile of work. */
void watch_acknowledge(struct watch *watch);

/* The line of a rank whose wait SIGTERM does not end: rank, host, what it waited for, step. launch/run parses it, to
 * say where the others stood when mpirun has named a lost rank: change it here and there at once, or the tests of both
 * fail. launch/run also knows how a line begins that ends the job, "dtrain: lost " (watch.c, guard.c), and guard.c's
 * "... has taken ... s: a rank is stuck": after one of these it ends a launcher that hangs. */
#define WATCH_POSITION "dtrain: rank %d on host %s was told to end by SIGTERM while it waited for %s of step %llu\n"

/* The step that this rank is at, for the message. */
void watch_set_step(struct watch *watch, uint64_t step);

#endif
