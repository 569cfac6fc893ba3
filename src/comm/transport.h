/* transport.h - how a comm sums gradients: one table a transport, added to the list in comm.c. */
#ifndef DTRAIN_TRANSPORT_H
#define DTRAIN_TRANSPORT_H

#include "comm.h"
#include "watch.h"

struct comm {
    MPI_Comm mpi;
    int rank, size;
    struct watch *watch;      /* shared by all comms of the process */
    bool is_world;            /* owns the watch */
    struct watch_group group; /* of this comm's ranks */
    char (*host_names)[64];   /* by rank */
    int host_rank, host_count;
    const struct transport *transport;
    void *state; /* the transport's own */
};

struct transport {
    const char *name; /* --comm NAME */
    bool (*open)(struct comm *comm, struct error *error); /* NULL: nothing to do */
    void (*close)(struct comm *comm);                     /* NULL: nothing to do */
    void (*sum)(struct comm *comm, int64_t *buffer, size_t count);
};

extern const struct transport transport_mpi;

#endif
