#include "watch.h"

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "error.h"
#include "signals.h"

enum tag { TAG_ASK = 1, TAG_ANSWER };
enum { STILL_ROUNDS = 3 };
static const double LAST_WORDS_SECONDS = 0.3; /* after SIGTERM */

/* Both directions carry the asker's round, so that a late answer is told from a new one. */
struct word {
    int round;
    unsigned moves; /* in an answer: the answering rank's count */
};

struct watch {
    MPI_Comm mpi;
    int rank, size;
    double timeout_seconds;
    uint64_t step;
    int round;         /* of questions this rank has asked */
    unsigned moves;    /* waits ended and looks taken between work: grows while this rank gets on */
    double next_probe; /* time from which watch_answer looks for questions again */
    bool last_words_said;
};

struct watch *watch_open(MPI_Comm world, double timeout_seconds)
{
    struct watch *watch = calloc(1, sizeof *watch);
    MPI_CHECK(MPI_Comm_dup(world, &watch->mpi));
    MPI_CHECK(MPI_Comm_set_errhandler(watch->mpi, MPI_ERRORS_RETURN));
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

double watch_timeout(const struct watch *watch)
{
    return watch->timeout_seconds;
}

void watch_set_step(struct watch *watch, uint64_t step)
{
    watch->step = step;
}

/* Small enough to leave at once: the request need not be waited for. */
static void post(struct watch *watch, int to, enum tag tag, struct word word)
{
    MPI_CHECK(MPI_Send(&word, sizeof word, MPI_BYTE, to, tag, watch->mpi));
}

static bool take(struct watch *watch, enum tag tag, int *from, struct word *word)
{
    int there;
    MPI_Status status;
    MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, tag, watch->mpi, &there, &status));
    if (!there)
        return false;
    *from = status.MPI_SOURCE;
    MPI_CHECK(MPI_Recv(word, sizeof *word, MPI_BYTE, *from, tag, watch->mpi, MPI_STATUS_IGNORE));
    return true;
}

static void answer_all(struct watch *watch)
{
    int from;
    struct word word;
    while (take(watch, TAG_ASK, &from, &word)) {
        word.moves = watch->moves;
        post(watch, from, TAG_ANSWER, word);
    }
}

void watch_answer(struct watch *watch)
{
    double time = clock_seconds();
    if (watch->size == 1 || time < watch->next_probe)
        return;
    watch->next_probe = time + 0.05;
    watch->moves++;
    answer_all(watch);
}

/* Questions to a group, in rounds: who has answered, and whether anyone gets on. */
struct inquiry {
    double deadline; /* for the answers; 0 while nothing is asked */
    bool *answered;  /* by world rank */
    int missing;
    unsigned moves, moves_before; /* summed over the group, in this round and the last */
    int still_rounds;             /* rounds in a row in which no rank had moved */
};

static void ask(struct watch *watch, const struct watch_group *group, struct inquiry *inquiry)
{
    if (inquiry->answered == NULL)
        inquiry->answered = malloc((size_t)watch->size * sizeof *inquiry->answered);
    memset(inquiry->answered, 0, (size_t)watch->size * sizeof *inquiry->answered);
    inquiry->answered[watch->rank] = true;
    inquiry->missing = group->size - 1;
    inquiry->moves_before = inquiry->moves;
    inquiry->moves = 0;
    inquiry->deadline = clock_seconds() + watch->timeout_seconds / 2;
    watch->round++;
    for (int i = 0; i < group->size; i++)
        if (group->world_ranks[i] != watch->rank)
            post(watch, group->world_ranks[i], TAG_ASK, (struct word){.round = watch->round});
}

static void hear(struct watch *watch, struct inquiry *inquiry)
{
    int from;
    struct word word;
    while (take(watch, TAG_ANSWER, &from, &word)) {
        if (inquiry->deadline == 0 || word.round != watch->round || inquiry->answered[from])
            continue;
        inquiry->answered[from] = true;
        inquiry->missing--;
        inquiry->moves += word.moves;
    }
}

/* The lowest rank that still lives speaks; the others give it the time to end the job. */
static _Noreturn void report_lost(struct watch *watch, const struct watch_group *group,
                                  const struct inquiry *inquiry, const char *what)
{
    char lost[400] = "";
    size_t used = 0;
    int speaker = -1, count = 0;
    for (int i = 0; i < group->size; i++) {
        int rank = group->world_ranks[i];
        if (inquiry->answered[rank]) {
            if (speaker < 0)
                speaker = rank;
            continue;
        }
        if (used < sizeof lost - 100)
            used += (size_t)snprintf(lost + used, sizeof lost - used, "%srank %d on host %.60s",
                                     count ? ", " : "", rank, group->hosts[i]);
        count++;
    }
    double patience = clock_seconds() + (watch->rank == speaker ? 0 : 10 + 0.2 * watch->rank);
    while (clock_seconds() < patience) {
        answer_all(watch); /* the speaker may still be asking */
        usleep(10000);
    }
    watch_abort(watch->mpi, EXIT_PEER_LOST,
                "lost %d of %d ranks: %s did not answer for %g s while rank %d waited for %s of step %llu; "
                "start again with --resume",
                count, group->size, lost, watch->timeout_seconds, watch->rank, what, (unsigned long long)watch->step);
}

