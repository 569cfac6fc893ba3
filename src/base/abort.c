#include "abort.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

/* For the handler of SIGALRM, which takes no argument. */
static struct {
    int code;
    char line[200]; /* "" when the reason has been printed */
} farewell;

static void quit(int number)
{
    (void)number;
    if (write(STDERR_FILENO, farewell.line, strlen(farewell.line)) < 0)
        _exit(farewell.code); /* nothing more can be done about it */
    _exit(farewell.code);
}

static void quit_after(double seconds, int code, const char *line)
{
    farewell.code = code;
    snprintf(farewell.line, sizeof farewell.line, "%s", line);
    signal(SIGALRM, quit);
    alarm((unsigned)fmin(ceil(seconds), 1e9));
}

void abort_after(const char *what, double seconds)
{
    char line[200] = "";
    if (what != NULL)
        snprintf(line, sizeof line, "dtrain: %s has taken %g s: a rank is stuck or was not started as dtrain\n", what,
                 seconds);
    quit_after(seconds, EXIT_PEER_LOST, line);
}

static bool mpi_runs(void)
{
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

void abort_job(MPI_Comm comm, int code, const char *format, ...)
{
    char text[1000]; /* printed by one call: mpirun would put its own lines between two */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "dtrain: %s\n", text);
    quit_after(5, code, ""); /* MPI_Abort itself can hang when a host has vanished */
    if (mpi_runs())
        MPI_Abort(comm, code);
    _exit(code);
}

void abort_who(char *text, size_t bytes)
{
    char host[MPI_MAX_PROCESSOR_NAME] = "?";
    int length, rank = -1;
    if (!mpi_runs()) {
        snprintf(text, bytes, "this process");
        return;
    }
    MPI_Get_processor_name(host, &length);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(text, bytes, "rank %d on host %s", rank, host);
}

void abort_mpi_failed(int code, const char *call, const char *file, int line)
{
    char reason[MPI_MAX_ERROR_STRING] = "unknown error", who[WHO_BYTES];
    int length;
    MPI_Error_string(code, reason, &length);
    abort_who(who, sizeof who);
    abort_job(MPI_COMM_WORLD, EXIT_PEER_LOST, "%s: %s (%s:%d): %s", who, call, file, line, reason);
}
