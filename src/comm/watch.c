#include "watch.h"

#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "abort.h"
#include "clock.h"
#include "error.h"
#include "memory.h"
#include "signals.h"

enum tag { TAG_PROBE = 1, TAG_ACKNOWLEDGEMENT };
enum { MOST_STALLED_ROUNDS = 3, SPINS = 50, YIELDS = 2000 };
static const double LOOK_SECONDS = 0.01;          /* between two looks of a wait at other things than its end */
static const double MOST_SECONDS = 1;             /* that count of the time between two polls, at most */
static const double SIGTERM_REPORT_SECONDS = 0.3; /* from SIGTERM until report_sigterm */

/* A probe, or its acknowledgement, which carries the probe's round, so that a late one is told from a new one. */
struct message {
    int round;
    unsigned moves; /* in an acknowledgement: the sender's count */
};

struct watch {
    MPI_Comm mpi;
    int rank, size;
    double timeout_seconds;
    uint64_t step;
    int round;        /* of probes this rank has sent */
    unsigned moves;   /* grows while this rank makes progress: waits that ended, calls of watch_acknowledge amid work */
    double next_look; /* time from which watch_acknowledge looks for probes again */
    bool sigterm_reported;
};

struct watch *watch_open(MPI_Comm world, double timeout_seconds)
{
    struct watch *watch = memory_allocate(1, sizeof *watch, "the watch");
    MPI_CHECK(MPI_Comm_dup(world, &watch->mpi));
    MPI_CHECK(MPI_Comm_rank(watch->mpi, &watch->rank));
    MPI_CHECK(MPI_Comm_size(watch->mpi, &watch->size));
    watch->timeout_seconds = timeout_seconds;
    return watch;
}

void watch_close(struct watch *watch)
{
    MPI_CHECK(MPI_Comm_free(&watch->mpi));
    free(watch);
}

bool watch_is_alone(const struct watch *watch)
{
    return watch->size == 1;
}

double watch_timeout(const struct watch *watch)
{
    return watch->timeout_seconds;
}

void watch_set_timeout(struct watch *watch, double seconds)
{
    watch->timeout_seconds = seconds;
}

void watch_set_step(struct watch *watch, uint64_t step)
{
    watch->step = step;
}

/* A message is so small that MPI_Send buffers it and returns at once. */
static void post(struct watch *watch, int to, enum tag tag, struct message message)
{
    MPI_CHECK(MPI_Send(&message, sizeof message, MPI_BYTE, to, tag, watch->mpi));
}

static bool take(struct watch *watch, enum tag tag, int *from, struct message *message)
{
    int there;
    MPI_Status status;
    MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, tag, watch->mpi, &there, &status));
    if (!there)
        return false;
    *from = status.MPI_SOURCE;
    MPI_CHECK(MPI_Recv(message, sizeof *message, MPI_BYTE, *from, tag, watch->mpi, MPI_STATUS_IGNORE));
    return true;
}

static void acknowledge_all(struct watch *watch)
{
    int from;
    struct message message;
    while (take(watch, TAG_PROBE, &from, &message)) {
        message.moves = watch->moves;
        post(watch, from, TAG_ACKNOWLEDGEMENT, message);
    }
}

void watch_acknowledge(struct watch *watch)
{
    double time = clock_seconds();
    if (watch->size == 1 || time < watch->next_look)
        return;
    watch->next_look = time + 0.05;
    watch->moves++;
    acknowledge_all(watch);
}

/* Rounds of probes to a group: who has acknowledged the last one, and whether anyone makes progress. Times are seconds
 * of the wait that counted (struct wait). */
struct probing {
    double quiet_until; /* no round begins before this time */
    double deadline;    /* for the acknowledgements; 0 while no probe is out */
    bool *acknowledged; /* by world rank */
    int missing;
    unsigned moves, moves_before; /* summed over the group, in this round and the last */
    int stalled_rounds;           /* rounds in a row in which no rank had moved */
};

static void send_probes(struct watch *watch, const struct watch_group *group, struct probing *probing, double time)
{
    if (probing->acknowledged == NULL)
        probing->acknowledged = memory_allocate((size_t)watch->size, sizeof *probing->acknowledged, "probes");
    memset(probing->acknowledged, 0, (size_t)watch->size * sizeof *probing->acknowledged);
    probing->acknowledged[watch->rank] = true;
    probing->missing = group->size - 1;
    probing->moves_before = probing->moves;
    probing->moves = 0;
    probing->deadline = time + watch->timeout_seconds / 2;
    watch->round++;
    for (int i = 0; i < group->size; i++)
        if (group->world_ranks[i] != watch->rank)
            post(watch, group->world_ranks[i], TAG_PROBE, (struct message){.round = watch->round});
}

static void take_acknowledgements(struct watch *watch, struct probing *probing)
{
    int from;
    struct message message;
    while (take(watch, TAG_ACKNOWLEDGEMENT, &from, &message)) {
        if (probing->acknowledged == NULL || message.round != watch->round)
            continue;
        probing->acknowledged[from] = true;
        probing->missing--;
        probing->moves += message.moves;
    }
}

/* The lowest rank that has answered prints the message and ends the job; the others give it time to, then do so
 * themselves. */
