#include "check.h"

#include <cuda_runtime_api.h>

#include "abort.h"
#include "error.h"

void gpu_failed(const char *library, const char *call, const char *file, int line, const char *reason)
{
    char who[WHO_BYTES];
    int device = -1;
    abort_who(who, sizeof who);
    cudaGetDevice(&device);
    abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "%s, GPU %d: %s: %s (%s:%d): %s", who, device, library, call, file, line,
              reason);
}
