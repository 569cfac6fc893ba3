/* winograd.cuh - what both convolutions share: products of factors and taps (factors.cuh), the pool after them, and
 * lists of the windows through which a gradient passes.
 *
 * Forward a lane has four columns of several rows of the convolution, which see one stretch of each row of every input
 * plane. Two of its rows are a *pair*: two neighbouring windows of the pool.
 */
#ifndef DTRAIN_FUSED_WINOGRAD_CUH
#define DTRAIN_FUSED_WINOGRAD_CUH

#include "factors.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* Adds one term to each of four chains. */
DEVICE void add_terms(float *chains, float4 f, float4 h)
{
    chains[0] = fmaf(f.x, h.x, chains[0]), chains[1] = fmaf(f.y, h.y, chains[1]);
    chains[2] = fmaf(f.z, h.z, chains[2]), chains[3] = fmaf(f.w, h.w, chains[3]);
}

/* y0 to y3 of both rows of a pair. */
struct pair_outputs {
    float y[2][4];
};

/* chains: the eight of each row of the pair. */
DEVICE pair_outputs outputs_of(const float (*chains)[8])
{
    pair_outputs outputs;
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const float *m = chains[row];
        float *y = outputs.y[row];
        float sum1 = m[1] + m[2], sum2 = m[3] + m[4], sum3 = m[5] + m[6];
        float rest1 = m[1] - m[2], rest2 = m[3] - m[4], rest3 = m[5] - m[6];
        y[0] = m[0] + sum1 + sum2 + sum3;
        y[1] = fmaf(0.5f, rest3, fmaf(2, rest2, rest1));
        y[2] = fmaf(0.25f, sum3, fmaf(4, sum2, sum1));
        y[3] = fmaf(0.125f, rest3, fmaf(8, rest2, rest1)) + m[7];
    }
    return outputs;
}

/* Max-pool, bias, ReLU and dropout's scale, of a pair's window 0 or 1. *from: which of the window's four numbers won,
 * row by row; NOWHERE: no gradient passes. */
DEVICE float pool(const pair_outputs &outputs, unsigned window, float bias, float scale, int *from)
{
    float best = outputs.y[0][2 * window];
    int at = 0;
#pragma unroll
    for (unsigned k = 1; k < 4; k++) {
        float y = outputs.y[k / 2][2 * window + k % 2];
        if (!(y <= best) && best == best) /* nothing wins over NaN */
            best = y, at = (int)k;
    }
    best += bias;
    float y = (best < 0 ? 0 : best) * scale;
    *from = y > 0 ? at : NOWHERE;
    return y;
}

/* Where in a plane of the input, whose rows are `pitch` apart, the 5x5 of the winner of window (y, x) begins. */
DEVICE int winner_base(int from, unsigned y, unsigned x, unsigned pitch)
{
    return from < 0 ? NOWHERE : (int)((2 * y + (unsigned)from / 2) * pitch + 2 * x + (unsigned)from % 2);
}

/* --- lists of live winners -------------------------------------------------------------------- */

/* Lists the warp's live winners in the order of its lanes; after them, up to 32, the first one's place with zeros: what
 * these multiply was multiplied before, so if that is not finite, the chain is not finite anyway. Returns how many are
 * live. */
DEVICE unsigned list_live(winner *list, winner w)
{
    unsigned lane = tid() % LANES, live = __ballot_sync(0xffffffffu, w.d != 0);
    unsigned count = (unsigned)__popc(live), before = (unsigned)__popc(live & ((1u << lane) - 1));
    int first = __shfl_sync(0xffffffffu, w.base, live != 0 ? (unsigned)__ffs((int)live) - 1 : 0);
    __syncwarp(); /* the list's last readers are through: a ballot alone orders no memory */
    list[w.d != 0 ? before : count + lane - before] = w.d != 0 ? w : winner{0, first};
    __syncwarp();
    return count;
}

/* Four of a list, from i on, a multiple of four. */
DEVICE void four_of(const winner *list, unsigned i, float *d, int *base)
{
    float4 a = *reinterpret_cast<const float4 *>(list + i), b = *reinterpret_cast<const float4 *>(list + i + 2);
    d[0] = a.x, d[1] = a.z, d[2] = b.x, d[3] = b.z;
    base[0] = bits_of_float(a.y), base[1] = bits_of_float(a.w), base[2] = bits_of_float(b.y),
    base[3] = bits_of_float(b.w);
}

#endif