static _Noreturn void report_lost(struct watch *watch, const struct watch_group *group, const struct probing *probing,
                                  const char *what)
{
    char lost[400] = "";
    size_t used = 0;
    int speaker = -1, count = 0;
    for (int i = 0; i < group->size; i++) {
        int rank = group->world_ranks[i];
        if (probing->acknowledged[rank]) {
            if (speaker < 0)
                speaker = rank;
            continue;
        }
        if (used < sizeof lost - 100)
            used += (size_t)snprintf(lost + used, sizeof lost - used, "%srank %d on host %.60s", count ? ", " : "",
                                     rank, group->hosts[i]);
        count++;
    }
    double patience = clock_seconds() + (watch->rank == speaker ? 0 : 10 + 0.2 * watch->rank);
    while (clock_seconds() < patience) {
        acknowledge_all(watch); /* the speaker may still be probing */
        usleep(10000);
    }
    abort_job(watch->mpi, EXIT_PEER_LOST,
              "lost %d of %d ranks: %s did not answer for %g s while rank %d waited for %s of step %llu; "
              "start again with --resume",
              count, group->size, lost, watch->timeout_seconds, watch->rank, what, (unsigned long long)watch->step);
}

/* Called now and then until the wait ends; time: of the wait so far, in seconds. */
static void probe_group(struct watch *watch, const struct watch_group *group, struct probing *probing, const char *what,
                        double time)
{
    take_acknowledgements(watch, probing);
    if (probing->deadline == 0) {
        if (time > probing->quiet_until)
            send_probes(watch, group, probing, time);
        return;
    }
    if (probing->missing == 0) { /* all alive: go on waiting */
        bool stalled = probing->moves == probing->moves_before;
        probing->stalled_rounds = stalled ? probing->stalled_rounds + 1 : 0;
        if (probing->stalled_rounds == MOST_STALLED_ROUNDS)
            abort_job(watch->mpi, EXIT_PEER_LOST,
                      "every rank answers but none gets on: %s of step %llu does not complete%s", what,
                      (unsigned long long)watch->step, group->advice != NULL ? group->advice : "");
        probing->deadline = 0;
        probing->quiet_until = time + watch->timeout_seconds / 2;
    } else if (time > probing->deadline) {
        report_lost(watch, group, probing, what);
    }
}

/* Said by ranks 0 and 1 of the group and by the first on another host: whatever rank or host is gone, one of them is
 * left. They send no probes, as Open MPI ends a process that connects to a dead one. launch/run makes one line of
 * theirs and mpirun's. Nothing is ended here: if a rank is slow, and none dead, the run still saves and stops. */
static void report_sigterm(struct watch *watch, const struct watch_group *group, const char *what)
{
    int other = 0;
    while (other < group->size && strcmp(group->hosts[other], group->hosts[0]) == 0)
        other++;
    for (int i = 0; i < group->size; i++)
        if ((i <= 1 || i == other) && group->world_ranks[i] == watch->rank)
            fprintf(stderr, WATCH_POSITION, watch->rank, group->hosts[i], what, (unsigned long long)watch->step);
    watch->sigterm_reported = true;
}

/* Ranks often outnumber cores, so a waiting rank gives way: it spins for a moment, yields for about a
 * millisecond, then sleeps a little between polls. */
static void give_way(unsigned polls)
{
    if (polls > YIELDS)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    else if (polls > SPINS)
        sched_yield();
}

/* What a wait is for, what is done meanwhile, and how long it has taken. A whole job may be stopped for hours and then
 * go on (Ctrl-Z, SLURM): no rank has heard another meanwhile, and none is to blame. So what counts of the time from one
 * poll to the next is a second at most, or a quarter of the timeout if that is less. */
struct wait {
    bool (*done)(void *context);
    void *done_context;
    void (*idle)(void *context); /* or NULL */
    void *idle_context;
    const char *what;
    double polled, seconds; /* the last poll, as clock_seconds; time that has counted until then */
};

static double count_time(struct wait *wait, const struct watch *watch)
{
    double now = clock_seconds(), most = fmin(MOST_SECONDS, watch->timeout_seconds / 4);
    wait->seconds += wait->polled > 0 ? fmin(now - wait->polled, most) : 0;
    wait->polled = now;
    return wait->seconds;
}

static void wait_for(struct watch *watch, struct wait *wait, const struct watch_group *group)
{
    struct probing probing = {.quiet_until = watch->timeout_seconds / 2};
    double look = LOOK_SECONDS, end = HUGE_VAL;
    for (unsigned polls = 1; !wait->done(wait->done_context); polls += polls <= YIELDS) {
        double time = polls > SPINS ? count_time(wait, watch) : 0;
        if (time >= look) {
            look = time + LOOK_SECONDS;
            if (wait->idle != NULL)
                wait->idle(wait->idle_context);
            if (signals_terminated() && end == HUGE_VAL)
                end = time + SIGTERM_REPORT_SECONDS;
            if (time > end && !watch->sigterm_reported)
                report_sigterm(watch, group, wait->what);
            acknowledge_all(watch);
            probe_group(watch, group, &probing, wait->what, time);
        }
        give_way(polls);
    }
    watch->moves++;
    free(probing.acknowledged);
}

static bool is_complete(void *request)
{
    int done;
    MPI_CHECK(MPI_Test(request, &done, MPI_STATUS_IGNORE));
    return done;
}

void watch_wait(struct watch *watch, MPI_Request *request, const struct watch_group *group, const char *what,
                void (*idle)(void *context), void *context)
{
    wait_for(watch,
             &(struct wait){
                 .done = is_complete, .done_context = request, .idle = idle, .idle_context = context, .what = what},
             group);
}

void watch_until(struct watch *watch, bool (*done)(void *context), void *context, const struct watch_group *group,
                 const char *what)
{
    wait_for(watch, &(struct wait){.done = done, .done_context = context, .what = what}, group);
}
