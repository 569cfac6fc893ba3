/* A rank that is away: a thread answers for it. MPI serves one thread at a time, which is why the rank itself must not
 * call it meanwhile (MPI_THREAD_SERIALIZED). */
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include "transport.h"

enum { LOOK_NANOSECONDS = 20000000 };

static struct timespec next_look(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += LOOK_NANOSECONDS;
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static void *stand_in(void *context)
{
    struct comm *comm = context;
    double busy_seconds = 0, limit = watch_timeout(comm->watch); /* counted, as a process that is stopped is not busy */
    bool told = false;
    struct timespec next;
    do {
        watch_acknowledge(comm->watch);
        busy_seconds += 1e-9 * LOOK_NANOSECONDS;
        if (!told && busy_seconds > limit) {
            error_note("rank %d on host %s has been busy with files for %g s; the others wait for it", comm->rank,
                       comm_host_name(comm, comm->rank), limit);
            told = true;
        }
        next = next_look();
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
