/* tile.cuh - what a tile needs before its first convolution: masks, who has which sample, pictures and their factors.
 * It reads only what the host wrote, so it is done while others still work on the step before.
 *
 * In: 16 records of 3,073 bytes, of which a seat reads two; 96 + 2 * 51 draws of Philox at most. 1,344 stretches of 26
 * operations.
 */
#ifndef DTRAIN_FUSED_TILE_CUH
#define DTRAIN_FUSED_TILE_CUH

#include "factors.cuh"

/* Of the tile's samples those before `count` are there. */
struct tile {
    uint64_t step;
    unsigned number;   /* in the global batch */
    unsigned position; /* of its first sample in the epoch's order */
    unsigned count;
};

/* Tile `number` of a batch of `samples` that begins at `position`. */
DEVICE tile tile_of(uint64_t step, unsigned position, unsigned samples, unsigned number)
{
    unsigned left = samples - number * SAMPLES;
    return tile{step, number, position + number * SAMPLES, left < SAMPLES ? left : SAMPLES};
}

/* Whether elements 4 * block .. + 3 of a layer are kept, a bit each. */
static __device__ unsigned draw(const memory &m, const tile &tile, unsigned layer, unsigned sample, unsigned block)
{
    if (m.run.threshold[layer] == 0)
        return 15;
    struct philox_counter at = philox_counter(PHILOX_DROPOUT, layer, tile.step, tile.number * SAMPLES + sample, block);
    struct philox_counter numbers = philox4x32(at, m.run.seed);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        kept |= (unsigned)(numbers.c[i] >= m.run.threshold[layer]) << i;
    return kept;
}

/* One warp, a sample a lane, twice. Samples go to places by the work that their masks leave, the heaviest to the seat
 * of the lightest, and so on: in net D the slowest seat then has 1.27 times the mean, as they come 1.63. */
static __device__ void assign_samples(memory &m)
{
    unsigned lane = tid(), s = lane % SAMPLES, before = 0;
    const uint8_t *drawn = m.drawn[s];
    unsigned keep1 = drawn[0] | (drawn[1] & 3u) << 4;
    unsigned keep2 = drawn[2] | drawn[3] << 4 | drawn[4] << 8 | drawn[5] << 12;
    unsigned work = (unsigned)__popc(keep1) * (20 + (unsigned)__popc(keep2)) * SAMPLES + s; /* all differ */
#pragma unroll
    for (unsigned other = 0; other < SAMPLES; other++)
        before += __shfl_sync(0xffffffffu, work, other) > work;
    unsigned place = before < SEATS ? EACH * before : EACH * (SAMPLES - 1 - before) + 1;
    if (lane < SAMPLES) {
        m.keep1[s] = (uint8_t)keep1, m.keep2[s] = (uint16_t)keep2;
        m.place[s] = (uint8_t)place, m.sample[place] = (uint8_t)s;
    }
    __syncwarp();
    unsigned e = lane / SAMPLES, channel = lane % SAMPLES, mine = m.sample[EACH * seat_of() + e],
             below = (1u << channel) - 1;
    keep1 = m.keep1[mine], keep2 = m.keep2[mine];
    if (keep1 >> channel & 1)
        m.channels1[e][__popc(keep1 & below)] = (uint8_t)channel;
    if (keep2 >> channel & 1)
        m.channels2[e][__popc(keep2 & below)] = (uint8_t)channel;
}

static __device__ void draw_convolutions(memory &m, const tile &tile)
{
    unsigned t = tid();
    if (t < SAMPLES * 6) {
        unsigned s = t / 6, i = t % 6;
        m.drawn[s][i] = s < tile.count ? (uint8_t)draw(m, tile, i < 2 ? 0 : 1, s, i < 2 ? i : i - 2) : 0;
    } else if (t >= 128 && t < 128 + SAMPLES) {
        unsigned position = tile.position + (t - 128 < tile.count ? t - 128 : 0);
        m.record[t - 128] = m.run.order != nullptr ? m.run.order[position] : position;
    }
    if (t < FIRST_THREADS)
        sync_first_threads();
    if (t < LANES)
        assign_samples(m);
    __syncthreads();
}

