/* Ranks whose kernels sum together (kernels/fused/peers.cuh): each maps the memory of the others, by CUDA's IPC. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort.h"
#include "check.h"
#include "device.h"
#include "device_memory.h"
#include "fused.h"
#include "fused_private.h"
#include "memory.h"

/* A day, 10 s a look: longer than a job is stopped that is to go on, as a process that is gone takes its kernel along.
 * Not so where processes share a GPU by MPS: there it stays, in the way of the next job. Then a minute. */
enum { PATIENCE = 8640, PATIENCE_OF_MPS = 6 };

enum { MPS_ENABLED = 133 }; /* cudaDevAttrMpsEnabled: headers before CUDA 13 lack it, and older drivers know it not */

/* A mapping shows whole pages of the GPU, 2 MB each: nothing else lies in them. */
enum { COUNTERS = FUSED_NETS * FUSED_PEER_PITCH, GPU_PAGE = 2 << 20 };

static int64_t *sums_in(void *exported)
{
    return (int64_t *)((uint32_t *)exported + COUNTERS);
}

void fused_peers_export(struct fused_device *device, size_t nets)
{
    size_t bytes = COUNTERS * sizeof(uint32_t) + 3 * nets * FUSED_SUMS_PITCH * sizeof(int64_t);
    device->exported = queue_allocate(&device->queue, (bytes + GPU_PAGE - 1) / GPU_PAGE * GPU_PAGE,
                                      "the sums of the gradient");
    device->sums = sums_in(device->exported);
}

bool fused_peers_reach(const struct device *all, int count, int rank, char *why, size_t why_bytes)
{
    if (count <= FUSED_PEERS)
        return device_reaches(all, count, rank, why, why_bytes);
    snprintf(why, why_bytes, "kernels sum over %d ranks at most, not %d", FUSED_PEERS, count);
    return false;
}

/* --- opening, closing ------------------------------------------------------------------------------------------ */

static bool is_on_this_host(const struct comm *comm, int rank)
{
    return strcmp(comm_host_name(comm, rank), comm_host_name(comm, comm_rank(comm))) == 0;
}

/* Collective: mapped[r] becomes what rank r of this host calls `exported`; NULL where it could not be, for this rank
 * and those of other hosts. One verdict on all ranks; unmap comes after it either way. */
static bool map(struct comm *comm, void *exported, void **mapped, struct error *error)
{
    int ranks = comm_size(comm), rank = comm_rank(comm);
    cudaIpcMemHandle_t mine = {0}, *all = memory_allocate((size_t)ranks, sizeof *all, "where GPU memory lies");
    cudaError_t status = cudaIpcGetMemHandle(&mine, exported);
    comm_gather(comm, &mine, sizeof mine, all);
    comm_broadcast(comm, all, (size_t)ranks * sizeof *all, 0);
    if (status != cudaSuccess)
        error_set(error, EXIT_RUNTIME, "rank %d cannot share GPU memory (%s)", comm_world_rank(comm, rank),
                  cudaGetErrorString(status));
    for (int r = 0; r < ranks && status == cudaSuccess; r++) {
        if (r == rank || !is_on_this_host(comm, r))
            continue;
        status = cudaIpcOpenMemHandle(&mapped[r], all[r], cudaIpcMemLazyEnablePeerAccess);
        if (status == cudaSuccess)
            continue;
        mapped[r] = NULL;
        error_set(error, EXIT_RUNTIME,
                  "rank %d cannot map GPU memory of rank %d (%s; is each in a container of its own?)",
                  comm_world_rank(comm, rank), comm_world_rank(comm, r), cudaGetErrorString(status));
    }
    cudaGetLastError(); /* clears it */
    free(all);
    return comm_agree(comm, error);
}

/* Collective: before any rank frees what it has exported. */
static void unmap(struct comm *comm, void *const *mapped)
{
    for (int r = 0; r < comm_size(comm); r++)
        if (mapped[r] != NULL)
            CUDA_CHECK(cudaIpcCloseMemHandle(mapped[r]));
    comm_barrier(comm);
}

bool fused_peers_can_map(struct comm *comm, struct error *error)
{
    void **mapped = memory_allocate((size_t)comm_size(comm), sizeof *mapped, "the memory of other ranks");
    device_use(comm_local_rank(comm));
    void *page = device_allocate(GPU_PAGE, "a page that other ranks map");
    bool agreed = map(comm, page, mapped, error);
    unmap(comm, mapped);
    free(mapped);
    CUDA_CHECK(cudaFree(page));
    return agreed;
}

static bool is_of_mps(void)
{
    int device, shared = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    if (cudaDeviceGetAttribute(&shared, (enum cudaDeviceAttr)MPS_ENABLED, device) != cudaSuccess)
        cudaGetLastError(); /* clears it */
    return shared != 0;
}

static void write_tables(struct fused_device *device)
{
    uint32_t patience = is_of_mps() ? PATIENCE_OF_MPS : PATIENCE;
    struct fused_peers tables[FUSED_NETS] = {0};
    for (int net = 0; net < FUSED_NETS; net++) {
        tables[net].alive = &device->queue.words->looks;
        tables[net].patience = patience;
        for (int r = 0; r < comm_size(device->queue.comm); r++) {
            void *exported = device->mapped[r] != NULL ? device->mapped[r] : device->exported;
            tables[net].sums[r] = sums_in(exported) + net * FUSED_SUMS_PITCH;
            tables[net].arrived[r] = (uint32_t *)exported + net * FUSED_PEER_PITCH;
        }
    }
    device->peers = queue_allocate(&device->queue, sizeof tables, "where the ranks' sums lie");
    queue_copy(&device->queue, device->peers, tables, sizeof tables);
}

bool fused_peers_open(struct fused_device *device, struct error *error)
{
    CUDA_CHECK(cudaStreamSynchronize(device->queue.stream)); /* what is exported is zero */
    bool agreed = map(device->queue.comm, device->exported, device->mapped, error);
    if (agreed)
        write_tables(device);
    else
        fused_peers_close(device);
    return agreed;
}

void fused_peers_close(struct fused_device *device)
{
    CUDA_CHECK(cudaFree(device->peers));
    unmap(device->queue.comm, device->mapped);
}

/* --- trouble --------------------------------------------------------------------------------------------------- */

/* A rank that dies takes its memory along, which the others' kernels may note before mpirun does. */
void fused_peers_failed(struct fused_device *device)
{
    struct comm *comm = device->queue.comm;
    comm_wait_for_end(comm, "the gradient sum");
    if (device->pinned->trouble.waited == FUSED_FOR_RANKS)
        abort_job(MPI_COMM_WORLD, EXIT_PEER_LOST,
                  "rank %d on host %s: its GPU waited in vain for those of the other ranks, and nobody watched over "
                  "them; start again with --resume, and if it happens again with --comm nccl",
                  comm_world_rank(comm, comm_rank(comm)), comm_host_name(comm, comm_rank(comm)));
}
