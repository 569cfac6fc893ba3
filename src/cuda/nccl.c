#include "nccl.h"

#include <nccl.h>

#include "check.h"
#include "device.h"
#include "nccl_log.h"

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

/* Another rank's end shows as an error of the system or of the remote; which rank it was, NCCL cannot tell. mpirun can:
 * it soon ends this rank too, and launch/run names the lost one. NCCL's words are for where nobody does. ncclCommAbort
 * would wait for kernels that wait for that rank: the end of the process ends them too. */
static _Noreturn void fail(struct comm *comm, ncclComm_t nccl, ncclResult_t result, const char *what)
{
    bool lost = result == ncclRemoteError || result == ncclSystemError;
    if (lost)
        comm_wait_for_end(comm, what);
    abort_job(comm->mpi, lost ? EXIT_PEER_LOST : EXIT_RUNTIME, "rank %d on host %s: NCCL: %s: %s: %s%s", comm->rank,
              comm_host_name(comm, comm->rank), what, ncclGetErrorString(result), ncclGetLastError(nccl),
              lost ? "; start again with --resume" : "");
}

static void settle(struct comm *comm, ncclComm_t nccl, ncclResult_t result, const char *what)
{
    struct settling settling = {nccl, result};
    if (result == ncclInProgress)
        watch_until(comm->watch, has_settled, &settling, &comm->group, what);
    if (settling.state != ncclSuccess)
        fail(comm, nccl, settling.state, what);
}

struct ncclComm *nccl_communicator(const struct comm *comm)
{
    return comm->state;
}

/* --- the transport ------------------------------------------------------------------------------------- */

static bool open_nccl(struct comm *comm, struct error *error)
{
    (void)error; /* what can go wrong here is broken machinery */
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t *nccl = (ncclComm_t *)&comm->state; /* which NCCL's threads may write, too */
    config.blocking = 0;
    device_use(comm->local_rank);
    if (comm->rank == 0)
        NCCL_CHECK(ncclGetUniqueId(&id));
    comm_broadcast(comm, &id, sizeof id, 0);
    comm_barrier(comm);
    ncclResult_t result = ncclCommInitRankConfig(nccl, comm->size, id, comm->rank, &config);
    settle(comm, *nccl, result, "the start of NCCL");
    return true;
}

static void close_nccl(struct comm *comm)
{
    ncclComm_t nccl = nccl_communicator(comm);
    settle(comm, nccl, ncclCommFinalize(nccl), "the end of NCCL");
    ncclCommDestroy(nccl); /* local from here on */
}

static void sum_on_device(struct comm *comm, int64_t *buffer, size_t count, void *stream)
{
    ncclComm_t nccl = nccl_communicator(comm);
    settle(comm, nccl, ncclAllReduce(buffer, buffer, count, ncclInt64, ncclSum, nccl, stream), "the gradient sum");
}

static void poll(struct comm *comm)
{
    ncclResult_t state;
    NCCL_CHECK(ncclCommGetAsyncError(nccl_communicator(comm), &state));
    if (state != ncclSuccess && state != ncclInProgress)
        fail(comm, nccl_communicator(comm), state, "the gradient sum");
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
