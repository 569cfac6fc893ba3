/* guard.h - calls of MPI that block, which watch.h cannot look into: MPI_Init, MPI_Finalize, a split.
 *
 * A thread counts the time they take, and ends the process with EXIT_PEER_LOST where it is too much. A start is slow on
 * a machine that is overloaded, so it has much of it. But /proc tells a rank that is stopped (SIGSTOP) from one that is
 * slow: of the ranks that the launcher has started on this host, the one with the lowest process id that is not stopped
 * itself names one that is, or the launcher, once it has been so for the timeout. (A launcher that is stopped passes
 * that on when it goes on, if it ever does; else launch/run tells it.) What is stopped on another host is left to the
 * limit.
 *
 * Time in which this process was stopped itself counts for two seconds or a quarter of the timeout, whichever is less,
 * however long it was: a job that is stopped as a whole goes on when it is continued.
 */
#ifndef DTRAIN_COMM_GUARD_H
#define DTRAIN_COMM_GUARD_H

struct guard; /* opaque: there is one, opened once */

/* Starts the thread, before MPI starts; where none can be had, nor could MPI's own: the process ends with a line. */
struct guard *guard_open(double timeout_seconds);
void guard_close(struct guard *guard);

/* Around the call; a second begin starts the count anew. `what` is for the message: "starting MPI". */
void guard_begin(struct guard *guard, const char *what, double limit_seconds);
void guard_end(struct guard *guard);

#endif
