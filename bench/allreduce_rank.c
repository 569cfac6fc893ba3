/* allreduce_rank - one rank of bench/allreduce: the time of a sum over all ranks, and whether it is right.
 *
 *   mpirun -np N allreduce_rank [MAX_BYTES]
 *
 * Sums of 1 KB to MAX_BYTES (64 MB if not given), and of what a training step sums: MPI's of floats and of 64-bit
 * integers, and comm_sum, which is the trainer's. Every repetition begins with fresh terms and a barrier; its time is
 * that of the slowest rank; and every number of its result is compared, on every rank. Rank 0 prints a line of JSON
 * for each size.
 */
#include <stdlib.h>

#include "bench/sums.h"
#include "clock.h"
#include "engine.h"
#include "kernels/cpu/layout.h"
#include "lenet5.h"
#include "memory.h"

/* A sum being measured: of terms into totals, which may be the same memory. */
struct sum {
    struct comm *comm;
    struct comm_sums *sums; /* NULL but for comm_sum */
    void *terms, *totals;
    size_t count;
    MPI_Datatype type;
};

/* --- measuring -------------------------------------------------------------------------------------- */

static void do_sum(struct sum *sum)
{
    if (sum->sums != NULL) {
        comm_sum(sum->sums);
        return;
    }
    MPI_Request request;
    const void *terms = sum->terms == sum->totals ? MPI_IN_PLACE : sum->terms;
    MPI_CHECK(MPI_Iallreduce(terms, sum->totals, (int)sum->count, sum->type, MPI_SUM, MPI_COMM_WORLD, &request));
    MPI_CHECK(MPI_Wait(&request, MPI_STATUS_IGNORE));
}

static void measure(struct sum *sum, const char *by)
{
    bool is_float = sum->type == MPI_FLOAT;
    size_t repetitions = sums_repetitions(sum->count * sums_width(is_float)), wrong = 0;
    double times[SUMS_MAX_REPETITIONS];
    for (size_t k = 0; k < repetitions; k++) {
        sums_fill(sum->terms, sum->count, is_float, comm_rank(sum->comm), k);
        comm_barrier(sum->comm);
        double start = clock_seconds();
        do_sum(sum);
        times[k] = clock_seconds() - start;
        wrong += sums_count_wrong(sum->totals, sum->count, is_float, comm_size(sum->comm), k);
    }
    sums_print(sum->comm, by, is_float, sum->count, sum->terms == sum->totals, times, repetitions, wrong);
}

static void measure_mpi(struct comm *world, MPI_Datatype type, size_t count)
{
    size_t bytes = count * sums_width(type == MPI_FLOAT);
    struct sum sum = {.comm = world, .count = count, .type = type};
    sum.terms = memory_allocate(1, bytes, "the terms of a sum");
    sum.totals = memory_allocate(1, bytes, "a sum");
    measure(&sum, "MPI");
    free(sum.totals);
    sum.totals = sum.terms;
    measure(&sum, "MPI");
    free(sum.terms);
}

static void measure_dtrain(struct comm *world, size_t count)
{
    struct comm_sums *sums = comm_sums_open(world, count);
    struct sum sum = {world, sums, sums->terms, (void *)(uintptr_t)sums->totals, count, MPI_INT64_T};
    measure(&sum, "dtrain");
    comm_barrier(world);
    comm_sums_close(sums);
}

int main(int argc, char **argv)
{
    size_t max_bytes = argc > 1 ? strtoull(argv[1], NULL, 10) : (size_t)64 << 20;
    struct comm *world = comm_open_world(60);
    for (size_t bytes = SUMS_MIN_BYTES; bytes <= max_bytes; bytes *= 4) {
        measure_mpi(world, MPI_FLOAT, bytes / sizeof(float));
        measure_mpi(world, MPI_INT64_T, bytes / sizeof(int64_t));
        measure_dtrain(world, bytes / sizeof(int64_t));
    }
    measure_mpi(world, MPI_FLOAT, LENET5_WEIGHTS); /* what a step sums, in floats, and as the CPU engine does */
    measure_mpi(world, MPI_INT64_T, LAYOUT_COUNT + SUM_SLOTS);
    measure_dtrain(world, LAYOUT_COUNT + SUM_SLOTS);
    comm_close(world);
    return EXIT_DONE;
}
