#include "abort.h"

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "error.h"

static int exit_code; /* for the handler of SIGALRM, which takes no argument */

static void quit(int number)
{
    (void)number;
    _exit(exit_code);
}

static void quit_after(unsigned seconds, int code)
{
    exit_code = code;
    signal(SIGALRM, quit);
    alarm(seconds);
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
    quit_after(5, code); /* nobody may read standard error, and MPI_Abort can hang when a host has vanished */
    fprintf(stderr, "dtrain: %s\n", text);
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
