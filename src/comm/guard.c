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

/* Between two looks, but at most an eighth of the timeout. Of a longer gap twice as much counts. */
static const double LOOK_SECONDS = 1;
/* How much longer the other ranks of a host wait, so that its first rank speaks for all. */
static const double POLITENESS_SECONDS = 3;

enum { MOST_CHILDREN = 8192 };

struct guard {
    pthread_t thread;
    double timeout;
    pid_t launcher; /* 0: none that starts several ranks */
    char job[200];  /* the job's entry in this process's environment, which other jobs' lack; "": there is none */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* signalled when what follows, up to the next gap, changes */
    bool closed;
    const char *what; /* NULL: no call is under way */
    double limit;
    unsigned calls; /* so far */

    unsigned call;             /* which the thread counts; this and what follows is the thread's own */
    double last_look, seconds; /* of this call */
    bool first, was_second;    /* first: as in struct sight, at the last look; was_second: not first at some look */
    pid_t stopped;             /* who was stopped at the last look, 0: none */
    double stopped_seconds;    /* for how long that has been seen, as long as `first` stayed the same */
    pid_t children[MOST_CHILDREN];
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

static bool is_stopped(pid_t process)
{
    char state = state_of(process);
    return state == 'T' || state == 't';
}

static bool is_running(pid_t process)
{
    char state = state_of(process);
    return state != 0 && strchr("TtZX", state) == NULL;
}

/* The rank of a process, by the environment that it was started with; -1 if it is not of this job, or its environment
 * cannot be read. */
static int rank_of(const struct guard *guard, pid_t process)
{
    static const char *const names[] = LAUNCHER_RANKS;
    enum { NAMES = sizeof names / sizeof *names };
    char path[64], *entry = NULL;
    size_t bytes = 0, best = NAMES;
    bool ours = guard->job[0] == '\0';
    int rank = -1;
    snprintf(path, sizeof path, "/proc/%ld/environ", (long)process);
    FILE *file = fopen(path, "re");
    while (file != NULL && getdelim(&entry, &bytes, '\0', file) > 0) {
        ours |= strcmp(entry, guard->job) == 0;
        for (size_t i = 0; i < best; i++) {
            size_t length = strlen(names[i]);
            if (strncmp(entry, names[i], length) == 0 && entry[length] == '=') {
                rank = atoi(entry + length + 1);
                best = i;
            }
        }
    }
    free(entry);
    if (file != NULL)
        fclose(file);
    return ours ? rank : -1;
}

static int compare_processes(const void *a, const void *b)
{
    return (*(const pid_t *)a > *(const pid_t *)b) - (*(const pid_t *)a < *(const pid_t *)b);
}

/* The launcher's other children on this host, by process id. Each thread of the launcher has a list of those that it
 * started. */
static size_t list_children(struct guard *guard)
{
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof path, "/proc/%ld/task", (long)guard->launcher);
    DIR *threads = guard->launcher == getppid() ? opendir(path) : NULL;
    for (struct dirent *thread; threads != NULL && (thread = readdir(threads)) != NULL;) {
        char list[400];
        snprintf(list, sizeof list, "%s/%s/children", path, thread->d_name);
        FILE *file = fopen(list, "re");
        for (long child; file != NULL && count < MOST_CHILDREN && fscanf(file, "%ld", &child) == 1;)
            if (child != getpid())
                guard->children[count++] = (pid_t)child;
        if (file != NULL)
            fclose(file);
    }
    if (threads != NULL)
        closedir(threads);
    qsort(guard->children, count, sizeof *guard->children, compare_processes);
    return count;
}

/* What there is to see of the others on this host. */
struct sight {
    pid_t stopped; /* the launcher, or the lowest process id of the ranks that are stopped, 0: none */
    int rank;      /* its rank, -1: the launcher */
    bool first;    /* no running rank of this host has a lower process id than this one */
};

/* Only the first running rank looks at all others. The rest look at those before them, where the first one runs as a
 * rule. */
