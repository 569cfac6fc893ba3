/* comm.h - what the ranks tell each other.
 *
 * A comm is a group of ranks. Control messages go by MPI; the sums of the training step go through memory where
 * ranks share a host, by MPI between hosts, and on devices by the comm's transport. Every function is collective over
 * the group unless it says otherwise, and none waits for ever: a rank that neither arrives nor answers within the
 * timeout ends the whole job with EXIT_PEER_LOST and a message that names it and its host (see watch.h).
 *
 * Threads: one at a time, over all comms of the process, which share MPI. Normally it is the main thread; of nets that
 * take turns (turns.h) it is the one whose turn it is, and between comm_away and comm_back the one that answers for
 * this rank.
 *
 *     struct comm *world = comm_open_world(60);
 *     struct comm *group = comm_split(world, 0, "auto", COMM_FOR_CPU, &error);
 *     struct comm_sums *sums = comm_sums_open(group, 1);
 *     sums->terms[0] = comm_rank(group);
 *     comm_sum(sums);
 *     printf("%d ranks, the sum of their numbers is %lld\n", comm_size(group), (long long)sums->totals[0]);
 *     comm_sums_close(sums);
 *     comm_close(group);
 *     comm_close(world);
 */
#ifndef DTRAIN_COMM_H
#define DTRAIN_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct comm; /* opaque */

/* Starts MPI, once a process; the ranks of MPI_COMM_WORLD. timeout_seconds > 0. */
struct comm *comm_open_world(double timeout_seconds);

/* What computes the numbers that are to be summed: the CPU, this rank's GPU, kernels on it that can sum over ranks. */
enum comm_use { COMM_FOR_CPU, COMM_FOR_GPU, COMM_FOR_KERNEL };

/* A part of the world: the ranks that give the same color, in the same order; transport is "auto", "mpi", "nccl" or
 * "peers", as for --comm. On failure NULL and *error (EXIT_USAGE) on every rank of the part; ranks of other parts know
 * nothing of it: comm_agree over the world tells them. Order of closing: the CUDA graphs that contain its sums, this
 * comm, the world. Closing the world ends MPI. */
struct comm *comm_split(struct comm *world, int color, const char *transport, enum comm_use use, struct error *error);
void comm_close(struct comm *comm);

/* Local, not collective. */
int comm_rank(const struct comm *comm);
int comm_size(const struct comm *comm);
const char *comm_transport(const struct comm *comm);               /* "mpi" */
void comm_ways(const struct comm *comm, char *text, size_t bytes); /* by which ways it sums: a few words, or "" */
const char *comm_why(const struct comm *comm); /* why "auto" took it, or no better one: a few words, or "" */
int comm_local_rank(const struct comm *comm);  /* rank among all ranks of this host, of any group */
int comm_host_rank(const struct comm *comm);   /* rank among the group's ranks on this host */
int comm_host_count(const struct comm *comm);  /* how many hosts the group spans */
const char *comm_host_name(const struct comm *comm, int rank);
int comm_first_of_host(const struct comm *comm, int rank); /* the first of the group's ranks on that rank's host */
int comm_world_rank(const struct comm *comm, int rank);    /* of a rank of the group, for messages */

/* The names that comm_split takes: "auto, [...], nccl (one GPU a rank) or mpi"; without the notes: "auto, peers, nccl
 * or mpi". */
void comm_names(char *text, size_t bytes, bool notes);

/* "Open MPI v4.1.4": the first words of what the library says of itself. */
void comm_library(char *text, size_t bytes);

/* Numbers that are summed over the ranks, again and again, in host memory. Terms and totals have pages of their own. */
struct comm_sums {
    size_t count;
    int64_t *terms;        /* this rank's, 0 at first: written before comm_sum, of no meaning after it */
    const int64_t *totals; /* the sums; may be terms itself, and is where there is one rank */
};

