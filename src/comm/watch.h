/* watch.h - nobody waits for ever.
 *
 * Every wait for other ranks goes through watch_wait or watch_until. A rank that has waited for half the timeout asks
 * all ranks of its group whether they live; a rank answers from its own waits and, while it computes,
 * from watch_answer. Those who have not answered by the full timeout are lost: one message names them
 * and their hosts, and the job ends with EXIT_PEER_LOST. When all answer, the wait goes on: slow is not
 * lost. Should no rank of the group have moved on between one round of questions and the next, three
 * times in a row, nothing is coming any more, and the job ends as well.
 *
 * mpirun sends SIGTERM to all ranks when one has died, and SIGKILL a second later: a rank whose wait does not end then
 * says where it stands.
 */
#ifndef DTRAIN_WATCH_H
#define DTRAIN_WATCH_H

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>

struct watch; /* opaque: one a process */

/* Collective over `world`. */
struct watch *watch_open(MPI_Comm world, double timeout_seconds);
void watch_close(struct watch *watch);
double watch_timeout(const struct watch *watch); /* in seconds, as given to watch_open */

/* The ranks one waits for, as ranks of the world. Borrowed arrays. */
struct watch_group {
    int size;
    const int *world_ranks;
    const char *const *hosts; /* names, by rank of the group */
};

/* Until done(context). `what` is for the message: "the gradient sum". */
void watch_until(struct watch *watch, bool (*done)(void *context), void *context,
                 const struct watch_group *group, const char *what);

/* The same for a request to be complete. `idle` (or NULL) is called now and then meanwhile. */
void watch_wait(struct watch *watch, MPI_Request *request, const struct watch_group *group, const char *what,
                void (*idle)(void *context), void *context);

/* Answers whoever asks. Not collective, cheap enough for every tile of work. */
void watch_answer(struct watch *watch);

/* Where this rank stands, for the message. */
void watch_set_step(struct watch *watch, uint64_t step);

/* For what MPI does without a request to wait for: from now on this process ends with EXIT_PEER_LOST and one line
 * once `seconds` have gone by; NULL, 0 calls it off. */
void watch_guard(const char *what, double seconds);

/* Prints one line and ends the whole job with `code`, within seconds even if MPI no longer answers. */
_Noreturn void watch_abort(MPI_Comm comm, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The check macro of MPI: broken machinery ends the job. */
#define MPI_CHECK(call)                                                                                    \
    do {                                                                                                   \
        int code_ = (call);                                                                                \
        if (code_ != MPI_SUCCESS)                                                                          \
            watch_mpi_failed(code_, #call, __FILE__, __LINE__);                                            \
    } while (0)
_Noreturn void watch_mpi_failed(int code, const char *call, const char *file, int line);

#endif
