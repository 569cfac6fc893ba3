#include "guard.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "abort.h"
#include "clock.h"
#include "error.h"
#include "launcher.h"

static const double LOOK_SECONDS = 0.25;    /* between two looks */
static const double MOST_SECONDS = 1;       /* that count from one to the next: this process may have been stopped */
static const double POLITENESS_SECONDS = 3; /* that others leave the first of their host to speak for all */

struct guard {
    pthread_t thread;
    double timeout;
    pid_t launcher; /* 0: none that starts several ranks */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* of what follows, up to the next gap */
    bool closed;
    const char *what; /* NULL: no call is under way */
    double limit;
    unsigned calls; /* so far */

    double last_look, seconds; /* of this call, the thread's own */
    bool first, was_second;    /* what this process was at the last look, and at any */
    pid_t stopped;             /* a rank that was stopped at the last look, 0: none */
    double stopped_seconds;    /* for how long, while this process was the first, or was not */
};

/* The state of a process as /proc tells it, 'T': stopped; 0 where it does not. */
static char state_of(pid_t process)
{
    char path[64], text[200] = "";
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)process);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end != NULL && name_end[1] == ' ' ? name_end[2] : 0;
}

/* The rank of a process, by the environment that it was started with; -1 if that has none, or cannot be read. */
static int rank_of(pid_t process)
{
    static const char *const names[] = LAUNCHER_RANKS;
    char path[64], *entry = NULL;
    size_t bytes = 0;
    int rank = -1;
    snprintf(path, sizeof path, "/proc/%ld/environ", (long)process);
    FILE *file = fopen(path, "re");
    while (file != NULL && rank < 0 && getdelim(&entry, &bytes, '\0', file) > 0)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            size_t length = strlen(names[i]);
            if (strncmp(entry, names[i], length) == 0 && entry[length] == '=')
                rank = atoi(entry + length + 1);
        }
    free(entry);
    if (file != NULL)
        fclose(file);
    return rank;
}

/* What there is to see of the other ranks of this host. */
struct sight {
    pid_t stopped; /* the lowest process id of those that are stopped, 0: none */
    int rank;      /* its rank */
    bool first;    /* this process is the lowest of the others */
};

static void look_at(pid_t process, struct sight *sight)
{
    char state = state_of(process);
    bool stopped = state == 'T' || state == 't', gone = state == 0 || state == 'Z' || state == 'X';
    bool counts = stopped ? sight->stopped == 0 || process < sight->stopped
                          : !gone && sight->first && process < getpid();
    int rank = counts ? rank_of(process) : -1;
    if (rank < 0) /* or another program that the launcher has started, as ssh */
        return;
    if (stopped) {
        sight->stopped = process;
        sight->rank = rank;
    } else {
        sight->first = false;
    }
}

/* All children of the launcher: a thread of it that starts some has a list of its own. */
static void look_around(const struct guard *guard, struct sight *sight)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/task", (long)guard->launcher);
    DIR *threads = guard->launcher == getppid() ? opendir(path) : NULL;
    for (struct dirent *thread; threads != NULL && (thread = readdir(threads)) != NULL;) {
        char list[400];
        snprintf(list, sizeof list, "%s/%s/children", path, thread->d_name);
        FILE *file = fopen(list, "re");
        for (long child; file != NULL && fscanf(file, "%ld", &child) == 1;)
            if (child != getpid())
                look_at((pid_t)child, sight);
        if (file != NULL)
            fclose(file);
    }
    if (threads != NULL)
        closedir(threads);
}

static void look(struct guard *guard)
{
    double time = clock_seconds(), passed = fmin(time - guard->last_look, MOST_SECONDS);
    struct sight sight = {.first = true};
    look_around(guard, &sight);
    bool still = sight.stopped != 0 && sight.stopped == guard->stopped && sight.first == guard->first;
    guard->last_look = time;
    guard->seconds += passed;
    guard->stopped_seconds = still ? guard->stopped_seconds + passed : 0;
    guard->stopped = sight.stopped;
    guard->first = sight.first;
    guard->was_second |= !sight.first;
    if (guard->stopped_seconds >= guard->timeout && sight.first) {
        char host[100] = "";
        gethostname(host, sizeof host - 1);
        fprintf(stderr,
                "dtrain: lost rank %d on host %s: it has been stopped for %g s (process %ld, %s); start again with "
                "--resume\n",
                sight.rank, host, guard->timeout, (long)sight.stopped, guard->what);
    } else if (guard->seconds >= guard->limit + (guard->was_second ? POLITENESS_SECONDS : 0)) {
        fprintf(stderr, "dtrain: %s has taken %g s: a rank is stuck or was not started as dtrain\n", guard->what,
                guard->limit);
    } else {
        return;
    }
    _exit(EXIT_PEER_LOST); /* MPI is not to be asked now: it serves the other thread */
}

static struct timespec next_look(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += (long)(1e9 * LOOK_SECONDS);
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static void *keep_watch(void *context)
{
    struct guard *guard = context;
    unsigned call = 0;
    pthread_mutex_lock(&guard->lock);
    while (!guard->closed) {
        struct timespec next = next_look();
        if (guard->what == NULL) {
            pthread_cond_wait(&guard->changed, &guard->lock);
        } else if (guard->calls != call) {
            call = guard->calls;
            guard->last_look = clock_seconds();
            guard->seconds = guard->stopped_seconds = 0;
            guard->stopped = 0;
            guard->was_second = false;
        } else if (pthread_cond_timedwait(&guard->changed, &guard->lock, &next) == ETIMEDOUT && guard->calls == call &&
                   guard->what != NULL) {
            look(guard);
        }
    }
    pthread_mutex_unlock(&guard->lock);
    return NULL;
}

struct guard *guard_open(double timeout_seconds)
{
    static struct guard the_guard; /* no memory is asked for before MPI can say which rank has none */
    struct guard *guard = &the_guard;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&guard->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&guard->lock, NULL);
    guard->timeout = timeout_seconds;
    guard->launcher = launcher_rank() != NULL ? getppid() : 0;
    int fault = pthread_create(&guard->thread, NULL, keep_watch, guard);
    if (fault != 0)
        abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "no thread can be started: %s (ulimit -u, or the limit of a container)",
                  strerror(fault));
    return guard;
}

static void change(struct guard *guard, const char *what, double limit_seconds, bool closed)
{
    pthread_mutex_lock(&guard->lock);
    guard->what = what;
    guard->limit = limit_seconds;
    guard->closed = closed;
    guard->calls++;
    pthread_cond_signal(&guard->changed);
    pthread_mutex_unlock(&guard->lock);
}

void guard_begin(struct guard *guard, const char *what, double limit_seconds)
{
    change(guard, what, limit_seconds, false);
}

void guard_end(struct guard *guard)
{
    change(guard, NULL, 0, false);
}

void guard_close(struct guard *guard)
{
    change(guard, NULL, 0, true);
    pthread_join(guard->thread, NULL);
    pthread_mutex_destroy(&guard->lock);
    pthread_cond_destroy(&guard->changed);
}
