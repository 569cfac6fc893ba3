/* winograd.h - two neighbours of a row under five taps by 7 multiplications instead of 10.
 *
 *   y0 = d0 g0 + d1 g1 + d2 g2 + d3 g3 + d4 g4,  y1 = d1 g0 + d2 g1 + d3 g2 + d4 g3 + d5 g4
 *
 * share work (Winograd, Arithmetic Complexity of Computations, 1980; F(2,3) for taps 0-2, F(2,2) for taps 3-4):
 *
 *   A = (d0-d2) g0 + (d3-d4) g3               B = (d1+d2) (g0+g1+g2)/2 + d4 (g3+g4)
 *   D = (d1-d3) g2 + (d4-d5) g4               C = (d2-d1) (g0-g1+g2)/2
 *   y0 = A + B + C,  y1 = B - C - D
 *
 * A to D are first summed over all channels and rows.
 */
#ifndef DTRAIN_CPU_WINOGRAD_H
#define DTRAIN_CPU_WINOGRAD_H

#include "vector.h"

enum { WINOGRAD_A, WINOGRAD_B, WINOGRAD_C, WINOGRAD_D, WINOGRAD_SUMS, WINOGRAD_PRODUCTS = 7 };

/* The sum each product is added to: 0 to 3 are the first of A to D, 4 to 6 the second of A, B and D. */
static const int winograd_sum[WINOGRAD_PRODUCTS] = {WINOGRAD_A, WINOGRAD_B, WINOGRAD_C, WINOGRAD_D,
                                                    WINOGRAD_A, WINOGRAD_B, WINOGRAD_D};

/* The products' first factors, of numbers d[6], which may be whole ones. */
#define WINOGRAD_COLUMNS(d, factors)   \
    do {                               \
        (factors)[0] = (d)[0] - (d)[2]; \
        (factors)[1] = (d)[1] + (d)[2]; \
        (factors)[2] = (d)[2] - (d)[1]; \
        (factors)[3] = (d)[1] - (d)[3]; \
        (factors)[4] = (d)[3] - (d)[4]; \
        (factors)[5] = (d)[4];         \
        (factors)[6] = (d)[4] - (d)[5]; \
    } while (0)

/* And the second ones. */
KERNEL void winograd_weights(const float g[5], float factors[WINOGRAD_PRODUCTS])
{
    factors[0] = g[0];
    factors[1] = (g[0] + g[1] + g[2]) / 2;
    factors[2] = (g[0] - g[1] + g[2]) / 2;
    factors[3] = g[2];
    factors[4] = g[3];
    factors[5] = g[3] + g[4];
    factors[6] = g[4];
}

/* y0 or y1, of the sums A to D. */
KERNEL vec winograd_output(int y, vec a, vec b, vec c, vec d)
{
    return y == 0 ? a + b + c : b - c - d;
}

/* How many of the sums to make in one pass over the factors, where each takes that many registers: at least eight
 * registers hide the latency of multiply-adds, and none must be spilled. */
KERNEL int winograd_together(int registers)
{
    enum { ROOM = VECTOR_REGISTERS - 6 }; /* the others hold factors */
    return 4 * registers <= ROOM ? 4 : 2 * registers <= ROOM ? 2 : 1;
}

#endif
