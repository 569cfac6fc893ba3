/* Ranks whose kernels sum together (kernels/fused/peers.cuh): each maps the memory of the others, by CUDA's IPC. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "abort.h"
#include "check.h"
#include "clock.h"
#include "device.h"
#include "fused.h"
#include "fused_engine.h"
#include "memory.h"

static const double MPIRUN_SECONDS = 15; /* it takes up to 10 s to see that a host is gone */

/* A mapping shows whole pages of the GPU, 2 MB each: nothing else lies in them. */
enum { COUNTERS = FUSED_NETS * FUSED_PEER_PITCH, GPU_PAGE = 2 << 20 };

static int64_t *sums_in(void *exported)
{
    return (int64_t *)((uint32_t *)exported + COUNTERS);
}

void fused_peers_export(struct fused_device *device, size_t nets)
{
    size_t bytes = COUNTERS * sizeof(uint32_t) + 3 * nets * FUSED_SUMS_PITCH * sizeof(int64_t);
    device->exported = fused_get((bytes + GPU_PAGE - 1) / GPU_PAGE * GPU_PAGE, "the sums of the gradient",
                                 device->stream);
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

static bool map_all(struct fused_device *device, struct comm *comm, struct error *error)
{
    int ranks = comm_size(comm), rank = comm_rank(comm);
    cudaIpcMemHandle_t mine = {0}, all[FUSED_PEERS];
    cudaError_t exported = cudaIpcGetMemHandle(&mine, device->exported);
    comm_gather(comm, &mine, sizeof mine, all);
    comm_broadcast(comm, all, (size_t)ranks * sizeof *all, 0);
    if (exported != cudaSuccess) {
        cudaGetLastError(); /* clears it */
        return error_set(error, EXIT_RUNTIME, "rank %d on host %s cannot share GPU memory (%s): give --comm nccl", rank,
                         comm_host_name(comm, rank), cudaGetErrorString(exported));
    }
    for (int r = 0; r < ranks; r++) {
        if (r == rank)
            continue;
        cudaError_t status = cudaIpcOpenMemHandle(&device->mapped[r], all[r], cudaIpcMemLazyEnablePeerAccess);
        if (status == cudaSuccess)
            continue;
        cudaGetLastError(); /* clears it */
        device->mapped[r] = NULL;
        return error_set(
            error, EXIT_RUNTIME,
            "rank %d on host %s cannot map GPU memory of rank %d (%s; is each in a container of its own?): "
            "give --comm nccl",
            rank, comm_host_name(comm, rank), r, cudaGetErrorString(status));
    }
    return true;
}

static void write_tables(struct fused_device *device, const struct comm *comm)
{
    struct fused_peers tables[FUSED_NETS] = {0};
    for (int net = 0; net < FUSED_NETS; net++) {
        tables[net].alive = &device->pinned->alive;
        for (int r = 0; r < comm_size(comm); r++) {
            void *exported = device->mapped[r] != NULL ? device->mapped[r] : device->exported;
            tables[net].sums[r] = sums_in(exported) + net * FUSED_SUMS_PITCH;
            tables[net].arrived[r] = (uint32_t *)exported + net * FUSED_PEER_PITCH;
        }
    }
    device->peers = fused_get(sizeof tables, "the places of the ranks' sums", device->stream);
    fused_copy(device, device->peers, tables, sizeof tables);
}

bool fused_peers_open(struct fused_device *device, struct comm *comm, struct error *error)
{
    device->pinned->alive = 1;
    CUDA_CHECK(cudaStreamSynchronize(device->stream)); /* what is exported is zero */
    map_all(device, comm, error);
    bool agreed = comm_agree(comm, error);
    if (agreed)
        write_tables(device, comm);
    else
        fused_peers_close(device, comm);
    return agreed;
}

void fused_peers_close(struct fused_device *device, struct comm *comm)
{
    for (int r = 0; r < FUSED_PEERS; r++)
        if (device->mapped[r] != NULL)
            CUDA_CHECK(cudaIpcCloseMemHandle(device->mapped[r]));
    CUDA_CHECK(cudaFree(device->peers));
    comm_barrier(comm);
}

/* --- trouble --------------------------------------------------------------------------------------------------- */

static bool has_passed(void *time)
{
    return clock_seconds() > *(const double *)time;
}

/* A rank that dies takes its memory along, which the others' kernels may note before mpirun does. mpirun, or the watch,
 * names it. */
void fused_peers_failed(struct fused_device *device, struct comm *comm)
{
    double end = clock_seconds() + MPIRUN_SECONDS;
    comm_wait(comm, has_passed, &end, "the gradient sum");
    if (device->pinned->trouble.waited == FUSED_FOR_RANKS)
        abort_job(MPI_COMM_WORLD, EXIT_PEER_LOST,
                  "rank %d on host %s: its GPU waited in vain for those of the other ranks, and nobody watched over "
                  "them; start again with --resume",
                  comm_rank(comm), comm_host_name(comm, comm_rank(comm)));
}
