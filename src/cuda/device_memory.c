#include "device_memory.h"

#include <cuda_runtime_api.h>

#include "check.h"
#include "error.h"

/* CUDA also tells here of what failed before, which is not about memory. */
static void check(cudaError_t status, const char *where, size_t bytes, const char *purpose)
{
    char who[GPU_WHO_BYTES];
    int device = -1;
    if (status != cudaErrorMemoryAllocation) {
        CUDA_CHECK(status);
        return;
    }
    cudaGetDevice(&device);
    gpu_who(device, who, sizeof who);
    abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "%s: out of %s: %zu bytes for %s", who, where, bytes, purpose);
}

void *device_allocate(size_t bytes, const char *purpose)
{
    void *memory = NULL;
    check(cudaMalloc(&memory, bytes), "memory", bytes, purpose);
    return memory;
}

void *device_allocate_pinned(size_t bytes, const char *purpose)
{
    void *memory = NULL;
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "memory to pin", bytes, purpose);
    return memory;
}
