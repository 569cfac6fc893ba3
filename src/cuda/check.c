#include "check.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

#include "error.h"

void gpu_who(int device, char *text, size_t bytes)
{
    char who[WHO_BYTES], bus[24];
    abort_who(who, sizeof who);
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) == cudaSuccess)
        snprintf(text, bytes, "%s, GPU %d (%s)", who, device, bus);
    else
        snprintf(text, bytes, "%s, GPU %d", who, device);
}

void gpu_failed(const char *library, const char *call, const char *file, int line, const char *reason)
{
    char who[GPU_WHO_BYTES];
    int device = -1;
    cudaGetDevice(&device);
    gpu_who(device, who, sizeof who);
    abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "%s: %s: %s (%s:%d): %s", who, library, call, file, line, reason);
}
