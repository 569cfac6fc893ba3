/* gradient.cuh - the gradient of a tile: its phases, in order. */
#ifndef DTRAIN_FUSED_GRADIENT_CUH
#define DTRAIN_FUSED_GRADIENT_CUH

#include "conv1.cuh"
#include "conv2.cuh"
#include "conv2_back.cuh"
#include "conv3.cuh"
#include "head.cuh"
#include "tile.cuh"
#include "update.cuh"

/* Which channels of conv1 (layer 1) or conv2 the masks of this seat's samples keep, a bit each. */
DEVICE both kept_of(const memory &m, int layer)
{
    unsigned first = sample_of(m, 0), second = sample_of(m, 1);
    return layer == 1 ? both{m.now.keep1[first], m.now.keep1[second]} : both{m.now.keep2[first], m.now.keep2[second]};
}

DEVICE void forward_to_pool2(memory &m)
{
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    if (tid() == 0)
        m.round++; /* the round before was last read before a barrier */
    make_taps(m);
    __syncthreads();
    phase_ends(m, PHASE_TAPS);
    unsigned idle = conv1_forward(m, kept1);
    number_slots(m, idle, kept1);
    tell_dense_weights();
    draw_tile(m.coming);
    __syncthreads();
    phase_ends(m, PHASE_CONV1);
    prepare_conv2(m, kept1);
    __syncthreads();
    phase_ends(m, PHASE_TAPS);
    idle = conv2_forward(m, m.round, kept1, kept2);
    update_conv3(m, idle);
    phase_ends(m, PHASE_CONV2);
    await_dense_weights(m);
    receive_pool2(m, m.round);
}

/* Forward as far as fc1. */
DEVICE void forward(memory &m)
{
    forward_to_pool2(m);
    fetch_dense_weights(m, 4 * LANES); /* while conv3 goes forward, by threads that it leaves idle */
    phase_ends(m, PHASE_POOL2);
    conv3_forward(m, m.round);
    draw_dense_masks(m, 4 * LANES); /* by threads that conv3 leaves idle */
    settle_dense_weights(m);
    phase_ends(m, PHASE_CONV3);
    head_forward(m, m.round);
}

/* The gradient of conv3's input, for which other seats wait, by the first two warps; that of conv3's weights by the
 * second two of every four, so that they do not take the first two's turns: a multiprocessor's quarter has every fourth
 * warp; what is left of the dense layers' weights by the others. */
DEVICE void dense_back(memory &m)
{
    unsigned warp = tid() / LANES;
    if (warp < CONV3_INPUT_WARPS)
        conv3_input_gradient(m, m.round);
    else if (warp % 4 >= 2)
        conv3_weight_gradient(warp / 4 * 2 + warp % 4 - 2);
    else
#pragma unroll 1
        for (unsigned unit = (warp / 4 - 1) * 2 + warp % 4; unit < DENSE_UNITS; unit += 6)
            dense_weight_gradient(m, unit);
    phase_ends(m, PHASE_DENSE_BACK);
}
static_assert(CONV3_CHUNKS == WARPS / 2 && CONV3_INPUT_WARPS == 2 && CONV3_INPUT_WARPS * LANES >= PITCH_CONV3,
              "every unit is somebody's");

DEVICE void tile_gradient(memory &m)
{
    forward(m);
    head_back(m);
    phase_ends(m, PHASE_HEAD);
    receive_rows(m, m.round);
    phase_ends(m, PHASE_ROWS);
    dense_back(m);
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    conv2_weight_gradient(m, m.round, kept1, kept2);
    phase_ends(m, PHASE_CONV2_WEIGHTS);
    __syncthreads(); /* pool1 and the rows have been read */
    conv2_input_gradient(m, kept1, kept2);
    __syncthreads();
    phase_ends(m, PHASE_CONV2_INPUT);
    conv1_weight_gradient(m, kept1);
    phase_ends(m, PHASE_CONV1_WEIGHTS);
}

#endif
