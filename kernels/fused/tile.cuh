/* tile.cuh - what a tile needs before its first convolution: its masks, which have been drawn, and pictures and their
 * factors. All of it comes from what the host wrote, so it is made while others work on the step before.
 *
 * In: two records of 3,073 bytes. 1,344 stretches of 26 operations.
 */
#ifndef DTRAIN_FUSED_TILE_CUH
#define DTRAIN_FUSED_TILE_CUH

#include "factors.cuh"
#include "masks.cuh"

DEVICE unsigned aligned_word(const uint8_t *at)
{
    return *reinterpret_cast<const unsigned *>(at - ((uintptr_t)at & 3));
}

DEVICE unsigned upper_half(float v)
{
    return (unsigned)bits_of_float(v) >> 16;
}

/* The factors of the stretch that begins with the q-th four pixels of a plane of the seat's sample e; d: these and the
 * four after them. A row's last four begin no stretch, so what is after them does not count. */
DEVICE void place_factors(memory &m, unsigned e, unsigned plane, unsigned q, const float *d)
{
    unsigned row = q / 8, x = q % 8, at = row / ROWS1 * ACROSS1 + x;
    auto &factors = m.factors1[e][plane];
    if (x < ACROSS1)
        make_factors(d, &factors.low[row % ROWS1][at], &factors.high[row % ROWS1][at]);
}

/* m.next becomes m.now, between barriers: all threads are through with the tile before, and have read which one it
 * was. */
DEVICE void take_masks(memory &m)
{
    constexpr unsigned WORDS = sizeof(draws) / 4;
    __syncthreads();
    if (tid() < WORDS)
        reinterpret_cast<uint32_t *>(&m.now)[tid()] = reinterpret_cast<const uint32_t *>(&m.next)[tid()];
    __syncthreads();
}
static_assert(sizeof(draws) % 4 == 0 && sizeof(draws) / 4 <= THREADS, "a word a thread");

/* Pictures, their factors and labels, of the tile in m.now. Called after take_masks, as factors are written where
 * conv1_sum has read m.parts. What it writes may be read after the next barrier. Out of line, as it is called twice. */
static __device__ __noinline__ void place_pictures()
{
    memory &m = shared();
    unsigned t = tid(), e = t / 256, q = t % 256; /* which four pixels of a plane, of which sample */
    const uint8_t *record = record_of(m, m.now, e), *at = record + 1 + 4 * q;
    unsigned low[3], high[3], four[3], behind[3];
    /* By all, and volatile, so that it is asked for with the others: one way to the L2. */
    int8_t label = (int8_t)static_cast<const volatile uint8_t &>(record[0]);
#pragma unroll
    for (unsigned plane = 0; plane < 3; plane++)
        low[plane] = aligned_word(at + 1024 * plane), high[plane] = aligned_word(at + 1024 * plane + 3);
#pragma unroll
    for (unsigned plane = 0; plane < 3; plane++) {
        four[plane] = shifted(low[plane], high[plane], 8 * ((unsigned)(uintptr_t)at & 3));
        behind[plane] = __shfl_sync(0xffffffffu, four[plane], (t + 1) % LANES); /* a warp has four rows */
    }
    if (q == 0)
        m.label[e] = sample_of(m, e) < m.now.tile.count ? label : -1;
    pixel pixels[4] = {};
#pragma unroll
    for (unsigned plane = 0; plane < 3; plane++) {
        float d[8];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            d[i] = whole_pixel(four[plane], i), d[4 + i] = whole_pixel(behind[plane], i);
            if (plane == 2)
                pixels[i].blue = d[i];
            else
                pixels[i].red_green |= upper_half(d[i]) << 16 * plane;
        }
        place_factors(m, e, plane, q, d);
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
        m.image[e][q / 8][q % 8 * 4 + i] = pixels[i];
}

#endif
