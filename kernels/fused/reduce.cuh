/* reduce.cuh - how a term joins the batch's sum: rounded once to fixed point (kernels/README.md), then added to a
 * 64-bit integer in the L2 by a reduction that waits for nothing. With net A up to 82,112 reductions of 8 bytes a tile:
 * 48,000 of conv3, 11,136 of the dense layers and biases, and from each of the eight seats 2,872 of conv1 and conv2. A
 * step of the prototype took 2 us less without them on an H200 with A; with D there was no difference.
 */
#ifndef DTRAIN_FUSED_REDUCE_CUH
#define DTRAIN_FUSED_REDUCE_CUH

#include "memory.cuh"

/* In EXACT_UNITs, ties to even; 0 for a term that is not finite or not below the limit, which makes *refused true. */
DEVICE long long fixed_point(float term, bool *refused)
{
    bool fits = fabsf(term) < EXACT_LIMIT;
    *refused |= !fits;
    return __float2ll_rn(fits ? term * 0x1p36f : 0); /* the product is exact */
}

DEVICE void refuse_if(memory &m, bool refused)
{
    if (refused)
        m.refused = 1;
}

/* Adds N terms to numbers first, first + pitch, ... of the step's sums. All are rounded before the first is sent, and
 * zeros are sent, too: a branch for each would leave a warp waiting for one after the other. */
template <int N> DEVICE void add_terms_to_sums(memory &m, unsigned first, unsigned pitch, const float *terms)
{
    int64_t *sums = m.sums + first;
    long long units[N];
    bool refused = false;
#pragma unroll
    for (int j = 0; j < N; j++)
        units[j] = fixed_point(terms[j], &refused);
#pragma unroll
    for (int j = 0; j < N; j++)
        add_sum(sums + (unsigned)j * pitch, units[j]);
    refuse_if(m, refused);
}

DEVICE void add_term(memory &m, unsigned i, float term)
{
    add_terms_to_sums<1>(m, i, 0, &term);
}

/* The sum of v over a warp by the tree of kernels/README.md, in every lane. */
DEVICE float warp_tree(float v)
{
#pragma unroll
    for (unsigned apart = LANES / 2; apart > 0; apart /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, apart);
    return v;
}

#endif
