#include "signals.h"

#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Global state, here and below: a signal handler has no other way to be heard. */
static volatile sig_atomic_t stop, received;
static struct timespec first;

static void handle(int number)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    if (received == 0) {
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
} handled[] = {
    {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGHUP, "SIGHUP"}, {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"}};
enum { HANDLED = sizeof handled / sizeof *handled };

void signals_install(void)
{
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < HANDLED; i++)
        sigaddset(&action.sa_mask, handled[i].number);
    struct sigaction before;
    for (int i = 0; i < HANDLED; i++)
        if (handled[i].number != SIGHUP || sigaction(SIGHUP, NULL, &before) != 0 || before.sa_handler != SIG_IGN)
            sigaction(handled[i].number, &action, NULL); /* nohup ignores SIGHUP, and means it */

    signal(SIGXFSZ, SIG_IGN); /* a file over the limit is an error of its write */

    if (sigaction(SIGCHLD, NULL, &before) == 0 && before.sa_handler == SIG_IGN)
        signal(SIGCHLD, SIG_DFL); /* else nobody would be told how the scripts that dtrain starts end */
}

static struct {
    const char *line;
    int code;
} bus_error;

static void end_by_bus_error(int number)
{
    (void)number;
    if (write(STDERR_FILENO, bus_error.line, strlen(bus_error.line)) < 0)
        _exit(bus_error.code); /* the same: compilers want what write returns to be looked at */
    _exit(bus_error.code);
}

void signals_explain_bus_error(const char *line, int code)
{
    bus_error.line = line;
    bus_error.code = code;
    signal(SIGBUS, end_by_bus_error);
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
