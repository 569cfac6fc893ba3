/* masks.cuh - a tile's masks, and who has which of its samples. The last warp draws them while others are in conv1 of
 * the tile before, so that nobody waits for them.
 *
 * 96 + 102 draws of Philox; 16 numbers of the epoch's order.
 */
#ifndef DTRAIN_FUSED_MASKS_CUH
#define DTRAIN_FUSED_MASKS_CUH

#include "memory.cuh"

/* Tile `number` of a batch of `samples` that begins at `position`. */
DEVICE tile tile_of(uint64_t step, unsigned position, unsigned samples, unsigned number)
{
    unsigned left = number * SAMPLES < samples ? samples - number * SAMPLES : 0;
    return tile{step, number, position + number * SAMPLES, left < SAMPLES ? left : SAMPLES};
}

DEVICE bool is_last_warp()
{
    return tid() >= THREADS - LANES;
}

/* Whether elements 4 * block .. + 3 of a layer are kept, a bit each. sample: in the order of the tile. */
static __device__ unsigned draw(const memory &m, const tile &tile, unsigned layer, unsigned sample, unsigned block)
{
    struct philox_counter at = philox_counter(PHILOX_DROPOUT, layer, tile.step, tile.number * SAMPLES + sample, block);
    struct philox_counter numbers = philox4x32(at, m.run.seed);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        kept |= (unsigned)(numbers.c[i] >= m.run.threshold[layer]) << i;
    return kept;
}

/* Samples go to places by the work that their masks leave, the heaviest to the seat of the lightest, and so on: in net
 * D the one of 128 seats that has most has 1.22 times the mean by this measure; in the order in which they come, 1.50.
 * A lane has a sample; the upper half of the warp repeats the lower. */
static __device__ void assign_samples(draws &d)
{
    unsigned lane = tid() % LANES, s = lane % SAMPLES, before = 0;
    const uint8_t *drawn = d.drawn[s];
    unsigned keep1 = drawn[0] | (drawn[1] & 3u) << 4;
    unsigned keep2 = drawn[2] | drawn[3] << 4 | drawn[4] << 8 | drawn[5] << 12;
    /* Channels of conv1 cost most by themselves, those of conv2 with those of conv1. */
    unsigned work = ((unsigned)__popc(keep1) + 2) * ((unsigned)__popc(keep2) + 12) * SAMPLES + s; /* all differ */
#pragma unroll
    for (unsigned other = 0; other < SAMPLES; other++)
        before += __shfl_sync(0xffffffffu, work, other) > work;
    unsigned place = before < SEATS ? EACH * before : EACH * (SAMPLES - 1 - before) + 1;
    if (lane < SAMPLES) {
        d.keep1[s] = (uint8_t)keep1, d.keep2[s] = (uint16_t)keep2;
        d.place[s] = (uint8_t)place, d.sample[place] = (uint8_t)s;
    }
    __syncwarp();
    unsigned e = lane / SAMPLES, channel = lane % SAMPLES, mine = d.sample[EACH * seat_of() + e],
             below = (1u << channel) - 1;
    keep1 = d.keep1[mine], keep2 = d.keep2[mine];
    if (keep1 >> channel & 1)
        d.channels1[e][__popc(keep1 & below)] = (uint8_t)channel;
    if (keep2 >> channel & 1)
        d.channels2[e][__popc(keep2 & below)] = (uint8_t)channel;
}

DEVICE const uint8_t *record_of(const memory &m, const draws &d, unsigned e)
{
    return m.run.records + (size_t)d.record[d.sample[EACH * seat_of() + e]] * RECORD;
}

/* By the last warp: the tile becomes m.next, and this seat's two records are fetched into the L2. */
static __device__ void draw_masks(memory &m, const tile &tile)
{
    draws &d = m.next;
    unsigned lane = tid() % LANES, count = tile.count, record = tile.position + (lane < count ? lane : 0);
    if (m.run.order != nullptr)
        record = m.run.order[record]; /* on its way while masks are drawn */
    if (lane == 0)
        d.tile = tile;
#pragma unroll /* three at once: nothing else hides how long each takes */
    for (unsigned i = lane; i < SAMPLES * 6; i += LANES) {
        unsigned s = i / 6, block = i % 6;
        unsigned kept = draw(m, tile, block < 2 ? 0 : 1, s, block < 2 ? block : block - 2);
        d.drawn[s][block] = (uint8_t)(s < count ? kept : 0);
    }
    if (lane < SAMPLES)
        d.record[lane] = record;
    __syncwarp();
    assign_samples(d);
#pragma unroll
    for (unsigned e = 0; e < EACH; e++)
        if (lane <= RECORD / 128)
            fetch_into_l2(record_of(m, d, e) + 128 * lane);
}

/* The masks of the dense layers, of the seat's samples of m.next, by the threads from `first` on; a sample that the
 * tile lacks keeps nothing, so that all its terms are 0. Called after a barrier that follows draw_tile. */
static __device__ void draw_dense_masks(memory &m, unsigned first)
{
    draws &d = m.next;
    unsigned i = tid() - first;
    if (i >= EACH * 51 || d.tile.count == 0)
        return;
    unsigned e = i / 51, block = i % 51, s = d.sample[EACH * seat_of() + e];
    unsigned kept = draw(m, d.tile, block < 30 ? 2 : 3, s, block < 30 ? block : block - 30);
    (block < 30 ? d.drawn3[e][block] : d.drawn1[e][block - 30]) = (uint8_t)(s < d.tile.count ? kept : 0);
}
static_assert(EACH * 51 <= THREADS - 4 * LANES, "conv3 leaves so many threads idle");

/* By the last warp. Out of line, as it is called in several places; its arguments are numbers, so that they come in
 * registers. */
static __device__ __noinline__ void work_ahead(uint64_t step, unsigned number, unsigned position, unsigned count)
{
    memory &m = shared();
    bool asks = block_of(m) == 0 && tid() % LANES == 0;
    int32_t wish = 0;
    if (asks && m.run.stop != nullptr)
        wish = *m.run.stop; /* on its way from the host meanwhile */
    if (count != 0)
        draw_masks(m, tile{step, number, position, count});
    else if (tid() % LANES == 0)
        m.next.tile = tile{step, number, position, count};
    if (asks)
        m.wish = wish;
}

/* What the last warp does while others are busy: the next tile's masks, if there is one, and the host's wish. */
DEVICE void draw_tile(const tile &tile)
{
    if (is_last_warp())
        work_ahead(tile.step, tile.number, tile.position, tile.count);
}

#endif
