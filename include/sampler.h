/* sampler.h - which sample stands where: the order of an epoch and a rank's share of a batch. */
#ifndef DTRAIN_SAMPLER_H
#define DTRAIN_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

/* order[count] = a permutation of 0..count-1, a pure function of (seed, epoch); count < 2^32, epoch
 * counts from 0. The global batch k of an epoch is order[k*B .. min((k+1)*B, count)).
 *
 * Fisher-Yates, inside out: sample i enters at position j <= i and the sample there moves to position i, with
 * j = floor((i + 1) * R / 2^64), R = the numbers 2i (high half) and 2i + 1 (low half) of the stream
 * (PHILOX_SHUFFLE, layer 0, step = epoch, position 0). A shorter set's choices begin a longer one's. */
void sampler_shuffle(uint64_t seed, uint64_t epoch, size_t count, uint32_t *order);

/* Rank `rank` of `size` owns the positions [*first, *end) of a global batch of `count` samples: whole
 * tiles (exact_sum.h; the batch's last one may be short), numbers rank*tiles/size up to (rank+1)*tiles/size,
 * so that no two ranks differ by more than one tile; possibly none. Shares cover the batch once, in order of
 * rank. Rank 0, which has other duties, never has more tiles than another. */
void sampler_share(size_t count, int rank, int size, size_t *first, size_t *end);

#endif
