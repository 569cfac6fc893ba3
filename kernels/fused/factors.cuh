/* factors.cuh - both convolutions go forward by eight products for four neighbours of a row (kernels/README.md); what
 * they multiply is made here. The eight columns of an input plane's row that four neighbours see are a *stretch*: its
 * eight factors are made once, for all channels, and for all rows of outputs that see it. A row of five weights becomes
 * eight *taps*.
 */
#ifndef DTRAIN_FUSED_FACTORS_CUH
#define DTRAIN_FUSED_FACTORS_CUH

#include "memory.cuh"

/* f0 to f7 of a stretch. */
DEVICE void make_factors(const float *d, float4 *low, float4 *high)
{
    float even1 = fmaf(-4.25f, d[4], d[2] + d[6]), odd1 = fmaf(-4.25f, d[3], d[1] + d[5]);
    float even2 = fmaf(0.25f, d[2], fmaf(-1.25f, d[4], d[6])), odd2 = fmaf(0.5f, d[1], fmaf(-2.5f, d[3], 2 * d[5]));
    float even3 = fmaf(4, d[2], fmaf(-5, d[4], d[6])), odd3 = fmaf(2, d[1], fmaf(-2.5f, d[3], 0.5f * d[5]));
    *low = make_float4(fmaf(5.25f, d[4] - d[2], d[0] - d[6]), even1 + odd1, even1 - odd1, even2 + odd2);
    *high = make_float4(even2 - odd2, even3 + odd3, even3 - odd3, fmaf(5.25f, d[3] - d[5], d[7] - d[1]));
}

/* h0 to h7 of a row of five weights g, times unit. */
DEVICE void make_row_taps(const float *g, float unit, float4 *low, float4 *high)
{
    float sum1 = g[0] + g[2] + g[4], rest1 = g[1] + g[3];
    float sum2 = fmaf(16, g[4], fmaf(4, g[2], g[0])), rest2 = fmaf(8, g[3], 2 * g[1]);
    float sum3 = fmaf(16, g[0], fmaf(4, g[2], g[4])), rest3 = fmaf(8, g[1], 2 * g[3]);
    float h1 = (sum1 + rest1) * (-2 / 9.0f), h2 = (sum1 - rest1) * (-2 / 9.0f), h3 = (sum2 + rest2) * (1 / 90.0f),
          h4 = (sum2 - rest2) * (1 / 90.0f), h5 = (sum3 + rest3) * (2 / 45.0f), h6 = (sum3 - rest3) * (2 / 45.0f);
    *low = make_float4(g[0] * unit, h1 * unit, h2 * unit, h3 * unit);
    *high = make_float4(h4 * unit, h5 * unit, h6 * unit, g[4] * unit);
}

/* Row i of all of a convolution's taps: where its five weights are, and where it goes. */
template <unsigned PITCH_PLANE, unsigned PITCH_ROW> DEVICE unsigned row_of_weights(unsigned i)
{
    return i / 5 * PITCH_PLANE + i % 5 * PITCH_ROW;
}
template <unsigned PLANES>
DEVICE void place_row_taps(channel_taps<PLANES> *taps, unsigned i, const float *g, float unit)
{
    channel_taps<PLANES> &channel = taps[i / (5 * PLANES)];
    make_row_taps(g, unit, &channel.low[i % (5 * PLANES)], &channel.high[i % (5 * PLANES)]);
}

/* The taps of both convolutions. Made once a tile, as other numbers lie in their place afterwards. The first threads
 * have a row of either: both are read before one is made. */
DEVICE void make_taps(memory &m)
{
    constexpr unsigned ROWS2 = 16 * 6 * 5, ROWS1 = 6 * 3 * 5;
    unsigned i2 = tid(), i1 = (i2 - ROWS2) % THREADS;
    float g1[5], g2[5];
    const float *w1 = &m.w1[0][0][0] + row_of_weights<25, 5>(i1 < ROWS1 ? i1 : 0);
    const float *w2 = &m.w2[0][0][0] + row_of_weights<PLANE2, ROW2>(i2 < ROWS2 ? i2 : 0);
#pragma unroll
    for (unsigned k = 0; k < 5; k++)
        g1[k] = w1[k], g2[k] = w2[k];
    if (i2 < ROWS2)
        place_row_taps(m.taps2, i2, g2, 1);
    if (i1 < ROWS1)
        place_row_taps(m.taps1, i1, g1, 1 / 255.0f);
}

#endif
