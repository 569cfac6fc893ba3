#include "turns.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "memory.h"

struct turns {
    pthread_mutex_t turn; /* whoever runs holds it */
    void (*job)(void *context, int number, struct turns *turns);
    void *context;
};

struct job_thread {
    struct turns *turns;
    int number;
    pthread_t thread;
    bool started;
};

static void *run_job(void *context)
{
    struct job_thread *self = context;
    struct turns *turns = self->turns;
    pthread_mutex_lock(&turns->turn);
    turns->job(turns->context, self->number, turns);
    pthread_mutex_unlock(&turns->turn);
    return NULL;
}

void turns_run(int count, void (*job)(void *context, int number, struct turns *turns), void *context)
{
    struct turns turns = {.turn = PTHREAD_MUTEX_INITIALIZER, .job = job, .context = context};
    struct job_thread *threads = memory_allocate((size_t)count, sizeof *threads, "the threads of the nets");
    for (int i = 0; i < count; i++) {
        threads[i] = (struct job_thread){.turns = &turns, .number = i};
        threads[i].started = pthread_create(&threads[i].thread, NULL, run_job, &threads[i]) == 0;
    }
    for (int i = 0; i < count; i++) {
        if (threads[i].started)
            pthread_join(threads[i].thread, NULL);
        else
            run_job(&threads[i]); /* no thread to be had: when those before it have ended, in turns with those behind */
    }
    free(threads);
}

/* Sleeps between the two: a mutex that is unlocked and locked again at once seldom goes to another thread. */
void turns_pass(void *context)
{
    struct turns *turns = context;
    pthread_mutex_unlock(&turns->turn);
    nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
    pthread_mutex_lock(&turns->turn);
}
