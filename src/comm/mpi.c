#include "transport.h"

void transport_mpi_sum(struct comm *comm, int64_t *buffer, size_t count, const char *what)
{
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, buffer, (int)count, MPI_INT64_T, MPI_SUM, comm->mpi, &request));
    watch_wait(comm->watch, &request, &comm->group, what, NULL, NULL);
}

static void sum(struct comm *comm, int64_t *buffer, size_t count)
{
    transport_mpi_sum(comm, buffer, count, "the gradient sum");
}

const struct transport transport_mpi = {.name = "mpi", .sum = sum};