/* All ranks give the same count, below 2^31. comm NULL: one rank, alone, and not collective. Close before the comm;
 * closing is not collective. */
struct comm_sums *comm_sums_open(struct comm *comm, size_t count);
void comm_sums_close(struct comm_sums *sums);

/* totals[i] = sum of terms[i] over the ranks, on every rank, until terms are written again. */
void comm_sum(struct comm_sums *sums);

/* buffer[i] = sum over ranks, in place, in device memory, where the transport can (comm_can_sum_on_device; local):
 * queued on a CUDA stream, also while it is captured into a graph. Every rank gets the same bits. */
bool comm_can_sum_on_device(const struct comm *comm);
void comm_sum_on_device(struct comm *comm, int64_t *buffer, size_t count, void *stream);

/* Local: whether the engine's kernels sum over the ranks, in memory of theirs that all GPUs reach. */
bool comm_sums_in_kernel(const struct comm *comm);

/* Local: whether an engine on GPUs needs comm_sum: there are several ranks, and neither of these two ways. */
bool comm_sums_by_host(const struct comm *comm);

/* Not collective: waits until done(context), for work on a device that may wait for other ranks; they are
 * watched meanwhile. `what` is for the message when one is lost: "the gradient sum". */
void comm_wait(struct comm *comm, bool (*done)(void *context), void *context, const char *what);

/* Not collective: a GPU tells that another rank is lost, but not which. mpirun, or the watch, can name it, and ends
 * this rank soon; returns if none did for 15 s. what: as for comm_wait. */
void comm_wait_for_end(struct comm *comm, const char *what);

/* Not collective: from now on comm_wait calls idle(context) as long as it waits (turns.h). NULL: nothing. */
void comm_set_idle(struct comm *comm, void (*idle)(void *context), void *context);

/* Control messages. */
void comm_barrier(struct comm *comm);
/* The same, calling idle (or NULL) now and then while it waits. */
void comm_barrier_serving(struct comm *comm, void (*idle)(void *context), void *context);
void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);
void comm_gather(struct comm *comm, const void *data, size_t bytes, void *all); /* all: on rank 0 only */
/* In place, on every rank; `what` as for comm_wait. */
void comm_sum_control(struct comm *comm, int64_t *buffer, size_t count, const char *what);
int comm_largest(struct comm *comm, int value); /* of all ranks' values, on every rank */

/* Ranks agree on an error: if any rank has one, all leave with that of the lowest such rank. Returns true
 * when there is none. */
bool comm_agree(struct comm *comm, struct error *error);

/* True on every rank when all give the same number; *odd is then -1. Else *odd is the lowest rank that
 * differs from the majority (from rank 0 if there is none). */
bool comm_same(struct comm *comm, uint64_t number, int *odd);

enum { COMM_MESSAGE_BYTES = 1024 };

/* Not collective: a message of at most so many bytes from one rank to another. One at a time is on its way: send waits
 * until the one before has left; try_send says false instead, and sends nothing. receive takes the next message there
 * is, if any (of exactly `bytes`), and says whether there was one. */
void comm_send(struct comm *comm, int to, const void *data, size_t bytes);
bool comm_try_send(struct comm *comm, int to, const void *data, size_t bytes);
bool comm_receive(struct comm *comm, void *data, size_t bytes);

/* Not collective: the step this rank is at, for the message when a rank is lost. */
void comm_set_step(struct comm *comm, uint64_t step);

/* Not collective, cheap: tells peers that wait for this rank that it is alive and busy. Long work calls it
 * at least every second or so. */
void comm_alive(struct comm *comm);

/* Not collective: around work that may block for long where nobody can call comm_alive, as in a slow file system. A
 * thread answers for this rank meanwhile, which itself sends nothing and waits for nothing by any comm between the two:
 *
 *     comm_away(comm);
 *     checkpoint_write(...);
 *     comm_back(comm);
 */
void comm_away(struct comm *comm);
void comm_back(struct comm *comm);

#endif
