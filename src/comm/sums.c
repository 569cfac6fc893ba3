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
#include <unistd.h>

#include "halving.h"
#include "memory.h"
#include "shared_memory.h"
#include "transport.h"

/* How far a rank has come, in a cache line of its own. */
struct arrival {
    alignas(64) atomic_uint_fast64_t count;
};

struct sums {
    struct comm_sums base;
    struct comm *comm;           /* NULL: alone */
    bool shared;                 /* by the ranks of this host, in memory that has all of the following: */
    struct arrival *arrived;     /* by rank of the host; the shared memory begins here */
    size_t bytes;                /* of the shared memory */
    int64_t *totals, *all_terms; /* the terms of all ranks of the host */
    size_t stride;               /* between two ranks' */
    uint64_t own_arrivals;       /* how often this rank has arrived: what all are to reach */
};

/* --- opening ------------------------------------------------------------------------------------------ */

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Each rank's terms fill whole pages. The rank touches them first, so that they lie in memory near its core; and an
 * engine that pins them for its GPU pins nothing else. */
static size_t page_up(size_t bytes)
{
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

/* The first rank of each host makes the memory; all learn where it is. Collective; NULL on every rank if any fails. */
static void *share(struct comm *comm, size_t bytes)
{
    struct shared_memory *places = memory_allocate((size_t)comm->size, sizeof *places, "the places of shared memory");
    void *memory = comm->host_rank == 0 ? shared_memory_make(bytes, &places[comm->rank]) : NULL;
    comm_combine(comm, places, comm->size * (int)sizeof *places, MPI_BYTE, MPI_BOR, "the places of shared memory");
    if (comm->host_rank > 0)
        memory = shared_memory_open(&places[comm->first_ranks[comm->rank]]);
    bool failed = comm_largest(comm, memory == NULL) > 0;
    if (comm->host_rank == 0)
        shared_memory_unpublish(&places[comm->rank]);
    free(places);
    if (!failed)
        return memory;
    shared_memory_close(memory, bytes);
    if (comm->rank == 0)
        error_note("ranks of a host cannot share memory (is each in a container of its own?): MPI sums, which takes "
                   "longer");
    return NULL;
}

/* In shared memory lie how far each rank has come, the totals, then each rank's terms. */
static void open_shared(struct sums *s)
{
    struct comm *comm = s->comm;
    size_t arrivals_bytes = page_up((size_t)comm->host_size * sizeof *s->arrived);
    size_t row_bytes = page_up(s->base.count * sizeof(int64_t));
    s->bytes = arrivals_bytes + row_bytes * ((size_t)comm->host_size + 1);
    s->arrived = share(comm, s->bytes);
    s->shared = s->arrived != NULL;
    if (!s->shared)
        return;
    s->stride = row_bytes / sizeof(int64_t);
    s->totals = (int64_t *)((char *)s->arrived + arrivals_bytes);
    s->all_terms = s->totals + s->stride;
    s->base.terms = s->all_terms + (size_t)comm->host_rank * s->stride;
    s->base.totals = s->totals;
}

struct comm_sums *comm_sums_open(struct comm *comm, size_t count)
{
    struct sums *s = memory_allocate(1, sizeof *s, "the sums");
    s->base.count = count;
    if (comm != NULL && comm->size > 1)
        s->comm = comm;
    if (s->comm != NULL && s->comm->host_count < s->comm->size)
        open_shared(s);
    if (!s->shared) {
        s->base.terms = memory_allocate_aligned(page_bytes(), count * sizeof *s->base.terms, "the sums");
        s->base.totals = s->base.terms;
    }
    return &s->base;
}

void comm_sums_close(struct comm_sums *sums)
{
    struct sums *s = (struct sums *)sums; /* base is first */
    if (s->shared)
        shared_memory_close(s->arrived, s->bytes);
    else
        free(s->base.terms);
    free(s);
}

/* --- the sum -------------------------------------------------------------------------------------------- */

static bool have_all_arrived(void *sums)
{
    const struct sums *s = sums;
    for (int r = 0; r < s->comm->host_size; r++)
        if (atomic_load_explicit(&s->arrived[r].count, memory_order_acquire) < s->own_arrivals)
            return false;
    return true;
}

/* A barrier of the ranks of the host: what they wrote before it is seen after it. */
static void host_barrier(struct sums *s)
{
    struct comm *comm = s->comm;
    s->own_arrivals++;
    atomic_store_explicit(&s->arrived[comm->host_rank].count, s->own_arrivals, memory_order_release);
    watch_until(comm->watch, have_all_arrived, s, &comm->group, "the gradient sum");
}

static void sum_by_mpi(const struct comm *comm, MPI_Comm among, int64_t *numbers, size_t count)
{
    MPI_Request request;
    halving_use(true);
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, numbers, (int)count, MPI_INT64_T, MPI_SUM, among, &request));
    halving_use(false);
    watch_wait(comm->watch, &request, &comm->group, "the gradient sum", NULL, NULL);
}

/* totals[first, end) = the sums of the host's terms, a block at a time, which stays in the first-level cache. Where
 * terms were refused a sum may wrap, without undefined behaviour. */
static void add_terms(const struct sums *s, size_t first, size_t end)
{
    enum { BLOCK = 1024 };
    for (; first < end; first += BLOCK) {
        size_t count = end - first < BLOCK ? end - first : BLOCK;
        int64_t *total = s->totals + first;
        memcpy(total, s->all_terms + first, count * sizeof *total);
        for (int r = 1; r < s->comm->host_size; r++) {
            const int64_t *terms = s->all_terms + first + (size_t)r * s->stride;
            for (size_t i = 0; i < count; i++)
                total[i] = (int64_t)((uint64_t)total[i] + (uint64_t)terms[i]);
        }
    }
}

/* Where slice `number` begins: on a cache line. */
static size_t slice_begin(const struct sums *s, int number)
{
    size_t slices = (size_t)s->comm->slices;
    return number == (int)slices ? s->base.count : s->base.count * (size_t)number / slices / 8 * 8;
}

static void sum_by_slices(struct sums *s)
{
    const struct comm *comm = s->comm;
    host_barrier(s);
    if (comm->host_rank < comm->slices) {
        size_t first = slice_begin(s, comm->host_rank), end = slice_begin(s, comm->host_rank + 1);
        add_terms(s, first, end);
        if (comm->host_count > 1)
            sum_by_mpi(comm, comm->slice_peers, s->totals + first, end - first);
    }
    host_barrier(s);
}

void comm_sum(struct comm_sums *sums)
{
    struct sums *s = (struct sums *)sums;
    if (s->shared)
        sum_by_slices(s);
    else if (s->comm != NULL)
        sum_by_mpi(s->comm, s->comm->mpi, s->base.terms, s->base.count);
}
