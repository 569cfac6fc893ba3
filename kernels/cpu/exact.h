/* exact.h - exact_sum_add (exact_sum.h) for inner loops: vectors, and no call. */
#ifndef DTRAIN_CPU_EXACT_H
#define DTRAIN_CPU_EXACT_H

#include "exact_sum.h"
#include "vector.h"

typedef double doubles __attribute__((vector_size(4 * LANES)));

/* LANES / 2 floats as doubles, one instruction; GCC 12 makes five of __builtin_convertvector. */
KERNEL doubles exact_doubles(const float *terms)
{
#if defined(__AVX512F__)
    return (doubles)_mm512_cvtps_pd(_mm256_loadu_ps(terms));
#elif defined(__AVX__)
    return (doubles)_mm256_cvtps_pd(_mm_loadu_ps(terms));
#else
    typedef float half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
    return __builtin_convertvector(*(const half *)terms, doubles);
#endif
}

/* sums[LANES / 2] += terms[LANES / 2]; meaningless where a term is refused. No alignment is asked. */
KERNEL void exact_add_half(const float *terms, int64_t *sums)
{
    typedef uint64_t longs __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
#if defined(__AVX512DQ__)
    /* Times 2^36 they are rounded to integers by an instruction, to nearest. */
    __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(terms), _mm256_set1_ps((float)(1 / EXACT_UNIT)));
    *(longs *)sums += (longs)_mm512_cvtps_epi64(scaled);
#else
    const doubles magic = EXACT_MAGIC - (doubles){0};
    doubles shifted = exact_doubles(terms) + magic;
    *(longs *)sums += (longs)shifted - (longs)magic;
#endif
}

/* *room, 0 at first, is negative from then on in the lanes where one of terms[LANES] was refused: the sums are then of
 * no use, and the step is not applied. */
KERNEL void exact_check(const float *terms, ivec *room)
{
    ivec magnitude = (ivec)vec_load(terms) & 0x7fffffff; /* of infinite and NaN the largest */
    *room |= (ivec)vec_all(EXACT_LIMIT) - 1 - magnitude;
}

/* sums[LANES] += terms[LANES], with exact_check. */
KERNEL void exact_add(const float *terms, int64_t *sums, ivec *room)
{
    UNROLL for (int k = 0; k < LANES; k += LANES / 2)
        exact_add_half(terms + k, sums + k);
    exact_check(terms, room);
}

/* Whether a term was refused: 1 or 0. */
KERNEL int exact_refused(ivec room)
{
    int32_t any = 0;
    for (int i = 0; i < LANES; i++)
        any |= room[i];
    return any < 0;
}

#endif
