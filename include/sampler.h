/* sampler.h - which sample stands where: the order of an epoch and a rank's share of a batch. */
#ifndef DTRAIN_SAMPLER_H
#define DTRAIN_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

enum { TILE = 16 }; /* samples in a tile, the unit of work and of exact summation */

/* order[count] = a permutation of 0..count-1, a pure function of (seed, epoch): Fisher-Yates on Philox
 * numbers. epoch counts from 0. The global batch k of an epoch is order[k*B .. min((k+1)*B, count)). */
void sampler_shuffle(uint64_t seed, uint64_t epoch, size_t count, uint32_t *order);

/* Rank `rank` of `size` owns the positions [*first, *last) of a global batch of `count` samples: whole
 * tiles, as even as tiles allow; possibly none. Shares of all ranks cover the batch once, in order. */
void sampler_share(size_t count, int rank, int size, size_t *first, size_t *last);

#endif
