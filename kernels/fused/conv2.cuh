/* conv2.cuh - conv2 forward, with ReLU, dropout and pool. A seat's two samples; dropped channels on either side are
 * left out.
 *
 * pool1 (6, 14, 14) -> pool2 (16, 5, 5), which goes to the seats that have these channels of conv3: 6.4 KB of words.
 * Two lanes have four columns of a channel, half of their products each: 6 lanes x 200 FFMA for each kept channel of
 * pool1 and of pool2: net A 230,000 of a seat's two samples by six of 16 warps, D a quarter by three mostly.
 */
#ifndef DTRAIN_FUSED_CONV2_CUH
#define DTRAIN_FUSED_CONV2_CUH

#include "exchange.cuh"
#include "winograd.cuh"

/* Where cell 0 of a channel of the seat's sample e goes; cell c: 2 * c words further on. */
DEVICE uint64_t *place_of_pool2(const memory &m, unsigned e, unsigned channel)
{
    return &m.mail[channel / EACH].pool2[sample_of(m, e)][channel % EACH];
}

/* Makes pool1 and its factors from what conv1 left in win1, a thread a stretch; and the zeros that end the rows of
 * pool2. */
static __device__ void prepare_conv2(memory &m, both kept1)
{
    constexpr unsigned STRETCHES = 14 * ACROSS2;
    unsigned e = tid() / (6 * STRETCHES), in = tid() / STRETCHES % 6, row = tid() / ACROSS2 % 14, x = tid() % ACROSS2;
    if (tid() < EACH * 6 * STRETCHES && (kept1[e] >> in & 1) != 0) {
        unsigned column = x < 2 ? 4 * x : 6;
        const float2 *two = reinterpret_cast<const float2 *>(&m.win1[e][in].d[row * 14 + column]);
        float *pool1 = &m.pool1[e][pool1_at(in) + row * PITCH_POOL1 + column];
        float d[8];
#pragma unroll
        for (int q = 0; q < 8; q += 2)
            d[q] = two[q / 2].x, d[q + 1] = two[q / 2].y;
#pragma unroll
        for (int q = 0; q < 8; q++)
            if (x < 2 ? q < 4 : q > 1) /* columns 0..3, 4..7, 8..13 */
                pool1[q] = d[q];
        auto &factors = m.factors2[e][in];
        make_factors(d, &factors.low[row][x], &factors.high[row][x]);
    }
    if (tid() < 2 * SAMPLES)
        m.pool2[tid() / 2][INPUTS + tid() % 2] = 0;
}
static_assert(EACH * 6 * 14 * ACROSS2 <= THREADS, "a thread has one stretch");

/* What a lane has: of an output channel that the seat's sample e keeps, four columns of all ten rows; and of the eight
 * products the four with factors in low, or those in high. The neighbouring lane has the other four. */
struct conv2_work {
    unsigned e, channel, x, high;
};

/* n: how many channels each sample keeps. Lanes beyond the last four columns repeat these. */
DEVICE conv2_work conv2_work_of(const memory &m, both n)
{
    unsigned columns = (n.first + n.second) * ACROSS2, i = tid() / 2 < columns ? tid() / 2 : columns - 1;
    unsigned number = i / ACROSS2, e = number >= n.first;
    return {e, m.now.channels2[e][number - e * n.first], i % ACROSS2, tid() % 2};
}

/* One input plane: 200 FFMA, 19 LDS of 16 bytes. A row of factors meets five rows of taps. */
DEVICE void conv2_plane(const float4 *factors, const float4 *taps, float (*chains)[4])
{
    float4 h[5];
#pragma unroll
    for (unsigned u = 0; u < 5; u++)
        h[u] = taps[u];
#pragma unroll
    for (unsigned row = 0; row < 14; row++) {
        float4 f = factors[row * ACROSS2];
#pragma unroll
        for (unsigned u = 0; u < 5; u++)
            if (u <= row && row - u < 10)
                add_terms(chains[row - u], f, h[u]);
    }
}

/* What all windows of a lane need; read once, before anything is stored. */
struct pool2_target {
    float bias, scale;
    uint64_t *to;
};

