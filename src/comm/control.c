/* Control messages: what is said once in a while, by MPI, whatever sums the gradients. */
#include <stdlib.h>

#include "memory.h"
#include "transport.h"

void comm_finish(struct comm *comm, MPI_Request *request, const char *what)
{
    watch_wait(comm->watch, request, &comm->group, what, NULL, NULL);
}

/* An all-reduce costs a rank O(log ranks) messages; Open MPI's non-blocking gather sends the root one per rank. */
void comm_combine(struct comm *comm, void *numbers, int count, MPI_Datatype type, MPI_Op operation, const char *what)
{
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, numbers, count, type, operation, comm->mpi, &request));
    comm_finish(comm, &request, what);
}

MPI_Comm comm_split_mpi(struct comm *comm, int color)
{
    MPI_Comm part;
    comm_barrier(comm);
    guard_begin(comm->guard, "a split of the ranks",
                watch_timeout(comm->watch) + 2); /* MPI has no split that does not block */
    MPI_CHECK(MPI_Comm_split(comm->mpi, color, comm->rank, &part));
    guard_end(comm->guard);
    return part;
}

void comm_barrier(struct comm *comm)
{
    comm_barrier_serving(comm, NULL, NULL);
}

void comm_barrier_serving(struct comm *comm, void (*idle)(void *context), void *context)
{
    MPI_Request request;
    MPI_CHECK(MPI_Ibarrier(comm->mpi, &request));
    watch_wait(comm->watch, &request, &comm->group, "a barrier", idle, context);
}

void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    MPI_Request request;
    MPI_CHECK(MPI_Ibcast(data, (int)bytes, MPI_BYTE, root, comm->mpi, &request));
    comm_finish(comm, &request, "a broadcast");
}

void comm_gather(struct comm *comm, const void *data, size_t bytes, void *all)
{
    MPI_Request request;
    MPI_CHECK(MPI_Igather(data, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, comm->mpi, &request));
    comm_finish(comm, &request, "a gather");
}

void comm_sum_control(struct comm *comm, int64_t *buffer, size_t count, const char *what)
{
    comm_combine(comm, buffer, (int)count, MPI_INT64_T, MPI_SUM, what);
}

int comm_largest(struct comm *comm, int value)
{
    comm_combine(comm, &value, 1, MPI_INT, MPI_MAX, "an agreement");
    return value;
}

bool comm_agree(struct comm *comm, struct error *error)
{
    int first = comm->size - comm_largest(comm, error->code == EXIT_DONE ? 0 : comm->size - comm->rank);
    if (first == comm->size)
        return true;
    comm_broadcast(comm, error, sizeof *error, first);
    return false;
}

/* The first number that differs from the majority (Boyer and Moore's vote) or, where there is none, from rank 0's; -1:
 * all are the same. */
static int find_odd(const uint64_t *all, int count)
{
    uint64_t leader = all[0];
    for (int i = 0, votes = 0; i < count; i++) {
        if (votes == 0)
            leader = all[i];
        votes += all[i] == leader ? 1 : -1;
    }
    int votes = 0;
    for (int i = 0; i < count; i++)
        votes += all[i] == leader;
    if (2 * votes <= count)
        leader = all[0];
    for (int i = 0; i < count; i++)
        if (all[i] != leader)
            return i;
    return -1;
}

bool comm_same(struct comm *comm, uint64_t number, int *odd)
{
    uint64_t largest_and_least[] = {number, ~number};
    comm_combine(comm, largest_and_least, 2, MPI_UINT64_T, MPI_MAX, "a comparison");
    *odd = -1;
    if (largest_and_least[0] == ~largest_and_least[1])
        return true;

    /* They differ: only now does rank 0 gather every rank's number, to find the one that is different. */
    uint64_t *all = comm->rank == 0 ? memory_allocate((size_t)comm->size, sizeof *all, "a number of each rank") : NULL;
    comm_gather(comm, &number, sizeof number, all);
    int found = comm->rank == 0 ? find_odd(all, comm->size) : 0;
    free(all);
    comm_broadcast(comm, &found, sizeof found, 0);
    *odd = found;
    return found < 0;
}
