#include "signals.h"

#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

/* Global state, here and below: a signal handler has no other way to be heard. */
static volatile sig_atomic_t stop, received;
static struct timespec first;

static void handle(int number)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    if (number == SIGPIPE) { /* comes with every line that is printed: neither a first signal nor a second */
        received = received == 0 ? number : received;
        stop = 1;
    } else if (received == 0 || received == SIGPIPE) {
        first = time;
        received = number;
        stop = 1;
    } else if ((double)(time.tv_sec - first.tv_sec) + 1e-9 * (double)(time.tv_nsec - first.tv_nsec) > 0.5) {
        _exit(128 + number);
    }
}

static const struct {
    int number;
    const char *name;
} handled[] = {{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"},   {SIGHUP, "SIGHUP"},
               {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"}, {SIGPIPE, "SIGPIPE"}};
enum { HANDLED = sizeof handled / sizeof *handled };

void signals_install(void)
{
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < HANDLED; i++)
        sigaddset(&action.sa_mask, handled[i].number);
    struct sigaction before;
    for (int i = 0; i < HANDLED; i++) {
        int number = handled[i].number;
        bool is_ignored = sigaction(number, NULL, &before) == 0 && before.sa_handler == SIG_IGN;
        if (!is_ignored || (number != SIGHUP && number != SIGPIPE)) /* nohup ignores SIGHUP, and means it */
            sigaction(number, &action, NULL);
    }

    sigset_t none; /* a starter may have left some blocked */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);

    signal(SIGXFSZ, SIG_IGN); /* a file over the limit is an error of its write */

    if (sigaction(SIGCHLD, NULL, &before) == 0 && before.sa_handler == SIG_IGN)
        signal(SIGCHLD, SIG_DFL); /* else nobody would be told how the scripts that dtrain starts end */
}

static struct {
    const char *(*explain)(const void *context, const void *address);
    const void *context;
    int code;
} bus_error;

/* A file that was cut short, or a disk that fails, is BUS_ADRERR, and so is shared memory that there is no room for;
 * memory may be broken, too, or somebody has sent the signal. */
static void end_by_bus_error(int number, siginfo_t *info, void *context)
{
    static const char broken[] = "dtrain: memory of this host is broken, as the kernel's log tells: use another host\n";
    (void)context;
    bool is_broken = info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO;
    const char *line = is_broken ? broken : NULL;
    if (info->si_code == BUS_ADRERR)
        line = bus_error.explain(bus_error.context, info->si_addr);
    if (line != NULL) {
        ssize_t written = write(STDERR_FILENO, line, strlen(line));
        (void)written;
        _exit(is_broken ? EXIT_RUNTIME : bus_error.code);
    }
    signal(number, SIG_DFL);
    raise(number);
}

void signals_explain_bus_error(const char *(*explain)(const void *context, const void *address), const void *context,
                               int code)
{
    bus_error.explain = explain;
    bus_error.context = context;
    bus_error.code = code;
    sigaction(SIGBUS, &(struct sigaction){.sa_sigaction = end_by_bus_error, .sa_flags = SA_SIGINFO}, NULL);
}

const volatile sig_atomic_t *signals_stop_flag(void)
{
    return &stop;
}

bool signals_terminated(void)
{
    return received == SIGTERM;
}

void signals_request_stop(void)
{
    stop = 1;
}

const char *signals_name(void)
{
    for (int i = 0; i < HANDLED; i++)
        if (handled[i].number == received)
            return handled[i].name;
    return NULL;
}
