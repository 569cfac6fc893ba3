/* A rank that is away: a thread answers for it. MPI serves one thread at a time, which is why the rank itself must not call it
 * meanwhile (MPI_THREAD_SERIALIZED). */
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include "transport.h"

enum { LOOK_NANOSECONDS = 20000000 };

static void *stand_in(void *context)
{
    struct comm *comm = context;
    struct timespec next;
    do {
        watch_acknowledge(comm->watch);
        clock_gettime(CLOCK_MONOTONIC, &next);
        next.tv_nsec += LOOK_NANOSECONDS;
        next.tv_sec += next.tv_nsec / 1000000000;
        next.tv_nsec %= 1000000000;
    } while (sem_clockwait(&comm->away.back, CLOCK_MONOTONIC, &next) != 0);
    return NULL;
}

void comm_away(struct comm *comm)
{
    if (comm->size == 1)
        return;
    sem_init(&comm->away.back, 0, 0);
    comm->away.answered = pthread_create(&comm->away.thread, NULL, stand_in, comm) == 0;
}

void comm_back(struct comm *comm)
{
    if (comm->size == 1)
        return;
    if (comm->away.answered) {
        sem_post(&comm->away.back);
        pthread_join(comm->away.thread, NULL);
    }
    sem_destroy(&comm->away.back);
}
