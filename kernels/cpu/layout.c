#include "layout.h"

#include "lenet5.h"

/* Writes where each number of a tensor of canonical shape [K][C][H][W] lies in the layout, whose strides are given.
 * Returns where the next tensor's indices go. */
static uint32_t *number(uint32_t *index, size_t start, const size_t shape[4], const size_t stride[4])
{
    for (size_t k = 0; k < shape[0]; k++)
        for (size_t c = 0; c < shape[1]; c++)
            for (size_t y = 0; y < shape[2]; y++)
                for (size_t x = 0; x < shape[3]; x++)
                    *index++ = (uint32_t)(start + k * stride[0] + c * stride[1] + y * stride[2] +
                                          x * stride[3]);
    return index;
}

void layout_index(uint32_t *index)
{
    static const struct {
        size_t start, shape[4], stride[4];
    } tensors[LENET5_PARAMETERS] = { /* in the order of lenet5_parameters */
        {LAYOUT_OF(conv1), {6, 3, 5, 5}, {80, 1, 16, 3}},
        {LAYOUT_OF(conv1_bias), {6, 1, 1, 1}, {1}},
        {LAYOUT_OF(conv2), {16, 6, 5, 5}, {5 * CONV2_ROW, 1, CONV2_ROW, 6}},
        {LAYOUT_OF(conv2_bias), {16, 1, 1, 1}, {1}},
        {LAYOUT_OF(conv3), {120, 16, 5, 5}, {400, 1, 80, 16}},
        {LAYOUT_OF(conv3_bias), {120, 1, 1, 1}, {1}},
        {LAYOUT_OF(fc1), {84, 120, 1, 1}, {128, 1}},
        {LAYOUT_OF(fc1_bias), {84, 1, 1, 1}, {1}},
        {LAYOUT_OF(fc2), {10, 84, 1, 1}, {96, 1}},
        {LAYOUT_OF(fc2_bias), {10, 1, 1, 1}, {1}},
    };
    for (int p = 0; p < LENET5_PARAMETERS; p++)
        index = number(index, tensors[p].start, tensors[p].shape, tensors[p].stride);
}
