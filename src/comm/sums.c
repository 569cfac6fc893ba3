/* Sums of host memory.
 *
 * The ranks of a host have their terms in memory that all of them see. A sum takes three steps:
 *   1. every rank has written its terms;
 *   2. rank r of the host adds up slice r of everybody's terms; with several hosts, the ranks that hold the same
 *      slice then sum it by MPI;
 *   3. every slice of the totals is there, and every rank reads them where they lie.
 * So a number crosses the network once a host, not once a rank, and is copied nowhere. Ranks wait for each other by
 * counters in the same memory, under the watch as everywhere. The order of the terms does not matter: they are
 * integers (exact_sum.h).
 *
 * Where hosts have one rank each, or memory cannot be shared, MPI sums it all.
 */
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "shared_memory.h"
#include "transport.h"

/* The ranks of this host, and those of other hosts that hold the same slice. */
struct neighbours {
    MPI_Comm host, across; /* across: MPI_COMM_NULL for ranks without a slice */
    int rank, size;        /* in host */
    int hosts, slices;     /* slices: as many as the smallest host has ranks, so that each is held on every host */
};

/* How far a rank has come, in a cache line of its own. */
struct seat {
    alignas(64) atomic_uint_fast64_t arrivals;
};

struct sums {
    struct comm_sums base;
    struct comm *comm; /* NULL: alone */
    void *mapping;     /* NULL: the terms are this rank's own memory */
    size_t bytes;
    struct seat *seats;  /* by rank of the host */
    int64_t *all_terms;  /* the same */
    size_t stride;       /* between two ranks' terms */
    int64_t *totals;
    uint64_t arrivals; /* of this rank */
};

/* --- neighbours ------------------------------------------------------------------------------------- */

static int agree_on(struct comm *comm, int value, MPI_Op op)
{
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, &value, 1, MPI_INT, op, comm->mpi, &request));
    watch_wait(comm->watch, &request, &comm->group, "an agreement on neighbours", NULL, NULL);
    return value;
}

/* Collective, as are all below up to the sum itself. */
static struct neighbours *find_neighbours(struct comm *comm)
{
    struct neighbours *n = calloc(1, sizeof *n);
    comm_barrier(comm); /* the splits themselves are not watched */
    MPI_CHECK(MPI_Comm_split_type(comm->mpi, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &n->host));
    MPI_CHECK(MPI_Comm_rank(n->host, &n->rank));
    MPI_CHECK(MPI_Comm_size(n->host, &n->size));
    n->slices = agree_on(comm, n->size, MPI_MIN);
    n->hosts = agree_on(comm, n->rank == 0, MPI_SUM);
    MPI_CHECK(MPI_Comm_split(comm->mpi, n->rank < n->slices ? n->rank : MPI_UNDEFINED, comm->rank, &n->across));
    MPI_CHECK(MPI_Comm_set_errhandler(n->host, MPI_ERRORS_RETURN));
    if (n->across != MPI_COMM_NULL)
        MPI_CHECK(MPI_Comm_set_errhandler(n->across, MPI_ERRORS_RETURN));
    return n;
}

void neighbours_close(struct neighbours *n)
{
    if (n == NULL)
        return;
    if (n->across != MPI_COMM_NULL)
        MPI_CHECK(MPI_Comm_free(&n->across));
    MPI_CHECK(MPI_Comm_free(&n->host));
    free(n);
}

/* --- opening ------------------------------------------------------------------------------------------ */

/* Whole pages, so that each rank's terms lie in memory next to its core: it is the first to touch them. */
static size_t page_up(size_t bytes)
{
    return (bytes + 4095) / 4096 * 4096;
}

/* The mapping: seats, totals, then each rank's terms. */
static void share(struct sums *s)
{
    struct comm *comm = s->comm;
    const struct neighbours *n = comm->neighbours;
    size_t seats_bytes = page_up((size_t)n->size * sizeof *s->seats);
    size_t row_bytes = page_up(s->base.count * sizeof(int64_t));
    struct shared_memory memory;
    s->bytes = seats_bytes + row_bytes * ((size_t)n->size + 1);
    if (n->rank == 0)
        s->mapping = shared_memory_make(s->bytes, &memory);
    MPI_Request request;
    MPI_CHECK(MPI_Ibcast(&memory, sizeof memory, MPI_BYTE, 0, n->host, &request));
    watch_wait(comm->watch, &request, &comm->group, "a broadcast on a host", NULL, NULL);
    if (n->rank > 0)
        s->mapping = shared_memory_open(&memory);
    bool all = agree_on(comm, s->mapping != NULL, MPI_MIN);
    if (n->rank == 0)
        shared_memory_hide(&memory);
    if (!all) {
        shared_memory_close(s->mapping, s->bytes);
        s->mapping = NULL;
        return;
    }
    s->seats = s->mapping;
    s->totals = (int64_t *)((char *)s->mapping + seats_bytes);
    s->stride = row_bytes / sizeof(int64_t);
    s->all_terms = s->totals + s->stride;
    s->base.terms = s->all_terms + (size_t)n->rank * s->stride;
    s->base.totals = s->totals;
}