/* The pool of rows 2y and 2y + 1, whose chains are given. */
DEVICE void conv2_pool(memory &m, unsigned round, conv2_work work, const pool2_target &target, unsigned y,
                       const float (*chains)[8])
{
    pair_outputs outputs = outputs_of(chains);
#pragma unroll
    for (unsigned window = 0; window < 2; window++) {
        int from;
        float v = pool(outputs, window, target.bias, target.scale, &from);
        if (work.x == 2 && window == 0)
            continue; /* the last four columns begin with two that others have */
        unsigned x = work.x < 2 ? 2 * work.x + window : 4, cell = y * 5 + x;
        auto &win2 = m.win2[work.e][work.channel][cell];
        win2.base = (int16_t)winner_base(from, y, x, PITCH_POOL1);
        /* The 5x5 of winner 1 begins a column later than the 6x6, 2's a row, 3's both. No meaning if from is
         * NOWHERE. */
        win2.met = (int16_t)((int)(work.channel * 6 * PLANE2) - from / 2 * (int)ROW2 - from % 2);
        send_word(target.to + 2 * cell, v, round);
    }
}

/* The lane with low factors pools rows 0 to 5, its neighbour rows 6 to 9: each gives the other its chains of the
 * other's rows. */
DEVICE void conv2_pools(memory &m, unsigned round, conv2_work work, bool stores, const float (*chains)[4])
{
    pool2_target target = {m.b2[work.channel], m.run.scale[1], place_of_pool2(m, work.e, work.channel)};
#pragma unroll
    for (unsigned y = 0; y < 3; y++) {
        float both_halves[2][8];
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            unsigned row = 2 * y + i / 4, other = y < 2 ? 6 + row : row;
            float upper = chains[row][i % 4], lower = chains[other][i % 4];
            float mine = work.high ? lower : upper;
            float given = __shfl_xor_sync(0xffffffffu, work.high ? upper : lower, 1);
            both_halves[i / 4][i % 4] = work.high ? given : mine;
            both_halves[i / 4][4 + i % 4] = work.high ? mine : given;
        }
        if (stores && (y < 2 || !work.high))
            conv2_pool(m, round, work, target, work.high ? 3 + y : y, both_halves);
    }
}

static __device__ void conv2_columns(memory &m, unsigned round, both n1, both n2)
{
    float chains[10][4] = {};
    conv2_work work = conv2_work_of(m, n2);
    const conv2_factors *factors = m.factors2[work.e];
    const channel_taps<6> &taps = m.taps2[work.channel];
    unsigned in = m.now.channels1[work.e][0];
#pragma unroll 1
    for (unsigned i = 0; i < n1[work.e]; i++) {
        /* Volatile, or it would be read as late as it is needed. The last one counts for nothing. */
        unsigned next = static_cast<const volatile uint8_t &>(m.now.channels1[work.e][i + 1]);
        conv2_plane(work.high ? factors[in].high[0] + work.x : factors[in].low[0] + work.x,
                    (work.high ? taps.high : taps.low) + in * 5, chains);
        in = next;
    }
    conv2_pools(m, round, work, tid() < 2 * ACROSS2 * (n2.first + n2.second), chains);
}

/* Dropped channels are sent as 0. Returns the first warp that has nothing to compute: the seventh at most. */
static __device__ unsigned conv2_forward(memory &m, unsigned round, both kept1, both kept2)
{
    both n1 = {(unsigned)__popc(kept1.first), (unsigned)__popc(kept1.second)};
    both n2 = {(unsigned)__popc(kept2.first), (unsigned)__popc(kept2.second)};
    unsigned end = (2 * ACROSS2 * (n2.first + n2.second) + LANES - 1) / LANES;
    if (tid() < end * LANES)
        conv2_columns(m, round, n1, n2);
    unsigned t = THREADS - 1 - tid(), channel = t / 25, cell = t % 25; /* the last warps are idle */
    for (unsigned e = 0; e < EACH; e++)
        if (channel < 16 && (kept2[e] >> channel & 1) == 0)
            send_word(place_of_pool2(m, e, channel) + 2 * cell, 0, round);
    return end;
}

#endif
