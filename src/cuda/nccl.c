#include "nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdlib.h>

#include "check.h"
#include "device.h"
#include "device_memory.h"
#include "lenet5.h"
#include "memory.h"
#include "nccl_log.h"

static const char START[] = "the start of NCCL", SUM[] = "the gradient sum";

/* A comm's state. */
struct sums {
    ncclComm_t nccl; /* which NCCL's threads may write, too */
    bool has_begun;  /* a first sum is done */
};

/* --- waits that end ---------------------------------------------------------------------------------- */

/* A communicator that does not block answers "in progress"; its state then says how that ended. */
struct settling {
    ncclComm_t nccl;
    ncclResult_t state;
};

static bool has_settled(void *context)
{
    struct settling *settling = context;
    NCCL_CHECK(ncclCommGetAsyncError(settling->nccl, &settling->state));
    return settling->state != ncclInProgress;
}

static const char *advise(bool has_begun, bool lost, ncclResult_t result)
{
    if (has_begun)
        return lost ? "; start again with --resume" : "";
    if (result == ncclUnhandledCudaError)
        return "; let every rank see all GPUs of its host (SLURM: --gpus-per-node with --gpu-bind=none), or give "
               "--comm mpi";
    return "; it needs room in /dev/shm, memory to lock (ulimit -l), a network between the hosts "
           "(NCCL_SOCKET_IFNAME): or give --comm mpi";
}

/* Another rank's end shows as an error of the system or of the remote; which rank it was, NCCL cannot tell. mpirun can:
 * it soon ends this rank too, and launch/run names the lost one. NCCL's words are for where nobody does; until a first
 * sum is done the same errors are those of a machine on which NCCL cannot start. ncclCommAbort would wait for kernels
 * that wait for that rank: the end of the process ends them too. */
static _Noreturn void fail(struct comm *comm, ncclResult_t result, const char *what)
{
    const struct sums *sums = comm->state;
    bool tells_of_end = result == ncclRemoteError || result == ncclSystemError, lost = tells_of_end && sums->has_begun;
    if (tells_of_end)
        comm_wait_for_end(comm, what);
    abort_job(comm->mpi, lost ? EXIT_PEER_LOST : EXIT_RUNTIME, "rank %d on host %s: NCCL: %s: %s: %.400s%s",
              comm_world_rank(comm, comm->rank), comm_host_name(comm, comm->rank), what, ncclGetErrorString(result),
              ncclGetLastError(sums->nccl), advise(sums->has_begun, lost, result));
}

static void settle(struct comm *comm, ncclResult_t result, const char *what)
{
    struct settling settling = {nccl_communicator(comm), result};
    if (result == ncclInProgress)
        watch_until(comm->watch, has_settled, &settling, &comm->group, what);
    if (settling.state != ncclSuccess)
        fail(comm, settling.state, what);
}

static void look_for_errors(struct comm *comm, const char *what)
{
    ncclResult_t state;
    NCCL_CHECK(ncclCommGetAsyncError(nccl_communicator(comm), &state));
    if (state != ncclSuccess && state != ncclInProgress)
        fail(comm, state, what);
}

struct ncclComm *nccl_communicator(const struct comm *comm)
{
    return ((const struct sums *)comm->state)->nccl;
}

/* --- the transport ------------------------------------------------------------------------------------- */

static void sum(struct comm *comm, int64_t *buffer, size_t count, cudaStream_t stream, const char *what)
{
    settle(comm, ncclAllReduce(buffer, buffer, count, ncclInt64, ncclSum, nccl_communicator(comm), stream), what);
}

struct first_sum {
    struct comm *comm;
    cudaEvent_t mark;
    cudaError_t status;
};

static bool first_is_done(void *context)
{
    struct first_sum *first = context;
    look_for_errors(first->comm, START);
    first->status = cudaEventQuery(first->mark);
    if (first->status == cudaErrorNotReady)
        cudaGetLastError(); /* clears it */
    return first->status != cudaErrorNotReady;
}

/* NCCL connects the ranks at their first sum, by ways that depend on its length. What it lacks for that shows here. */
static void sum_first(struct comm *comm)
{
    struct first_sum first = {.comm = comm};
    cudaStream_t stream;
    int64_t *terms = device_allocate(LENET5_WEIGHTS * sizeof *terms, "a first sum by NCCL");
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&first.mark, cudaEventDisableTiming));
    CUDA_CHECK(cudaMemsetAsync(terms, 0, LENET5_WEIGHTS * sizeof *terms, stream));
    sum(comm, terms, LENET5_WEIGHTS, stream, START);
    CUDA_CHECK(cudaEventRecord(first.mark, stream));
    watch_until(comm->watch, first_is_done, &first, &comm->group, START);
    if (first.status != cudaSuccess)
        gpu_failed("CUDA", "a first sum by NCCL", __FILE__, __LINE__, cudaGetErrorString(first.status));
    CUDA_CHECK(cudaEventDestroy(first.mark));
    CUDA_CHECK(cudaStreamDestroy(stream));
    CUDA_CHECK(cudaFree(terms));
}

static bool open_nccl(struct comm *comm, struct error *error)
{
    (void)error; /* what can go wrong here is broken machinery */
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t result = ncclSuccess;
    struct sums *sums = comm->state = memory_allocate(1, sizeof *sums, "the state of NCCL");
    config.blocking = 0;
    device_use(comm->local_rank);
    if (comm->rank == 0)
        result = ncclGetUniqueId(&id);
    if (result != ncclSuccess)
        fail(comm, result, START);
    comm_broadcast(comm, &id, sizeof id, 0);
    comm_barrier(comm);
    result = ncclCommInitRankConfig(&sums->nccl, comm->size, id, comm->rank, &config);
    settle(comm, result, START);
    sum_first(comm);
    sums->has_begun = true;
    return true;
}

static void close_nccl(struct comm *comm)
{
    ncclComm_t nccl = nccl_communicator(comm);
    settle(comm, ncclCommFinalize(nccl), "the end of NCCL");
    ncclCommDestroy(nccl); /* local from here on */
    free(comm->state);
}

static void sum_on_device(struct comm *comm, int64_t *buffer, size_t count, void *stream)
{
    sum(comm, buffer, count, stream, SUM);
}

static void poll(struct comm *comm)
{
    look_for_errors(comm, SUM);
}

static void ways(const struct comm *comm, char *text, size_t bytes)
{
    (void)comm; /* a process has one */
    nccl_log_summarise(text, bytes);
}

const struct transport transport_nccl = {
    .name = "nccl",
    .open = open_nccl,
    .close = close_nccl,
    .sum_on_device = sum_on_device,
    .poll = poll,
    .ways = ways,
};
