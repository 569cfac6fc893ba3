/* reduce.cuh - how a term joins the batch's sum: rounded once to fixed point (kernels/README.md), then added to a
 * 64-bit integer in the L2 by a reduction that waits for nothing. Up to 82,110 of 8 bytes a tile: 48,000 of
 * conv3, 11,134 of the dense layers and biases, and from each of the eight seats 2,872 of conv1 and conv2. With net A a
 * step of the prototype took 2 us less without them on an H200; with D there was no difference.
 */
#ifndef DTRAIN_FUSED_REDUCE_CUH
#define DTRAIN_FUSED_REDUCE_CUH

#include "memory.cuh"

/* Whether it is finite and below the limit. */
DEVICE bool fits_fixed_point(float term)
{
    return fabsf(term) < EXACT_LIMIT;
}

/* In EXACT_UNITs, ties to even; 0 for one that does not fit, which m.refused then says. */
DEVICE long long fixed_point(memory &m, float term)
{
    if (fits_fixed_point(term))
        return __float2ll_rn(term * 0x1p36f); /* the product is exact */
    m.refused = 1;
    return 0;
}

DEVICE void add_units(int64_t *sum, long long units)
{
    if (units != 0)
        add_sum(sum, units);
}

/* To number i of the step's sums. */
DEVICE void add_term(memory &m, unsigned i, float term)
{
    add_units(m.sums + i, fixed_point(m, term));
}

/* Of a warp: the tree of kernels/README.md. Every lane gets it. */
DEVICE float warp_tree(float v)
{
#pragma unroll
    for (unsigned apart = LANES / 2; apart > 0; apart /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, apart);
    return v;
}

#endif
