/* winograd.h - four neighbours of a row under five taps by 8 multiplications instead of 20.
 *
 *   y[i] = d[i] g[0] + d[i + 1] g[1] + ... + d[i + 4] g[4],   i = 0..3
 *
 * Two polynomials of four and five terms multiply to one of eight, which is known by its values at eight points, here
 * 0, 1, -1, 2, -2, 1/2, -1/2 and infinity: a product at each. This is the same backwards (Winograd, Arithmetic
 * Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015).
 * kernels/README.md has the formulas, how to check them, and how exact they are. Each product is of a factor of columns
 * and one of weights; it is first summed over all channels and rows, and of the eight sums come the four numbers.
 */
#ifndef DTRAIN_CPU_WINOGRAD_H
#define DTRAIN_CPU_WINOGRAD_H

#include <math.h>

#include "vector.h"

enum { WINOGRAD_PRODUCTS = 8 };

/* The factors of eight columns, d[0] to d[7]. In each lane those of another four neighbours. */
KERNEL void winograd_columns(const wide d[8], wide factors[WINOGRAD_PRODUCTS])
{
    wide even[3] = {d[2] + d[6], d[6], d[6]}, odd[3] = {d[1] + d[5], 2 * d[5], 0.5f * d[5]};
    wide_fma(-4.25f, &d[4], &even[0]);
    wide_fma(-1.25f, &d[4], &even[1]);
    wide_fma(0.25f, &d[2], &even[1]);
    wide_fma(-5, &d[4], &even[2]);
    wide_fma(4, &d[2], &even[2]);
    wide_fma(-4.25f, &d[3], &odd[0]);
    wide_fma(-2.5f, &d[3], &odd[1]);
    wide_fma(0.5f, &d[1], &odd[1]);
    wide_fma(-2.5f, &d[3], &odd[2]);
    wide_fma(2, &d[1], &odd[2]);
    wide first = d[4] - d[2], last = d[3] - d[5];
    factors[0] = d[0] - d[6];
    wide_fma(5.25f, &first, &factors[0]);
    UNROLL for (int k = 0; k < 3; k++) {
        factors[1 + 2 * k] = even[k] + odd[k];
        factors[2 + 2 * k] = even[k] - odd[k];
    }
    factors[7] = d[7] - d[1];
    wide_fma(5.25f, &last, &factors[7]);
}

/* The factors of five weights. */
KERNEL void winograd_weights(const float g[5], float factors[WINOGRAD_PRODUCTS])
{
    const float even[3] = {g[0] + g[2] + g[4], fmaf(16, g[4], fmaf(4, g[2], g[0])),
                           fmaf(16, g[0], fmaf(4, g[2], g[4]))};
    const float odd[3] = {g[1] + g[3], fmaf(8, g[3], 2 * g[1]), fmaf(8, g[1], 2 * g[3])};
    static const float units[3] = {-2 / 9.0f, 1 / 90.0f, 2 / 45.0f};
    factors[0] = g[0];
    for (int k = 0; k < 3; k++) {
        factors[1 + 2 * k] = (even[k] + odd[k]) * units[k];
        factors[2 + 2 * k] = (even[k] - odd[k]) * units[k];
    }
    factors[7] = g[4];
}

/* The four neighbours, of the sums of the products. In each lane another four. */
KERNEL void winograd_outputs(const vec sums[WINOGRAD_PRODUCTS], vec y[4])
{
    vec even[3], odd[3];
    UNROLL for (int k = 0; k < 3; k++) {
        even[k] = sums[1 + 2 * k] + sums[2 + 2 * k];
        odd[k] = sums[1 + 2 * k] - sums[2 + 2 * k];
    }
    y[0] = sums[0] + even[0] + even[1] + even[2];
    y[1] = vec_fma(vec_all(0.5f), odd[2], vec_fma(vec_all(2), odd[1], odd[0]));
    y[2] = vec_fma(vec_all(0.25f), even[2], vec_fma(vec_all(4), even[1], even[0]));
    y[3] = vec_fma(vec_all(0.125f), odd[2], vec_fma(vec_all(8), odd[1], odd[0])) + sums[7];
}

/* The same of two rows: eight numbers, as the two pool windows side by side that they are. */
KERNEL void winograd_windows(vec sums[2][WINOGRAD_PRODUCTS], vec windows[2][4])
{
    UNROLL for (int row = 0; row < 2; row++) {
        vec y[4];
        winograd_outputs(sums[row], y);
        UNROLL for (int k = 0; k < 4; k++)
            windows[k / 2][2 * row + k % 2] = y[k];
    }
}

/* How many of the eight sums to make in one pass over channels and rows, where each takes that many registers: at least
 * eight registers hide the latency of multiply-adds, and none must be spilled. One in any case: its caller sees to it
 * that it fits. */
KERNEL int winograd_together(int registers)
{
    enum { ROOM = VECTOR_REGISTERS - (VECTOR_REGISTERS == 32 ? 6 : 4) }; /* the others hold factors */
    int together = WINOGRAD_PRODUCTS;
    while (together > 1 && together * registers > ROOM)
        together /= 2;
    return together;
}

#endif
