/* allreduce_rank - one rank of bench/allreduce: the time of a sum over all ranks, and whether it is right.
 *
 *   mpirun -np N allreduce_rank [MAX_BYTES]
 *
 * Sums of 1 KB to MAX_BYTES (64 MB if not given), and of what a training step sums: MPI's of floats and of 64-bit
 * integers, and comm_sum, which is the trainer's. Every repetition begins with fresh terms and a barrier; its time is
 * that of the slowest rank; and every number of its result is compared, on every rank. Rank 0 prints a line of JSON
 * for each size.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/median.h"
#include "clock.h"
#include "comm.h"
#include "engine.h"
#include "kernels/cpu/layout.h"
#include "lenet5.h"
#include "watch.h"

enum { MAX_REPETITIONS = 500, MIN_REPETITIONS = 8, PERIOD = 61 };
static const size_t BYTES_SUMMED = (size_t)1 << 26; /* in all repetitions of a size, about */

/* A sum being measured: of terms into totals, which may be the same memory. */
struct sum {
    struct comm *comm;
    struct comm_sums *sums; /* NULL but for comm_sum */
    void *terms, *totals;
    size_t count;
    MPI_Datatype type;
};

/* --- terms and totals ------------------------------------------------------------------------------- */

/* Small whole numbers, which come again: floats hold their sums exactly. Integers use all 64 bits. */
static int64_t small(size_t i, int rank)
{
    return (int64_t)((i * 7 + (size_t)rank * 13) % PERIOD) - 30;
}

static int64_t widen(int64_t small_number, size_t i, int terms)
{
    return (int64_t)(((uint64_t)small_number << 50) + (uint64_t)terms * i); /* may wrap, as the sum then does */
}

static void fill(struct sum *sum)
{
    int rank = comm_rank(sum->comm);
    for (size_t i = 0; i < sum->count; i++)
        if (sum->type == MPI_FLOAT)
            ((float *)sum->terms)[i] = (float)small(i, rank);
        else
            ((int64_t *)sum->terms)[i] = widen(small(i, rank), i, 1);
}

static size_t count_wrong(const struct sum *sum)
{
    int64_t totals[PERIOD] = {0};
    int size = comm_size(sum->comm);
    size_t wrong = 0;
    for (size_t i = 0; i < PERIOD; i++)
        for (int rank = 0; rank < size; rank++)
            totals[i] += small(i, rank);
    for (size_t i = 0; i < sum->count; i++)
        if (sum->type == MPI_FLOAT)
            wrong += ((const float *)sum->totals)[i] != (float)totals[i % PERIOD];
        else
            wrong += ((const int64_t *)sum->totals)[i] != widen(totals[i % PERIOD], i, size);
    return wrong;
}

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
    size_t bytes = sum->count * (sum->type == MPI_FLOAT ? sizeof(float) : sizeof(int64_t));
    size_t repetitions = BYTES_SUMMED / bytes;
    repetitions = repetitions > MAX_REPETITIONS   ? MAX_REPETITIONS
                  : repetitions < MIN_REPETITIONS ? MIN_REPETITIONS
                                                  : repetitions;
    double times[MAX_REPETITIONS], slowest[MAX_REPETITIONS];
    int64_t wrong = 0;
    for (size_t k = 0; k < repetitions; k++) {
        fill(sum);
        comm_barrier(sum->comm);
        double start = clock_seconds();
        do_sum(sum);
        times[k] = clock_seconds() - start;
        wrong += (int64_t)count_wrong(sum);
    }
    MPI_CHECK(MPI_Allreduce(times, slowest, (int)repetitions, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD));
    comm_sum_control(sum->comm, &wrong, 1);
    if (comm_rank(sum->comm) > 0)
        return;
    printf("{\"by\": \"%s\", \"type\": \"%s\", \"count\": %zu, \"bytes\": %zu, \"in_place\": %s, "
           "\"repetitions\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"wrong\": %" PRId64 "}\n",
           by, sum->type == MPI_FLOAT ? "float" : "int64", sum->count, bytes,
           sum->terms == sum->totals ? "true" : "false", repetitions, 1e6 * median(slowest, repetitions),
           1e6 * quantile(slowest, repetitions, 0.99), wrong);
    fflush(stdout);
}

static void measure_mpi(struct comm *world, MPI_Datatype type, size_t count)
{
    size_t bytes = count * (type == MPI_FLOAT ? sizeof(float) : sizeof(int64_t));
    struct sum sum = {.comm = world, .terms = malloc(bytes), .totals = malloc(bytes), .count = count, .type = type};
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
    MPI_Init(&argc, &argv);
    struct comm *world = comm_open_world(60);
    for (size_t bytes = 1024; bytes <= max_bytes; bytes *= 4) {
        measure_mpi(world, MPI_FLOAT, bytes / sizeof(float));
        measure_mpi(world, MPI_INT64_T, bytes / sizeof(int64_t));
        measure_dtrain(world, bytes / sizeof(int64_t));
    }
    measure_mpi(world, MPI_FLOAT, LENET5_WEIGHTS); /* what a step sums, in floats, and as the CPU engine does */
    measure_mpi(world, MPI_INT64_T, LAYOUT_COUNT + SUM_SLOTS);
    measure_dtrain(world, LAYOUT_COUNT + SUM_SLOTS);
    comm_close(world);
    MPI_Finalize();
    return EXIT_DONE;
}
