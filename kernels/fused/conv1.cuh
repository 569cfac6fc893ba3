/* conv1.cuh - conv1 with ReLU, dropout and pool, and the gradient of its weights. A seat's two samples;
 * dropped channels are left out.
 *
 *   forward   image (3, 32, 32), as factors (tile.cuh) -> pool1 (6, 14, 14), as win1; a lane four columns by four rows
 *             of up to two channels. 49 places x 480 FFMA a kept channel: net A 282,000 of a seat's two samples by ten
 *             of 16 warps; D half, by five to eight
 *   weights   a lane a tap, of all three input planes; a warp 25 windows; at most 75 FFMA a live window and channel
 */
#ifndef DTRAIN_FUSED_CONV1_CUH
#define DTRAIN_FUSED_CONV1_CUH

#include "reduce.cuh"
#include "winograd.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* A lane's part of a channel: four columns by four rows. They are numbered row by row. */
constexpr unsigned PLACES1 = 28 / ROWS1 * ACROSS1;
static_assert(28 % ROWS1 == 0 && ROWS1 % 2 == 0, "places fill the rows, and have whole windows");

/* The eight chains of each row of a place. */
struct place_chains {
    float m[ROWS1][8];
};

/* One input plane: a place of KT outputs, whose taps begin at taps[k], in low; those in high are 15 further on. 160
 * FFMA an output; 16 LDS of 16 bytes, which lie side by side for neighbours, and 10 an output, the same ones for lanes
 * that have the same outputs. */
