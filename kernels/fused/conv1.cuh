/* conv1.cuh - conv1 with ReLU, dropout and pool, and the gradient of its weights. A seat's two samples;
 * dropped channels are left out.
 *
 *   forward   image (3, 32, 32), as factors (tile.cuh) -> pool1 (6, 14, 14), as win1; a lane four columns by four rows
 *             of up to two channels. 49 parts x 480 FFMA a kept channel: net A 282,000 of a seat's two samples by ten
 *             of 16 warps; D half, by five to eight
 *   weights   a lane a tap, of all three input planes; a warp 25 windows; at most 75 FFMA a live window and channel
 */
#ifndef DTRAIN_FUSED_CONV1_CUH
#define DTRAIN_FUSED_CONV1_CUH

#include "reduce.cuh"
#include "winograd.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* A lane has a part of an output channel: four columns by four rows. Parts are numbered row by row. */
constexpr unsigned PARTS1 = 28 / ROWS1 * ACROSS1;
static_assert(28 % ROWS1 == 0 && ROWS1 % 2 == 0, "parts fill the rows, and have whole windows");

/* The eight chains of each row of a part. */
struct part_chains {
    float m[ROWS1][8];
};

/* Adds the terms of one input plane to a part of KT output channels. taps[k] are those of channel k in low; those in
 * high are 15 further on. A channel takes 160 FFMA. In all 16 LDS of 16 bytes, which lie side by side for neighbouring
 * lanes, and 10 a channel, the same ones for lanes that have the same channels. */
template <int KT>
DEVICE void convolve_plane(const conv1_factors &plane, unsigned part, const float4 *const *taps, part_chains *chains)
{
    float4 low[ROWS1], high[ROWS1]; /* of four rows: each meets four rows of taps */
#pragma unroll
    for (unsigned row = 0; row < ROWS1 - 1; row++)
        low[row] = plane.low[row][part], high[row] = plane.high[row][part];
#pragma unroll
    for (unsigned u = 0; u < 5; u++) {
        unsigned below = u + ROWS1 - 1, at = part + below / ROWS1 * ACROSS1;
        low[below % ROWS1] = plane.low[below % ROWS1][at], high[below % ROWS1] = plane.high[below % ROWS1][at];
#pragma unroll
        for (int k = 0; k < KT; k++) {
            float4 first = taps[k][u], last = taps[k][3 * 5 + u];
#pragma unroll
            for (unsigned row = 0; row < ROWS1; row++) {
                add_terms(chains[k].m[row], low[(u + row) % ROWS1], first);
                add_terms(chains[k].m[row] + 4, high[(u + row) % ROWS1], last);
            }
        }
    }
}

/* The kept channels of both samples, n of each, in groups, each of which a lane has a part of: first twos, then odd
 * ones. */
struct conv1_groups {
    unsigned twos, all;
};
DEVICE conv1_groups groups_of(both n)
{
    unsigned twos = n.first / 2 + n.second / 2;
    return {twos, twos + n.first % 2 + n.second % 2};
}

/* What a lane has: a part, and a group of the kept channels of the seat's sample e, by their numbers among these;
 * second is first again in an odd one. Lanes beyond the last group repeat its last part. The parts of every other group
 * go backward, so that where groups meet lanes read neighbouring factors. Computed twice rather than kept in
 * registers. */
struct conv1_work {
    unsigned e, first, second, part;
};
DEVICE conv1_work conv1_work_of(both n)
{
    conv1_groups groups = groups_of(n);
    unsigned parts = groups.all * PARTS1, i = tid() < parts ? tid() : parts - 1, group = i / PARTS1;
    unsigned there = i % (2 * PARTS1), back = 2 * PARTS1 - 1 - there;
    bool odd = group >= groups.twos;
    unsigned e = odd ? group - groups.twos >= n.first % 2 : group >= n.first / 2;
    unsigned first = odd ? n[e] - 1 : 2 * (group - e * (n.first / 2));
    return {e, first, odd ? first : first + 1, there < back ? there : back};
}

/* Stores windows x and x + 1 of row y of the pool, from the chains of their two rows. */
DEVICE void conv1_store(memory &m, unsigned e, unsigned channel, unsigned y, unsigned x, const float (*chains)[8])
{
    pair_outputs outputs = outputs_of(chains);
    float d[2];
    int base[2];
#pragma unroll
    for (unsigned window = 0; window < 2; window++) {
        int from;
        d[window] = pool(outputs, window, m.b1[channel], m.run.scale[0], &from);
        base[window] = winner_base(from, y, x + window, PITCH_IMAGE);
    }
    auto &win1 = m.win1[e][channel];
    *reinterpret_cast<float2 *>(&win1.d[y * 14 + x]) = make_float2(d[0], d[1]);
    win1.base[y * 14 + x] = (int16_t)base[0], win1.base[y * 14 + x + 1] = (int16_t)base[1];
}