static struct sight look_around(struct guard *guard)
{
    size_t count = list_children(guard);
    for (size_t i = 0; i < count && guard->children[i] < getpid(); i++)
        if (is_running(guard->children[i]) && rank_of(guard, guard->children[i]) >= 0)
            return (struct sight){.first = false};
    if (guard->launcher == getppid() && is_stopped(guard->launcher))
        return (struct sight){.stopped = guard->launcher, .rank = -1, .first = true};
    for (size_t i = 0; i < count; i++) {
        int rank = is_stopped(guard->children[i]) ? rank_of(guard, guard->children[i]) : -1;
        if (rank >= 0) /* not another program that the launcher has started, such as ssh */
            return (struct sight){.stopped = guard->children[i], .rank = rank, .first = true};
    }
    return (struct sight){.first = true};
}

static double look_seconds(const struct guard *guard)
{
    return fmin(LOOK_SECONDS, guard->timeout / 8);
}

/* Counts the time since the last look, in which this process may have been stopped itself: two looks' worth at most. */
static void count_time(struct guard *guard, const struct sight *sight)
{
    double time = clock_seconds(), passed = fmin(time - guard->last_look, 2 * look_seconds(guard));
    bool still = sight->stopped != 0 && sight->stopped == guard->stopped && sight->first == guard->first;
    guard->last_look = time;
    guard->seconds += passed;
    guard->stopped_seconds = still ? guard->stopped_seconds + passed : 0;
    guard->stopped = sight->stopped;
    guard->first = sight->first;
    guard->was_second |= !sight->first;
}

static void tell_stopped(const struct guard *guard, const struct sight *sight)
{
    char host[100] = "", who[80];
    gethostname(host, sizeof host - 1);
    snprintf(who, sizeof who, "rank %d", sight->rank);
    if (sight->rank < 0)
        snprintf(who, sizeof who, "the process of %s", launcher_name());
    fprintf(stderr,
            "dtrain: lost %s on host %s: it has been stopped for %g s (process %ld, %s); start again with --resume\n",
            who, host, guard->timeout, (long)sight->stopped, guard->what);
}

/* Called with the lock, which it gives back while it reads /proc, as guard_end must not wait for that. */
static void look(struct guard *guard)
{
    pthread_mutex_unlock(&guard->lock);
    struct sight sight = look_around(guard);
    pthread_mutex_lock(&guard->lock);
    if (guard->calls != guard->call)
        return;
    count_time(guard, &sight);
    if (guard->stopped_seconds >= guard->timeout)
        tell_stopped(guard, &sight);
    else if (guard->seconds >= guard->limit + (guard->was_second ? POLITENESS_SECONDS : 0))
        fprintf(stderr, "dtrain: %s has taken %g s: a rank is stuck or was not started as dtrain\n", guard->what,
                guard->limit);
    else
        return;
    _exit(EXIT_PEER_LOST); /* MPI is not to be asked now: it serves the other thread */
}

static void *keep_watch(void *context)
{
    struct guard *guard = context;
    pthread_mutex_lock(&guard->lock);
    while (!guard->closed) {
        struct timespec next = clock_after(look_seconds(guard));
        if (guard->what == NULL) {
            pthread_cond_wait(&guard->changed, &guard->lock);
        } else if (guard->calls != guard->call) {
            guard->call = guard->calls;
            guard->last_look = clock_seconds();
            guard->seconds = guard->stopped_seconds = 0;
            guard->stopped = 0;
            guard->was_second = false;
        } else if (pthread_cond_timedwait(&guard->changed, &guard->lock, &next) == ETIMEDOUT) {
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
    const char *job = getenv("PMIX_NAMESPACE"); /* PRRTE's daemon may have the ranks of several jobs as its children */
    if (job != NULL && strlen(job) < sizeof guard->job - 20)
        snprintf(guard->job, sizeof guard->job, "PMIX_NAMESPACE=%s", job);
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
