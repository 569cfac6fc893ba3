/* Messages from one rank to another. A rank has at most one on its way. */
#include <string.h>

#include "transport.h"

bool comm_try_send(struct comm *comm, int to, const void *data, size_t bytes)
{
    struct outbox *outbox = &comm->outbox;
    int has_left;
    MPI_CHECK(MPI_Test(&outbox->request, &has_left, MPI_STATUS_IGNORE));
    if (!has_left)
        return false;
    memcpy(outbox->bytes, data, bytes);
    MPI_CHECK(MPI_Isend(outbox->bytes, (int)bytes, MPI_BYTE, to, 0, comm->mpi, &outbox->request));
    return true;
}

void comm_send(struct comm *comm, int to, const void *data, size_t bytes)
{
    mailbox_drain(comm);
    comm_try_send(comm, to, data, bytes);
}

bool comm_receive(struct comm *comm, void *data, size_t bytes)
{
    int there;
    MPI_Status status;
    MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, 0, comm->mpi, &there, &status));
    if (there)
        MPI_CHECK(MPI_Recv(data, (int)bytes, MPI_BYTE, status.MPI_SOURCE, 0, comm->mpi, MPI_STATUS_IGNORE));
    return there;
}

void mailbox_drain(struct comm *comm)
{
    comm_finish(comm, &comm->outbox.request, "a message to leave");
}
