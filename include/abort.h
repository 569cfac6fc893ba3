/* abort.h - the ending of a process that cannot go on: one line, and the whole job with it. */
#ifndef DTRAIN_ABORT_H
#define DTRAIN_ABORT_H

#include <mpi.h>
#include <stddef.h>

/* Prints one line and ends the whole job with `code`, within seconds even if MPI no longer answers. On any thread. */
_Noreturn void abort_job(MPI_Comm comm, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Who speaks, for such a line: "rank 1 on host node2", or "this process" where MPI does not run. */
enum { WHO_BYTES = 300 };
void abort_who(char *text, size_t bytes);

/* The check macro of MPI: broken machinery ends the job. */
#define MPI_CHECK(call)                                                                                                \
    do {                                                                                                               \
        int code_ = (call);                                                                                            \
        if (code_ != MPI_SUCCESS)                                                                                      \
            abort_mpi_failed(code_, #call, __FILE__, __LINE__);                                                        \
    } while (0)
_Noreturn void abort_mpi_failed(int code, const char *call, const char *file, int line);

#endif