/* KT: how many channels a lane computes. */
template <int KT> static __device__ void conv1_channels(memory &m, both n)
{
    part_chains chains[KT] = {};
    conv1_work work = conv1_work_of(n);
    const conv1_factors *plane = m.factors1[work.e];
    const float4 *taps[KT];
#pragma unroll
    for (unsigned k = 0; k < KT; k++)
        taps[k] = m.taps1[m.now.channels1[work.e][k == 0 ? work.first : work.second]].low;
#pragma unroll 1
    for (unsigned in = 0; in < 3; in++) {
        convolve_plane<KT>(plane[in], work.part, taps, chains);
#pragma unroll
        for (int k = 0; k < KT; k++)
            taps[k] += 5;
    }
    work = conv1_work_of(n);
    if (tid() >= groups_of(n).all * PARTS1)
        return;
#pragma unroll
    for (unsigned k = 0; k < KT; k++) {
        unsigned channel = m.now.channels1[work.e][k == 0 ? work.first : work.second];
#pragma unroll
        for (unsigned pair = 0; pair < ROWS1 / 2; pair++)
            conv1_store(m, work.e, channel, work.part / ACROSS1 * (ROWS1 / 2) + pair, work.part % ACROSS1 * 2,
                        chains[k].m + 2 * pair);
    }
}

/* Two channels a lane; one in the warps that have odd ones alone. Returns the first warp that has nothing to compute:
 * at most the eleventh. */
static __device__ unsigned conv1_forward(memory &m, both kept)
{
    both n = {(unsigned)__popc(kept.first), (unsigned)__popc(kept.second)};
    conv1_groups groups = groups_of(n);
    unsigned begin = tid() / LANES * LANES;
    if (begin < groups.twos * PARTS1)
        conv1_channels<2>(m, n);
    else if (begin < groups.all * PARTS1)
        conv1_channels<1>(m, n);
    return (groups.all * PARTS1 + LANES - 1) / LANES;
}

/* --- the weights' gradient -------------------------------------------------------------------- */

/* The chunks of the 196 windows (kernels/README.md); the last has 21. */
constexpr unsigned CONV1_CHUNKS = 8, CONV1_CHUNK = 25;
static_assert(EACH * CONV1_CHUNKS == WARPS, "m.parts has a place for each");

/* A warp has a chunk of the windows of every other kept channel, those of both samples one after the other: a lane
 * reads one window, then has one tap of each plane. Leaves the chunk's sums in m.parts, a row a kept channel. */
static __device__ void conv1_chunks(memory &m, both kept)
{
    unsigned lane = tid() % LANES, warp = tid() / LANES, chunk = warp % CONV1_CHUNKS, at = chunk * CONV1_CHUNK + lane;
    unsigned n0 = (unsigned)__popc(kept.first), all = n0 + (unsigned)__popc(kept.second);
    /* Lanes beyond the taps read lane 24's: a bank that gives half a warp two words takes twice as long. */
    unsigned place = lane < 25 ? lane / 5 * PITCH_IMAGE + lane % 5 : 4 * PITCH_IMAGE + 4;
    uint16_t tap = (uint16_t)(place * sizeof(pixel));
#pragma unroll 1
    for (unsigned c = warp / CONV1_CHUNKS; c < all; c += WARPS / CONV1_CHUNKS) {
        unsigned e = c >= n0, number = c - e * n0;
        const char *image = reinterpret_cast<const char *>(m.image[e][0]) + tap;
        winner w = {0, 0};
        if (lane < CONV1_CHUNK && at < 196) {
            auto &win1 = m.win1[e][m.now.channels1[e][number]];
            w = winner{win1.d[at], win1.base[at]};
        }
        float bias = warp_tree(w.d), chains[3] = {};
        unsigned count = list_live(m.list[warp], w);
#pragma unroll 1
        for (unsigned i = 0; i < count; i += 4) {
            float d[4];
            int base[4];
            four_of(m.list[warp], i, d, base);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                pixel p = reinterpret_cast<const pixel *>(image)[base[j]];
                chains[0] = fmaf(float_of_bits((int32_t)(p.red_green << 16)), d[j], chains[0]);
                chains[1] = fmaf(float_of_bits((int32_t)(p.red_green & 0xffff0000u)), d[j], chains[1]);
                chains[2] = fmaf(p.blue, d[j], chains[2]);
            }
        }
        float *part = m.parts[e * CONV1_CHUNKS + chunk][number];
        if (lane < 25)
            part[lane] = chains[0], part[25 + lane] = chains[1], part[50 + lane] = chains[2];
        if (lane == 25)
            part[75] = bias;
    }
}

/* A thread a number, 75 weights and the bias of each channel, over both samples, whose terms are rounded each by
 * itself. */
static __device__ void conv1_sum(memory &m, both kept)
{
    unsigned channel = tid() / 76, i = tid() % 76;
    long long units = 0;
    bool refused = false;
    if (channel >= 6)
        return;
#pragma unroll /* both samples side by side; of a channel that is not kept what lies there is read, but not used */
    for (unsigned e = 0; e < EACH; e++) {
        unsigned number = (unsigned)__popc(kept[e] & ((1u << channel) - 1));
        float sum = m.parts[e * CONV1_CHUNKS][number][i];
#pragma unroll
        for (unsigned chunk = 1; chunk < CONV1_CHUNKS; chunk++)
            sum += m.parts[e * CONV1_CHUNKS + chunk][number][i];
        sum = i < 75 ? sum * (1 / 255.0f) : sum;
        units += fixed_point((kept[e] >> channel & 1) != 0 ? sum : 0, &refused);
    }
    add_sum(m.sums + SUMS_SMALL + (i < 75 ? AT_W1 + channel * 75 + i : AT_B1 + channel), units);
    refuse_if(m, refused);
}

static __device__ void conv1_weight_gradient(memory &m, both kept)
{
    conv1_chunks(m, kept);
    __syncthreads();
    conv1_sum(m, kept);
}

#endif