/* Dense layers' masks of the seat's samples; a sample that the tile lacks keeps nothing, so that all it leaves is 0. */
static __device__ void draw_dense(memory &m, const tile &tile, unsigned e, unsigned i)
{
    unsigned s = m.sample[EACH * seat_of() + e];
    unsigned kept = s < tile.count ? draw(m, tile, i < 30 ? 2 : 3, s, i < 30 ? i : i - 30) : 0;
    if (i < 30)
        m.drawn3[e][i] = (uint8_t)kept;
    else
        m.drawn1[e][i - 30] = (uint8_t)kept;
}

DEVICE const uint8_t *pixels_of(const memory &m, unsigned e)
{
    return m.run.records + (size_t)m.record[m.sample[EACH * seat_of() + e]] * RECORD + 1;
}

DEVICE unsigned aligned_word(const uint8_t *at)
{
    return *reinterpret_cast<const unsigned *>(at - ((uintptr_t)at & 3));
}

DEVICE unsigned upper_half(float v)
{
    return (unsigned)bits_of_float(v) >> 16;
}

/* Of a plane of the seat's sample e the q-th four pixels, and the factors of the stretch that they and the four behind
 * them are; a row's last four begin none, and what is behind them does not count. */
DEVICE void place_factors(memory &m, unsigned e, unsigned plane, unsigned q, const float *d)
{
    unsigned row = q / 8, x = q % 8, at = row / 2 * ACROSS1 + x;
    auto &factors = m.factors1[e][plane];
    if (x < ACROSS1)
        make_factors(d, &factors.low[row % 2][at], &factors.high[row % 2][at]);
}

/* Out of line, as it is called twice; its arguments are numbers, so that they come in registers. */
static __device__ __noinline__ void prepare_numbered(uint64_t step, unsigned number, unsigned position, unsigned count)
{
    memory &m = shared();
    struct tile tile = {step, number, position, count};
    unsigned t = tid(), e = t / 256, q = t % 256; /* which four pixels of a plane of which sample */
    draw_convolutions(m, tile);
    if (t == 0)
        m.tile = number;
    const uint8_t *record = pixels_of(m, e), *at = record + 4 * q;
    unsigned low[3], high[3]; /* on their way while masks are drawn */
#pragma unroll
    for (unsigned plane = 0; plane < 3; plane++)
        low[plane] = aligned_word(at + 1024 * plane), high[plane] = aligned_word(at + 1024 * plane + 3);
    if (t < EACH * 51)
        draw_dense(m, tile, t / 51, t % 51);
    if (q == 128)
        m.label[e] = m.sample[EACH * seat_of() + e] < tile.count ? (int8_t)record[-1] : -1;
    pixel pixels[4] = {};
#pragma unroll
    for (unsigned plane = 0; plane < 3; plane++) {
        unsigned four = shifted(low[plane], high[plane], 8 * ((unsigned)(uintptr_t)at & 3)),
                 behind = __shfl_sync(0xffffffffu, four, (t + 1) % LANES); /* a warp: four rows */
        float d[8];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            d[i] = whole_pixel(four, i), d[4 + i] = whole_pixel(behind, i);
            (plane < 2 ? pixels[i].red_green : pixels[i].blue) |= upper_half(d[i]) << 16 * (plane % 2);
        }
        place_factors(m, e, plane, q, d);
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
        m.image[e][q / 8][q % 8 * 4 + i] = pixels[i];
}

/* What it leaves is there behind the next barrier. What it overwrites was read before the last tile's end, but for the
 * parts of conv1's weights: where they lie it writes behind a barrier of its own. */
DEVICE void prepare_tile(const tile &tile)
{
    prepare_numbered(tile.step, tile.number, tile.position, tile.count);
}

#endif
