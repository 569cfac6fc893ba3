/* conv1.cuh - conv1 with ReLU, dropout and pool, and the gradient of its weights. A seat's two samples;
 * dropped channels are left out.
 *
 *   forward   image (3, 32, 32), as factors (tile.cuh) -> pool1 (6, 14, 14), as win1; a warp four rows of pairs of
 *             windows, 28 of 32 lanes, of up to three channels. 98 pairs x 240 FFMA a kept channel: net A 282,000 of a
 *             seat's two samples by 14 of 16 warps; D half, by 8 or 11
 *   weights   a lane a tap, of all three input planes; a warp 25 windows; at most 75 FFMA a live window and channel
 */
#ifndef DTRAIN_FUSED_CONV1_CUH
#define DTRAIN_FUSED_CONV1_CUH

#include "reduce.cuh"
#include "winograd.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* 14 rows of seven pairs. A warp has four rows: two groups of channels are seven warps' work. */
constexpr unsigned PAIRS1 = 14 * ACROSS1, WARP_PAIRS1 = 28;

/* A warp: pairs 28 * unit + lane, of a sample's n kept channels in groups of `together`, KT at most: all pairs of the
 * first group, then those of the second. Lanes 28 to 31 have lane 27's pair once more, and channels that a group lacks
 * are another's: none of these is stored. */
template <int KT>
static __device__ void conv1_pairs(memory &m, unsigned e, unsigned n, unsigned together, unsigned unit)
{
    unsigned lane = tid() % LANES, i = unit * WARP_PAIRS1 + (lane < WARP_PAIRS1 ? lane : WARP_PAIRS1 - 1);
    unsigned group = i / PAIRS1, pair = i % PAIRS1, y = pair / ACROSS1, x = pair % ACROSS1 * 2;
    pair_chains pairs[KT] = {};
    unsigned channel[KT];
    const float4 *taps[KT];
#pragma unroll
    for (unsigned k = 0; k < KT; k++) {
        unsigned number = group * together + k;
        channel[k] = m.now.channels1[e][number < n ? number : 0];
        taps[k] = m.taps1[channel[k]].rows[0];
    }
#pragma unroll 1
    for (unsigned in = 0; in < 3; in++) {
        convolve_plane<KT>(m.factors1[e][in], pair, taps, pairs);
#pragma unroll
        for (int k = 0; k < KT; k++)
            taps[k] += 5 * 2;
    }
#pragma unroll
    for (unsigned k = 0; k < KT; k++) {
        pair_outputs outputs = outputs_of(pairs[k]);
        float d[2];
        int base[2];
#pragma unroll
        for (unsigned window = 0; window < 2; window++) {
            int from;
            d[window] = pool(outputs, window, m.b1[channel[k]], m.run.scale[0], &from);
            base[window] = winner_base(from, y, x + window, PITCH_IMAGE);
        }
        if (lane < WARP_PAIRS1 && group * together + k < n) {
            auto &win1 = m.win1[e][channel[k]];
            *reinterpret_cast<float2 *>(&win1.d[y * 14 + x]) = make_float2(d[0], d[1]);
            win1.base[y * 14 + x] = (int16_t)base[0], win1.base[y * 14 + x + 1] = (int16_t)base[1];
        }
    }
}

/* A sample's kept channels in groups of up to three, as equal as can be: seven warps' work if there are two groups, if
 * there is one four warps', of which the last is half empty. */
static __device__ void conv1_forward(memory &m, both kept)
{
    both n = {(unsigned)__popc(kept.first), (unsigned)__popc(kept.second)};
    both groups = {(n.first + 2) / 3, (n.second + 2) / 3};
    both units = {(7 * groups.first + 1) / 2, (7 * groups.second + 1) / 2};
    unsigned warp = tid() / LANES, e = warp >= units.first, unit = warp - e * units.first;
    if (warp >= units.first + units.second)
        return;
    unsigned together = (n[e] + groups[e] - 1) / groups[e];
    if (together == 3)
        conv1_pairs<3>(m, e, n[e], 3, unit);
    else
        conv1_pairs<2>(m, e, n[e], together, unit);
}
static_assert(2 * PAIRS1 == 7 * WARP_PAIRS1 && EACH * 7 <= WARPS, "a warp has one unit");

/* --- weights ---------------------------------------------------------------------------------- */

/* The 196 windows, as kernels/README.md takes them for the weights: 21 in the last chunk. */
constexpr unsigned CONV1_CHUNKS = 8, CONV1_CHUNK = 25;

/* A warp: a chunk of one sample, a lane a window; channel after channel. Leaves a row of parts. */
static __device__ void conv1_chunks(memory &m, both kept)
{
    unsigned lane = tid() % LANES, warp = tid() / LANES, number = 0;
    unsigned e = warp / CONV1_CHUNKS, at = warp % CONV1_CHUNKS * CONV1_CHUNK + lane;
    uint16_t tap = (uint16_t)((lane < 25 ? lane / 5 * PITCH_IMAGE + lane % 5 : 0) * sizeof(pixel));
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