/* After the wait has been quiet for half a timeout, called now and then until it ends. */
static void inquire(struct watch *watch, const struct watch_group *group, struct inquiry *inquiry,
                    const char *what, double *quiet_until)
{
    double time = clock_seconds();
    hear(watch, inquiry);
    if (inquiry->deadline == 0) {
        if (time > *quiet_until)
            ask(watch, group, inquiry);
        return;
    }
    if (inquiry->missing == 0) { /* all alive: go on waiting */
        bool still = inquiry->moves == inquiry->moves_before;
        inquiry->still_rounds = still ? inquiry->still_rounds + 1 : 0;
        if (inquiry->still_rounds == STILL_ROUNDS)
            watch_abort(watch->mpi, EXIT_PEER_LOST,
                        "every rank answers but none gets on: %s of step %llu does not complete", what,
                        (unsigned long long)watch->step);
        inquiry->deadline = 0;
        *quiet_until = time + watch->timeout_seconds / 2;
    } else if (time > inquiry->deadline) {
        report_lost(watch, group, inquiry, what);
    }
}

/* Ranks 0 and 1 of the group and the first on another host: whatever rank or host is gone, one of them is there. They ask
 * nobody, as Open MPI ends a process that turns to a dead one it has no connection with. launch/run makes one line of
 * theirs and mpirun's. Nothing is ended here: if a rank is slow, and none dead, the run yet saves and stops. */
static void say_last_words(struct watch *watch, const struct watch_group *group, const char *what)
{
    int other = 0;
    while (other < group->size && strcmp(group->hosts[other], group->hosts[0]) == 0)
        other++;
    for (int i = 0; i < group->size; i++)
        if (group->world_ranks[i] == watch->rank && (i <= 1 || i == other))
            fprintf(stderr, "dtrain: rank %d on host %s was told to end by SIGTERM while it waited for %s of step %llu\n",
                    watch->rank, group->hosts[i], what, (unsigned long long)watch->step);
    watch->last_words_said = true;
}

/* Ranks often outnumber cores, so a waiting rank gives way: it spins for a moment, yields for about a
 * millisecond, then sleeps a little between looks. */
static void give_way(unsigned looks)
{
    if (looks > 2000)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    else if (looks > 50)
        sched_yield();
}

/* What a wait is for, and what is done meanwhile. */
struct wait {
    bool (*done)(void *context);
    void *done_context;
    void (*idle)(void *context); /* or NULL */
    void *idle_context;
    const char *what;
};

static void wait_for(struct watch *watch, const struct wait *wait, const struct watch_group *group)
{
    struct inquiry inquiry = {0};
    double quiet_until = 0, end = INFINITY;
    for (unsigned looks = 1; !wait->done(wait->done_context); looks++) {
        if (looks % 500 == 0) {
            if (quiet_until == 0)
                quiet_until = clock_seconds() + watch->timeout_seconds / 2;
            if (wait->idle != NULL)
                wait->idle(wait->idle_context);
            if (signals_terminated() && end == INFINITY)
                end = clock_seconds() + LAST_WORDS_SECONDS;
            if (clock_seconds() > end && !watch->last_words_said)
                say_last_words(watch, group, wait->what);
            answer_all(watch);
            inquire(watch, group, &inquiry, wait->what, &quiet_until);
        }
        give_way(looks);
    }
    watch->moves++;
    free(inquiry.answered);
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
    wait_for(watch, &(struct wait){is_complete, request, idle, context, what}, group);
}

void watch_until(struct watch *watch, bool (*done)(void *context), void *context,
                 const struct watch_group *group, const char *what)
{
    wait_for(watch, &(struct wait){.done = done, .done_context = context, .what = what}, group);
}

/* For the handler of SIGALRM, which has no other way to learn it. */
static struct {
    int code;
    char line[200]; /* "" when the reason has been said */
} last_words;

static void quit(int number)
{
    (void)number;
    if (write(STDERR_FILENO, last_words.line, strlen(last_words.line)) < 0)
        _exit(last_words.code); /* unheard */
    _exit(last_words.code);
}

static void quit_after(double seconds, int code, const char *line)
{
    last_words.code = code;
    snprintf(last_words.line, sizeof last_words.line, "%s", line);
    signal(SIGALRM, quit);
    alarm((unsigned)fmin(ceil(seconds), 1e9));
}

void watch_guard(const char *what, double seconds)
{
    char line[200] = "";
    if (what != NULL)
        snprintf(line, sizeof line, "dtrain: %s has taken %g s: a rank is stuck or was not started as dtrain\n", what,
                 seconds);
    quit_after(seconds, EXIT_PEER_LOST, line);
}

void watch_abort(MPI_Comm comm, int code, const char *format, ...)
{
    char text[1000]; /* printed by one call: mpirun would put its own lines between two */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "dtrain: %s\n", text);
    quit_after(5, code, ""); /* MPI_Abort itself can hang when a host has vanished */
    MPI_Abort(comm, code);
    _exit(code);
}

void watch_mpi_failed(int code, const char *call, const char *file, int line)
{
    char reason[MPI_MAX_ERROR_STRING] = "unknown error", host[MPI_MAX_PROCESSOR_NAME] = "?";
    int length, rank = -1;
    MPI_Error_string(code, reason, &length);
    MPI_Get_processor_name(host, &length);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    watch_abort(MPI_COMM_WORLD, EXIT_PEER_LOST, "rank %d on host %s: %s (%s:%d): %s", rank, host, call, file,
                line, reason);
}
