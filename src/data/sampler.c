#include "sampler.h"

#include "exact_sum.h"
#include "philox.h"

/* A number below `bound`: the high part of a 64-bit random number times the bound, in two 32 x 32
 * products. Some numbers are likelier than others by at most bound / 2^64. */
static uint32_t below(uint32_t bound, uint32_t high, uint32_t low)
{
    return (uint32_t)(((uint64_t)high * bound + ((uint64_t)low * bound >> 32)) >> 32);
}

void sampler_shuffle(uint64_t seed, uint64_t epoch, size_t count, uint32_t *order)
{
    for (size_t i = 0; i < count; i += 2) { /* a block of four numbers serves two positions */
        struct philox_counter r = philox4x32(philox_counter(PHILOX_SHUFFLE, 0, epoch, 0, (uint32_t)(i / 2)), seed);
        for (uint32_t k = 0; k < 2 && i + k < count; k++) {
            uint32_t newest = (uint32_t)i + k;
            uint32_t chosen = below(newest + 1, r.c[2 * k], r.c[2 * k + 1]);
            order[newest] = newest;
            order[newest] = order[chosen];
            order[chosen] = newest;
        }
    }
}

void sampler_share(size_t count, int rank, int size, size_t *first, size_t *end)
{
    size_t tiles = (count + TILE - 1) / TILE, r = (size_t)rank, n = (size_t)size;
    *first = r * tiles / n * TILE;
    *end = (r + 1) * tiles / n * TILE;
    if (*first > count)
        *first = count;
    if (*end > count)
        *end = count;
}
