/* winograd.cuh - what both convolutions share: a row of five taps at two neighbours by seven products
 * (kernels/README.md), the pool behind them, and lists of the windows through which a gradient passes.
 */
#ifndef DTRAIN_FUSED_WINOGRAD_CUH
#define DTRAIN_FUSED_WINOGRAD_CUH

#include "memory.cuh"

/* The convolutions' weights as convolve_plane takes them: of a row of five, seven and a 0. Once a step and seat. */
static __device__ void make_taps(memory &m)
{
    constexpr unsigned ROWS1 = 6 * 3 * 5, ROWS = ROWS1 + 16 * 6 * 5;
    for (unsigned i = tid(); i < ROWS; i += THREADS) {
        const float *g = small_parameter(m, i / 5 * 28 + i % 5 * 5); /* w2 follows w1 */
        float4 *h = reinterpret_cast<float4 *>(reinterpret_cast<float *>(&m.taps) + i * 8);
        float g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3], g4 = g[4], unit = i < ROWS1 ? 1 / 255.0f : 1;
        float h1 = (g0 + g1 + g2) / 2, h2 = (g0 - g1 + g2) / 2, h5 = g3 + g4;
        h[0] = make_float4(g0 * unit, h1 * unit, h2 * unit, g2 * unit);
        h[1] = make_float4(g3 * unit, h5 * unit, g4 * unit, 0);
    }
}

/* The chains A, B, C, D of both rows of a window. */
struct window {
    float chains[2][4];
};

/* One input plane: the window whose input begins at x, for KT outputs with taps[k]. 70 FFMA an output, 18 LDS of 8
 * bytes a window and 10 of 16 an output. */
template <int KT> DEVICE void convolve_plane(const float *x, unsigned pitch, const float *const *taps, window *windows)
{
    float f[6][7];
#pragma unroll
    for (int r = 0; r < 6; r++) {
        float d[6];
#pragma unroll
        for (int q = 0; q < 3; q++) {
            float2 v = *reinterpret_cast<const float2 *>(x + (unsigned)r * pitch + 2 * q);
            d[2 * q] = v.x, d[2 * q + 1] = v.y;
        }
        f[r][0] = d[0] - d[2], f[r][1] = d[1] + d[2], f[r][2] = d[2] - d[1], f[r][3] = d[1] - d[3];
        f[r][4] = d[3] - d[4], f[r][5] = d[4], f[r][6] = d[4] - d[5];
    }
#pragma unroll
    for (int k = 0; k < KT; k++)
#pragma unroll
        for (int u = 0; u < 5; u++) {
            float4 a = *reinterpret_cast<const float4 *>(taps[k] + u * 8);
            float4 b = *reinterpret_cast<const float4 *>(taps[k] + u * 8 + 4);
#pragma unroll
            for (int row = 0; row < 2; row++) {
                float *chains = windows[k].chains[row];
                const float *factors = f[u + row];
                chains[0] = fmaf(factors[0], a.x, chains[0]), chains[1] = fmaf(factors[1], a.y, chains[1]);
                chains[2] = fmaf(factors[2], a.z, chains[2]), chains[3] = fmaf(factors[3], a.w, chains[3]);
                chains[0] = fmaf(factors[4], b.x, chains[0]), chains[1] = fmaf(factors[5], b.y, chains[1]);
                chains[3] = fmaf(factors[6], b.z, chains[3]);
            }
        }
}

/* Max-pool, bias, ReLU and dropout's scale. *from: which of the four it was, row by row; NOWHERE: no gradient passes.
 */
DEVICE float pool(const window &window, float bias, float scale, int *from)
{
    float four[4];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const float *chains = window.chains[row];
        four[2 * row] = chains[0] + chains[1] + chains[2], four[2 * row + 1] = chains[1] - chains[2] - chains[3];
    }
    float best = four[0];
    int at = 0;
#pragma unroll
    for (int k = 1; k < 4; k++)
        if (!(four[k] <= best) && best == best) /* nothing wins over NaN */
            best = four[k], at = k;
    best += bias;
    float y = (best < 0 ? 0 : best) * scale;
    *from = y > 0 ? at : NOWHERE;
    return y;
}

/* Where a window's winner was read from, in a plane. */
DEVICE int winner_base(int from, unsigned y, unsigned x, unsigned pitch)
{
    return from < 0 ? NOWHERE : (int)((2 * y + (unsigned)from / 2) * pitch + 2 * x + (unsigned)from % 2);
}

/* --- lists of live winners -------------------------------------------------------------------- */

/* The warp's live winners in the order of its lanes; behind them zeros, up to 32. Returns how many are live. */
DEVICE unsigned list_live(winner *list, winner w)
{
    unsigned lane = tid() % LANES, live = __ballot_sync(0xffffffffu, w.d != 0);
    unsigned count = (unsigned)__popc(live), before = (unsigned)__popc(live & ((1u << lane) - 1));
    __syncwarp(); /* the list's last readers are through: a ballot alone orders no memory */
    list[w.d != 0 ? before : count + lane - before] = w.d != 0 ? w : winner{0, 0};
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
