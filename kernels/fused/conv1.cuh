/* conv1.cuh - conv1 with ReLU, dropout and pool, and the gradient of its weights. A seat's two samples;
 * dropped channels are left out.
 *
 *   forward   image (3, 32, 32) -> pool1 (6, 14, 14); a warp two rows of windows of up to three channels
 *             196 windows x 210 FFMA a kept channel: net A 494,000 of a seat's two samples, D half
 *   weights   a lane a tap, of all three input planes; a warp 25 windows; at most 75 FFMA a live window and channel
 */
#ifndef DTRAIN_FUSED_CONV1_CUH
#define DTRAIN_FUSED_CONV1_CUH

#include "reduce.cuh"
#include "winograd.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* A warp: two rows of windows, of channels number first .. first + count (1..KT) of the kept ones. */
template <int KT>
static __device__ void conv1_rows(memory &m, unsigned e, unsigned first, unsigned count,
                                  unsigned two_rows)
{
    unsigned lane = tid() % LANES, x = lane % 16, y = two_rows * 2 + lane / 16;
    bool mine = x < 14;
    x = mine ? x : 13;
    window windows[KT] = {};
    unsigned channel[KT];
#pragma unroll
    for (unsigned k = 0; k < KT; k++)
        channel[k] = m.channels1[e][first + (k < count ? k : 0)]; /* the first one twice, if they are too few */
#pragma unroll 1
    for (unsigned in = 0; in < 3; in++) {
        const float *taps[KT];
#pragma unroll
        for (int k = 0; k < KT; k++)
            taps[k] = m.taps.conv1[channel[k]][in];
        convolve_plane<KT>(&m.image[e][in][2 * y][2 * x], PITCH_IMAGE, taps, windows);
    }
#pragma unroll
    for (int k = 0; k < KT; k++) {
        int from;
        float v = pool(windows[k], m.b1[channel[k]], m.run.scale[0], &from);
        if (mine) {
            m.pool1[e][channel[k]][y][x] = v;
            m.win1[e][channel[k]][y * 14 + x].base = winner_base(from, y, x, PITCH_IMAGE);
        }
    }
}

/* A sample's kept channels in groups of up to three, as equal as they can be; seven warps a group. */
static __device__ void conv1_forward(memory &m, both kept)
{
    both n = {(unsigned)__popc(kept.first), (unsigned)__popc(kept.second)};
    both groups = {(n.first + 2) / 3, (n.second + 2) / 3};
    for (unsigned unit = tid() / LANES; unit < 7 * (groups.first + groups.second); unit += WARPS) {
        unsigned e = unit >= 7 * groups.first, u = unit - e * 7 * groups.first;
        unsigned half = groups[e] == 2 ? n[e] / 2 : 0, first = u < 7 ? 0 : half;
        unsigned count = u < 7 && half != 0 ? half : n[e] - half;
        if (count == 3)
            conv1_rows<3>(m, e, first, count, u % 7);
        else
            conv1_rows<2>(m, e, first, count, u % 7);
    }
}

/* --- weights ---------------------------------------------------------------------------------- */

/* The 196 windows, as kernels/README.md takes them for the weights: 21 in the last chunk. */
constexpr unsigned CONV1_CHUNKS = 8, CONV1_CHUNK = 25;

/* A warp: a chunk of one sample, a lane a window; channel after channel. Leaves a row of parts. */
static __device__ void conv1_chunks(memory &m, both kept)
{
    unsigned lane = tid() % LANES, warp = tid() / LANES, number = 0;
    unsigned e = warp / CONV1_CHUNKS, at = warp % CONV1_CHUNKS * CONV1_CHUNK + lane;
    const float *image = &m.image[e][0][0][lane < 25 ? lane / 5 * PITCH_IMAGE + lane % 5 : 0];
#pragma unroll 1
    for (unsigned rest = kept[e]; rest != 0; rest &= rest - 1, number++) {
        winner w = {0, 0};
        if (lane < CONV1_CHUNK && at < 196)
            w = m.win1[e][__ffs((int)rest) - 1][at];
        float bias = warp_tree(w.d), chains[3] = {};
        unsigned count = list_live(m.list[warp], w);
#pragma unroll 1
        for (unsigned i = 0; i < count; i += 4) { /* the zeros behind the last may be multiplied: pixels are finite */
            float d[4];
            int base[4];
            four_of(m.list[warp], i, d, base);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int in = 0; in < 3; in++)
                    chains[in] = fmaf(image[base[j] + in * PLANE_IMAGE], d[j], chains[in]);
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
        units += fixed_point(m, i < 75 ? sum * (1 / 255.0f) : sum);
    }
    add_units(m.sums + SUMS_SMALL + (i < 75 ? AT_W1 + channel * 84 + i / 25 * 28 + i % 25 : AT_B1 + channel), units);
}

static __device__ void conv1_weights(memory &m, both kept)
{
    conv1_chunks(m, kept);
    __syncthreads();
    conv1_sum(m, kept);
}

#endif
