#include "check.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <stdio.h>

#include "abort.h"
#include "error.h"

void gpu_failed(const char *library, const char *call, const char *file, int line, const char *reason)
{
    char host[MPI_MAX_PROCESSOR_NAME] = "?";
    int length, started = 0, rank = -1, device = -1;
    MPI_Initialized(&started);
    if (started) {
        MPI_Get_processor_name(host, &length);
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    }
    cudaGetDevice(&device);
    abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "rank %d on host %s, GPU %d: %s: %s (%s:%d): %s", rank, host,
                device, library, call, file, line, reason);
}
