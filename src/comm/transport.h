/* transport.h - what a comm is made of, and how it sums device memory: one table a transport, added to the list in
 * transport.c. Host memory is summed the same way whatever the transport: sums.c. */
#ifndef DTRAIN_COMM_TRANSPORT_H
#define DTRAIN_COMM_TRANSPORT_H

#include <pthread.h>
#include <semaphore.h>

#include "abort.h"
#include "comm.h"
#include "guard.h"
#include "watch.h"

/* The message that this rank has on its way, if any. */
struct outbox {
    MPI_Request request; /* MPI_REQUEST_NULL: none */
    char bytes[COMM_MESSAGE_BYTES];
};

/* From comm_away to comm_back. */
struct away {
    pthread_t thread;
    sem_t back;    /* posted when the rank is back */
    bool answered; /* a thread could be had */
};

struct comm {
    MPI_Comm mpi;
    int rank, size;
    struct watch *watch;      /* shared by all comms of the process */
    struct guard *guard;      /* as well */
    bool is_world;            /* owns both */
    struct watch_group group; /* of this comm's ranks */
    char (*host_names)[64];   /* by rank */
    int *first_ranks;         /* by rank: the first of its host */
    int host_rank, host_size; /* among the ranks of this host */
    int host_count;
    int slices; /* of a sum: as many as the smallest host has ranks, so that every host has a rank for each slice */
    MPI_Comm slice_peers; /* the ranks with this rank's slice, one a host; MPI_COMM_NULL: no slice, or one host */
    int local_rank;       /* host_rank in the world */
    const struct transport *transport;
    char why[300]; /* why "auto" chose this transport: a few words, or "" */
    void *state;   /* the transport's own */
    void *survey;  /* while a transport is chosen: what `survey` has found; or NULL */
    struct outbox outbox;
    struct away away;
    void (*idle)(void *context); /* comm_set_idle */
    void *idle_context;
};

struct transport {
    const char *name; /* --comm NAME */
    const char *note; /* for whom it is, a word or two for --help; NULL */

    bool in_kernel; /* the engine's kernels sum: for engines whose kernels can (COMM_FOR_KERNEL) */

    const char *advice; /* for watch_group; NULL: none */

    /* Gathers what `suits` needs to know of all ranks of the world, not of the group's alone. Collective over the
     * world, before its parts choose, each for itself. The result is freed by free; NULL: nothing to gather. */
    void *(*survey)(struct comm *world, enum comm_use use);

    /* Whether the transport can serve the group; `why` says in a few words why, or why not. Collective, with one
     * verdict on all ranks. NULL: it always can. */
    bool (*suits)(struct comm *comm, enum comm_use use, char *why, size_t why_bytes);

    void (*prepare)(void); /* once, before MPI starts and there are threads; NULL: nothing to do */

    /* Collective; open fails on all ranks, with *error, or on none. NULL: nothing to do. */
    bool (*open)(struct comm *comm, struct error *error);
    void (*close)(struct comm *comm);

    /* For comm_sum_on_device; NULL where the transport cannot. poll is called again and again while comm_wait waits,
     * and ends the job if a sum has failed. */
    void (*sum_on_device)(struct comm *comm, int64_t *buffer, size_t count, void *stream);
    void (*poll)(struct comm *comm);
    void (*ways)(const struct comm *comm, char *text, size_t bytes); /* for comm_ways; NULL: nothing to say */
};

extern const struct transport transport_mpi;   /* no way of its own: sums go through host memory */
extern const struct transport proxy_nccl;      /* loads the GPU part (gpu.h), then opens the part's transport */
extern const struct transport transport_peers; /* loads the GPU part, too, to ask which GPUs reach each other */

/* Calls every transport's `prepare`. */
void transport_prepare(void);

/* Calls the transports' `survey`, of which there is one. The caller frees the result. */
void *transport_survey(struct comm *world, enum comm_use use);

/* The transport called `name`, or for "auto" the best that suits, which comm->why then explains. NULL and *error
 * (EXIT_USAGE) on every rank if no transport has that name, or it does not suit. Collective; does not open it. */
const struct transport *transport_choose(struct comm *comm, const char *name, enum comm_use use, struct error *error);

/* --- for the files of this folder; `what` as for watch_wait --- */

/* Waits for a request. */
void comm_finish(struct comm *comm, MPI_Request *request, const char *what);

/* Collective: numbers combined over the ranks, in place, on every rank; a split as MPI_Comm_split makes it, in order of
 * rank. */
void comm_combine(struct comm *comm, void *numbers, int count, MPI_Datatype type, MPI_Op operation, const char *what);
MPI_Comm comm_split_mpi(struct comm *comm, int color);

/* Waits until the message that is on its way, if any, has left. */
void mailbox_drain(struct comm *comm);

#endif
