#include "turns.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

struct turns {
    pthread_mutex_t turn; /* whoever runs holds it */
    void (*job)(void *context, int number, struct turns *turns);
    void *context;
};

struct seat {
    struct turns *turns;
    int number;
    pthread_t thread;
    bool started;
};

static void *take_seat(void *context)
{
    struct seat *seat = context;
    struct turns *turns = seat->turns;
    pthread_mutex_lock(&turns->turn);
    turns->job(turns->context, seat->number, turns);
    pthread_mutex_unlock(&turns->turn);
    return NULL;
}

void turns_run(int count, void (*job)(void *context, int number, struct turns *turns), void *context)
{
    struct turns turns = {.turn = PTHREAD_MUTEX_INITIALIZER, .job = job, .context = context};
    struct seat *seats = calloc((size_t)count, sizeof *seats);
    for (int i = 0; i < count; i++) {
        seats[i] = (struct seat){.turns = &turns, .number = i};
        seats[i].started = pthread_create(&seats[i].thread, NULL, take_seat, &seats[i]) == 0;
    }
    for (int i = 0; i < count; i++) {
        if (seats[i].started)
            pthread_join(seats[i].thread, NULL);
        else
            take_seat(&seats[i]); /* no thread to be had: after the others */
    }
    free(seats);
}

/* A moment: a mutex that is let go and asked for again at once seldom changes hands. */
void turns_pass(void *context)
{
    struct turns *turns = context;
    pthread_mutex_unlock(&turns->turn);
    nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
    pthread_mutex_lock(&turns->turn);
}