template <int KT>
DEVICE void convolve_plane(const conv1_factors &plane, unsigned place, const float4 *const *taps, place_chains *chains)
{
    float4 low[ROWS1], high[ROWS1]; /* of four rows: each meets four rows of taps */
#pragma unroll
    for (unsigned row = 0; row < ROWS1 - 1; row++)
        low[row] = plane.low[row][place], high[row] = plane.high[row][place];
#pragma unroll
    for (unsigned u = 0; u < 5; u++) {
        unsigned below = u + ROWS1 - 1, at = place + below / ROWS1 * ACROSS1;
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

/* How many places there are: of twos of the kept channels of both samples, n each, and of odd ones. */
struct conv1_places {
    unsigned of_twos, all;
};
DEVICE conv1_places count_places(both n)
{
    unsigned twos = n.first / 2 + n.second / 2, odd = n.first % 2 + n.second % 2;
    return {twos * PLACES1, (twos + odd) * PLACES1};
}

/* What a lane has: a place, and of the seat's sample e the kept channels by these numbers; second: if there is one,
 * else first. First come the places of twos; a lane beyond all has the last. Asked again, not kept in registers. */
struct conv1_work {
    unsigned e, first, second, place;
};
DEVICE conv1_work conv1_work_of(both n)
{
    unsigned places = count_places(n).all, i = tid() < places ? tid() : places - 1, group = i / PLACES1;
    unsigned twos = n.first / 2 + n.second / 2;
    bool odd = group >= twos;
    unsigned e = odd ? group - twos >= n.first % 2 : group >= n.first / 2;
    unsigned first = odd ? n[e] - 1 : 2 * (group - e * (n.first / 2));
    return {e, first, odd ? first : first + 1, i % PLACES1};
}

/* A pair of windows, row y of them, from x on. */
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

/* KT: channels that a lane computes. */
template <int KT> static __device__ void conv1_channels(memory &m, both n)
{
    place_chains chains[KT] = {};
    conv1_work work = conv1_work_of(n);
    const conv1_factors *plane = m.factors1[work.e];
    const float4 *taps[KT];
#pragma unroll
    for (unsigned k = 0; k < KT; k++)
        taps[k] = m.taps1[m.now.channels1[work.e][k == 0 ? work.first : work.second]].low;
#pragma unroll 1
    for (unsigned in = 0; in < 3; in++) {
        convolve_plane<KT>(plane[in], work.place, taps, chains);
#pragma unroll
        for (int k = 0; k < KT; k++)
            taps[k] += 5;
    }
    work = conv1_work_of(n);
    if (tid() >= count_places(n).all)
        return;
#pragma unroll
    for (unsigned k = 0; k < KT; k++)
#pragma unroll
        for (unsigned pair = 0; pair < ROWS1 / 2; pair++)
            conv1_store(m, work.e, m.now.channels1[work.e][k == 0 ? work.first : work.second],
                        work.place / ACROSS1 * (ROWS1 / 2) + pair, work.place % ACROSS1 * 2, chains[k].m + 2 * pair);
}

/* Two channels a lane, but for the warps of odd ones alone. Returns the first warp that has nothing to compute: at most
 * the eleventh. */
static __device__ unsigned conv1_forward(memory &m, both kept)
{
    both n = {(unsigned)__popc(kept.first), (unsigned)__popc(kept.second)};
    conv1_places places = count_places(n);
    unsigned begin = tid() / LANES * LANES;
    if (begin < places.of_twos)
        conv1_channels<2>(m, n);
    else if (begin < places.all)
        conv1_channels<1>(m, n);
    return (places.all + LANES - 1) / LANES;
}

/* --- weights ---------------------------------------------------------------------------------- */

/* The 196 windows, as kernels/README.md takes them for the weights: 21 in the last chunk. */
constexpr unsigned CONV1_CHUNKS = 8, CONV1_CHUNK = 25;

/* A warp: a chunk of one sample, a lane a window; channel after channel. Leaves a row of parts. */
static __device__ void conv1_chunks(memory &m, both kept)
{
    unsigned lane = tid() % LANES, warp = tid() / LANES, number = 0;
    unsigned e = warp / CONV1_CHUNKS, at = warp % CONV1_CHUNKS * CONV1_CHUNK + lane;
    /* Lanes beyond the taps have lane 24's: a bank that gives half a warp two words takes twice as long. */
    unsigned place = lane < 25 ? lane / 5 * PITCH_IMAGE + lane % 5 : 4 * PITCH_IMAGE + 4;
    uint16_t tap = (uint16_t)(place * sizeof(pixel));
    const char *image = reinterpret_cast<const char *>(m.image[e][0]) + tap;
#pragma unroll 1
    for (unsigned rest = kept[e]; rest != 0; rest &= rest - 1, number++) {
        winner w = {0, 0};
        if (lane < CONV1_CHUNK && at < 196) {
            auto &win1 = m.win1[e][__ffs((int)rest) - 1];
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
        float *part = m.parts[warp][number];
        if (lane < 25)
            part[lane] = chains[0], part[25 + lane] = chains[1], part[50 + lane] = chains[2];
        if (lane == 25)
            part[75] = bias;
    }
}

/* A thread a number: 75 weights and the bias of each channel, over both samples, each rounded by itself. */
static __device__ void conv1_sum(memory &m, both kept)
{
    unsigned channel = tid() / 76, i = tid() % 76;
    long long units = 0;
    bool refused = false;
    if (channel >= 6)
        return;
    for (unsigned e = 0; e < EACH; e++) {
        if ((kept[e] >> channel & 1) == 0)
            continue;
        unsigned number = (unsigned)__popc(kept[e] & ((1u << channel) - 1));
        float sum = m.parts[e * CONV1_CHUNKS][number][i];
#pragma unroll
        for (unsigned chunk = 1; chunk < CONV1_CHUNKS; chunk++)
            sum += m.parts[e * CONV1_CHUNKS + chunk][number][i];
        units += fixed_point(i < 75 ? sum * (1 / 255.0f) : sum, &refused);
    }
    add_sum(m.sums + SUMS_SMALL + (i < 75 ? AT_W1 + channel * 75 + i : AT_B1 + channel), units);
    refuse_if(m, refused);
}

static __device__ void conv1_weights(memory &m, both kept)
{
    conv1_chunks(m, kept);
    __syncthreads();
    conv1_sum(m, kept);
}

#endif
