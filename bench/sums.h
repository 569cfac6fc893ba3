/* sums.h - sums over ranks whose result is known, and how they are told: for allreduce_rank.c and cuda/nccl_rank.c. */
#ifndef DTRAIN_BENCH_SUMS_H
#define DTRAIN_BENCH_SUMS_H

#include <inttypes.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "abort.h"
#include "comm.h"
#include "median.h"

enum { SUMS_MAX_REPETITIONS = 500, SUMS_MIN_REPETITIONS = 8, SUMS_PERIOD = 61, SUMS_MIN_BYTES = 1024 };

static inline size_t sums_width(bool is_float)
{
    return is_float ? sizeof(float) : sizeof(int64_t);
}

/* So many that about 64 MB are summed in all. */
static inline size_t sums_repetitions(size_t bytes)
{
    size_t count = ((size_t)64 << 20) / bytes;
    return count > SUMS_MAX_REPETITIONS   ? SUMS_MAX_REPETITIONS
           : count < SUMS_MIN_REPETITIONS ? SUMS_MIN_REPETITIONS
                                          : count;
}

/* --- terms and totals ------------------------------------------------------------------------------- */

/* Small whole numbers, which come again: floats hold their sums exactly. Integers use all 64 bits. Each repetition
 * has others, so that the totals of the one before are wrong. */
static inline int64_t sums_small(size_t i, int rank, size_t repetition)
{
    return (int64_t)((i * 7 + (size_t)rank * 13 + repetition * 17) % SUMS_PERIOD) - 30;
}

static inline int64_t sums_widen(int64_t small, size_t i, int terms)
{
    return (int64_t)(((uint64_t)small << 50) + (uint64_t)terms * i); /* may wrap, as the sum then does */
}

static inline void sums_fill(void *terms, size_t count, bool is_float, int rank, size_t repetition)
{
    for (size_t i = 0; i < count; i++)
        if (is_float)
            ((float *)terms)[i] = (float)sums_small(i, rank, repetition);
        else
            ((int64_t *)terms)[i] = sums_widen(sums_small(i, rank, repetition), i, 1);
}

static inline size_t sums_count_wrong(const void *totals, size_t count, bool is_float, int size, size_t repetition)
{
    int64_t right[SUMS_PERIOD] = {0};
    size_t wrong = 0;
    for (size_t i = 0; i < SUMS_PERIOD; i++)
        for (int rank = 0; rank < size; rank++)
            right[i] += sums_small(i, rank, repetition);
    for (size_t i = 0; i < count; i++)
        if (is_float)
            wrong += ((const float *)totals)[i] != (float)right[i % SUMS_PERIOD];
        else
            wrong += ((const int64_t *)totals)[i] != sums_widen(right[i % SUMS_PERIOD], i, size);
    return wrong;
}

/* --- telling ---------------------------------------------------------------------------------------- */

/* Collective. times: of this rank, by repetition; a repetition takes as long as its slowest rank. */
static inline void sums_print(struct comm *comm, const char *by, bool is_float, size_t count, bool in_place,
                              const double *times, size_t repetitions, size_t wrong_here)
{
    double slowest[SUMS_MAX_REPETITIONS];
    int64_t wrong = (int64_t)wrong_here;
    MPI_CHECK(MPI_Allreduce(times, slowest, (int)repetitions, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD));
    comm_sum_control(comm, &wrong, 1, "the verdict on a sum");
    if (comm_rank(comm) > 0)
        return;
    printf("{\"by\": \"%s\", \"type\": \"%s\", \"count\": %zu, \"bytes\": %zu, \"in_place\": %s, "
           "\"repetitions\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"wrong\": %" PRId64 "}\n",
           by, is_float ? "float" : "int64", count, count * sums_width(is_float), in_place ? "true" : "false",
           repetitions, 1e6 * median(slowest, repetitions), 1e6 * quantile(slowest, repetitions, 0.99), wrong);
    fflush(stdout);
}

#endif
