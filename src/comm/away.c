/* A rank that is away: a thread answers for it. MPI serves one thread at a time (MPI_THREAD_SERIALIZED), which is why
 * the rank itself must not call MPI meanwhile. */
#include <pthread.h>
#include <semaphore.h>

#include "clock.h"
#include "transport.h"

static const double LOOK_SECONDS = 0.02;

static void *stand_in(void *context)
{
    struct comm *comm = context;
    double busy_seconds = 0, limit = watch_timeout(comm->watch); /* counted by looks: a stopped process is not busy */
    bool told = false;
    struct timespec next;
    do {
        watch_acknowledge(comm->watch);
        busy_seconds += LOOK_SECONDS;
        if (!told && busy_seconds > limit) {
            error_note("rank %d on host %s has been busy with files for %g s; the others wait for it",
                       comm_world_rank(comm, comm->rank), comm_host_name(comm, comm->rank), limit);
            told = true;
        }
        next = clock_after(LOOK_SECONDS);
    } while (sem_clockwait(&comm->away.back, CLOCK_MONOTONIC, &next) != 0);
    return NULL;
}

void comm_away(struct comm *comm)
{
    if (watch_is_alone(comm->watch))
        return;
    sem_init(&comm->away.back, 0, 0);
    comm->away.answered = pthread_create(&comm->away.thread, NULL, stand_in, comm) == 0;
}

void comm_back(struct comm *comm)
{
    if (watch_is_alone(comm->watch))
        return;
    if (comm->away.answered) {
        sem_post(&comm->away.back);
        pthread_join(comm->away.thread, NULL);
    }
    sem_destroy(&comm->away.back);
}