struct comm_sums *comm_sums_open(struct comm *comm, size_t count)
{
    struct sums *s = calloc(1, sizeof *s);
    s->base.count = count;
    if (comm != NULL && comm->size > 1) {
        s->comm = comm;
        if (comm->neighbours == NULL)
            comm->neighbours = find_neighbours(comm);
        if (comm->neighbours->hosts < comm->size)
            share(s);
    }
    if (s->mapping == NULL) {
        s->base.terms = aligned_alloc(64, (count * sizeof(int64_t) + 63) / 64 * 64);
        for (size_t i = 0; i < count; i++)
            s->base.terms[i] = 0;
        s->base.totals = s->base.terms;
    }
    return &s->base;
}

void comm_sums_close(struct comm_sums *sums)
{
    struct sums *s = (struct sums *)sums; /* base is first */
    if (s == NULL)
        return;
    if (s->mapping == NULL)
        free(s->base.terms);
    shared_memory_close(s->mapping, s->bytes);
    free(s);
}

/* --- the sum -------------------------------------------------------------------------------------------- */

struct arrival {
    const struct sums *sums;
    int next; /* the ranks before it have arrived */
};

static bool have_all_arrived(void *context)
{
    struct arrival *arrival = context;
    const struct sums *s = arrival->sums;
    while (arrival->next < s->comm->neighbours->size &&
           atomic_load_explicit(&s->seats[arrival->next].arrivals, memory_order_acquire) >= s->arrivals)
        arrival->next++;
    return arrival->next == s->comm->neighbours->size;
}

/* Until every rank of the host has come as far. What they wrote before is then seen. */
static void meet(struct sums *s)
{
    struct comm *comm = s->comm;
    struct arrival arrival = {s, 0};
    s->arrivals++;
    atomic_store_explicit(&s->seats[comm->neighbours->rank].arrivals, s->arrivals, memory_order_release);
    watch_until(comm->watch, have_all_arrived, &arrival, &comm->group, "the gradient sum");
}

static void sum_by_mpi(const struct comm *comm, MPI_Comm among, int64_t *numbers, size_t count, const char *what)
{
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, numbers, (int)count, MPI_INT64_T, MPI_SUM, among, &request));
    watch_wait(comm->watch, &request, &comm->group, what, NULL, NULL);
}

/* totals[first, last) = the host's terms, a block at a time: it stays in the first-level cache. Refused terms may
 * wrap, without undefined behaviour. */
static void add_terms(const struct sums *s, size_t first, size_t last)
{
    enum { BLOCK = 1024 };
    for (; first < last; first += BLOCK) {
        size_t count = last - first < BLOCK ? last - first : BLOCK;
        int64_t *total = s->totals + first;
        memcpy(total, s->all_terms + first, count * sizeof *total);
        for (int r = 1; r < s->comm->neighbours->size; r++) {
            const int64_t *terms = s->all_terms + first + (size_t)r * s->stride;
            for (size_t i = 0; i < count; i++)
                total[i] = (int64_t)((uint64_t)total[i] + (uint64_t)terms[i]);
        }
    }
}

/* Where slice `number` begins: on a cache line. */
static size_t slice_begin(const struct sums *s, int number)
{
    size_t slices = (size_t)s->comm->neighbours->slices;
    return number == (int)slices ? s->base.count : s->base.count * (size_t)number / slices / 8 * 8;
}

static void sum_by_slices(struct sums *s)
{
    const struct neighbours *n = s->comm->neighbours;
    meet(s);
    if (n->rank < n->slices) {
        size_t first = slice_begin(s, n->rank), last = slice_begin(s, n->rank + 1);
        add_terms(s, first, last);
        if (n->hosts > 1)
            sum_by_mpi(s->comm, n->across, s->totals + first, last - first, "the gradient sum");
    }
    meet(s);
}

void comm_sum(struct comm_sums *sums)
{
    struct sums *s = (struct sums *)sums;
    if (s->mapping != NULL)
        sum_by_slices(s);
    else if (s->comm != NULL)
        sum_by_mpi(s->comm, s->comm->mpi, s->base.terms, s->base.count, "the gradient sum");
}

void comm_sum_control(struct comm *comm, int64_t *buffer, size_t count)
{
    sum_by_mpi(comm, comm->mpi, buffer, count, "the sum of an evaluation");
}
