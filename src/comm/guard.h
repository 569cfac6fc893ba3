/* guard.h - a limit for calls of MPI that block, which watch.h cannot look into: MPI_Init, MPI_Finalize, a split.
 *
 * A thread counts the time that such a call takes, and ends the process with EXIT_PEER_LOST when it is over the limit.
 * A start is slow on a machine that is overloaded, so its limit is long. But /proc tells a rank that is stopped
 * (SIGSTOP) from one that is slow: of the ranks that the launcher has started on this host, the running one with the
 * lowest process id looks for the launcher, or a rank, that has been stopped for the timeout, names it and ends. (A
 * stopped launcher hears of that end when it is continued; if it never is, launch/run ends it.) What is stopped on
 * another host is left to the limit.
 *
 * Time in which this process itself was stopped counts for two seconds or a quarter of the timeout, whichever is less,
 * however long it was: a job that is stopped as a whole goes on when it is continued.
 *
 * One thread at a time calls these: the one that calls MPI. Not collective.
 */
#ifndef DTRAIN_COMM_GUARD_H
#define DTRAIN_COMM_GUARD_H

struct guard; /* opaque: there is one, opened once */

/* Starts the thread. Called once, before MPI starts. Where no thread can be had, MPI could not have its own either: the
 * process ends with a line. */
struct guard *guard_open(double timeout_seconds);
void guard_close(struct guard *guard);

/* Around the call; a second begin starts the count anew. `what` is for the message: "starting MPI". HUGE_VAL: no limit,
 * but stopped ranks are still looked for. */
void guard_begin(struct guard *guard, const char *what, double limit_seconds);
void guard_end(struct guard *guard);

#endif
