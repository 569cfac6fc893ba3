#include "sampler.h"

#include "exact_sum.h"
#include "philox.h"

/* A number below `bound`: the high part of a 64-bit random number times the bound, in two 32 x 32
 * products. Some numbers are likelier than others by at most bound / 2^64. */
static uint32_t below(uint32_t bound, uint32_t high, uint32_t low)
{
    return (uint32_t)(((uint64_t)high * bound + ((uint64_t)low * bound >> 32)) >> 32);
}

/* The random numbers of many positions are drawn at once, by vectors; then one position after the other is swapped. */
void sampler_shuffle(uint64_t seed, uint64_t epoch, size_t count, uint32_t *order)
{
    enum { BLOCKS = 64, POSITIONS = 2 * BLOCKS }; /* a block of four numbers serves two positions */
    for (size_t first = 0; first < count; first += POSITIONS) {
        uint32_t chosen[POSITIONS];
        for (size_t k = 0; k < BLOCKS; k++) {
            uint32_t block = (uint32_t)(first / 2 + k);
            struct philox_counter r = philox4x32(philox_counter(PHILOX_SHUFFLE, 0, epoch, 0, block), seed);
            chosen[2 * k] = below(2 * block + 1, r.c[0], r.c[1]);
            chosen[2 * k + 1] = below(2 * block + 2, r.c[2], r.c[3]);
        }
        for (size_t i = first; i < first + POSITIONS && i < count; i++) {
            order[i] = (uint32_t)i;
            order[i] = order[chosen[i - first]];
            order[chosen[i - first]] = (uint32_t)i;
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
