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
DEVICE void make_row_taps(const float *row, float unit, float4 *low, float4 *high)
{
    float g[5] = {row[0], row[1], row[2], row[3], row[4]}; /* read before anything is stored */
    float sum1 = g[0] + g[2] + g[4], rest1 = g[1] + g[3];
    float sum2 = fmaf(16, g[4], fmaf(4, g[2], g[0])), rest2 = fmaf(8, g[3], 2 * g[1]);
    float sum3 = fmaf(16, g[0], fmaf(4, g[2], g[4])), rest3 = fmaf(8, g[1], 2 * g[3]);
    float h1 = (sum1 + rest1) * (-2 / 9.0f), h2 = (sum1 - rest1) * (-2 / 9.0f), h3 = (sum2 + rest2) * (1 / 90.0f),
          h4 = (sum2 - rest2) * (1 / 90.0f), h5 = (sum3 + rest3) * (2 / 45.0f), h6 = (sum3 - rest3) * (2 / 45.0f);
    *low = make_float4(g[0] * unit, h1 * unit, h2 * unit, h3 * unit);
    *high = make_float4(h4 * unit, h5 * unit, h6 * unit, g[4] * unit);
}

/* The taps of a convolution with weights w, times unit, by the threads from `first` on, then the others. Made once a
 * tile, as other numbers lie in their place afterwards. */
template <unsigned CHANNELS, unsigned PLANES, unsigned PITCH_PLANE, unsigned PITCH_ROW>
static __device__ void make_taps(const float *w, float unit, channel_taps<PLANES> *taps, unsigned first)
{
    for (unsigned i = (tid() - first) % THREADS; i < CHANNELS * PLANES * 5; i += THREADS) {
        unsigned plane = i / 5, row = i % 5, at = i % (PLANES * 5);
        channel_taps<PLANES> &channel = taps[plane / PLANES];
        make_row_taps(w + plane * PITCH_PLANE + row * PITCH_ROW, unit, &channel.low[at], &channel.high[at]);
    }
}

#endif
