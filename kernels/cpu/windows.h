/* windows.h - Winograd's sums with pool windows in lanes, and their pool: for conv1, and for conv2 where channels are
 * dropped. Each lane has two windows side by side, so two rows of four neighbours (winograd.h). */
#ifndef DTRAIN_CPU_WINDOWS_H
#define DTRAIN_CPU_WINDOWS_H

#include "winograd.h"

enum {
    PARTS = 16 / LANES,               /* vectors that 16 numbers take */
    WINDOW_SPAN = PARTS > 1 ? 2 : 1,  /* of them, computed together */
    WINDOW_GROUP = PARTS > 1 ? 2 : 3, /* output channels computed together, at most: as the registers allow */
    WINDOW_ROWS = 6,                  /* that a row of windows sees */
};

/* Winograd's sums of both rows under WINDOW_SPAN vectors of windows: [product][channel][row * WINDOW_SPAN + vector]. */
typedef vec window_sums[WINOGRAD_PRODUCTS][WINDOW_GROUP][2 * WINDOW_SPAN];

/* How many channels to take next of those that are left: groups as equal as can be. */
KERNEL int window_group(int left)
{
    int groups = (left + WINDOW_GROUP - 1) / WINDOW_GROUP;
    return (left + groups - 1) / groups;
}

/* `count` of the sums, from number `first` on, of the windows from `lane` on. inputs: the input channels to be summed,
 * input_count of them; NULL: the first ones. rows: the WINDOW_ROWS that the windows see, [in][product][16], factors of
 * columns. w: of each output channel the factors of weights, [in][ky][product]. */
KERNEL void window_sum_some(int first, int count, int channels, int lane, int input_count, const int *inputs,
                            const float *const *rows, const float *const *w, window_sums out)
{
    enum { VECTORS = 2 * WINDOW_SPAN };
    window_sums sum;
    UNROLL for (int k = 0; k < count; k++)
        UNROLL for (int i = 0; i < channels * VECTORS; i++)
            sum[k][i / VECTORS][i % VECTORS] = (vec){0};
    for (int i = 0; i < input_count; i++) {
        const int in = inputs != NULL ? inputs[i] : i, offset = (in * WINOGRAD_PRODUCTS + first) * 16 + lane;
        const float *pair[2] = {NULL, rows[0] + offset};
        ROLLED for (int ky = 0; ky < 5; ky++) {
            const float *factors[WINDOW_GROUP];
            pair[0] = pair[1]; /* what was loaded of it may still be in registers */
            pair[1] = separate_address(rows[ky + 1] + offset);
            UNROLL for (int g = 0; g < channels; g++)
                factors[g] = w[g] + (in * 5 + ky) * WINOGRAD_PRODUCTS + first;
            UNROLL for (int k = 0; k < count; k++)
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    vec columns = vec_keep(vec_load(pair[v / WINDOW_SPAN] + k * 16 + v % WINDOW_SPAN * LANES));
                    UNROLL for (int g = 0; g < channels; g++)
                        add_product(columns, factors[g][k], &sum[k][g][v]);
                }
        }
    }
    UNROLL for (int k = 0; k < count; k++)
        UNROLL for (int i = 0; i < channels * VECTORS; i++)
            vec_spill(&out[first + k][i / VECTORS][i % VECTORS], sum[k][i / VECTORS][i % VECTORS]);
}

/* All eight, in as many passes as the registers ask for. */
KERNEL void window_sum(int channels, int lane, int input_count, const int *inputs, const float *const *rows,
                       const float *const *w, window_sums out)
{
    const int together = winograd_together(channels * 2 * WINDOW_SPAN);
    ROLLED for (int first = 0; first < WINOGRAD_PRODUCTS; first += together)
        window_sum_some(first, together, channels, lane, input_count, inputs, rows, w, out);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "window_pool writes two words as one number");

/* Max-pool, bias, ReLU and scale of vector v of windows, of those on the left and of those on the right. Of their
 * winners, two words a lane, both are written at once: as vec_pool tells them. */
APART void window_pool(window_sums sums, int channel, int v, float bias, float scale, int right, int below,
                       float *values[2], uint16_t *winners)
{
    vec rows[2][WINOGRAD_PRODUCTS], windows[2][4];
    ivec winner[2];
    UNROLL for (int k = 0; k < 2 * WINOGRAD_PRODUCTS; k++)
        rows[k % 2][k / 2] = sums[k / 2][channel][k % 2 * WINDOW_SPAN + v];
    winograd_windows(rows, windows);
    UNROLL for (int side = 0; side < 2; side++) {
        vec best = vec_pool(windows[side], right << 16 * side, below << 16 * side, &winner[side]);
        vec_store(values[side], vec_relu(best + bias) * scale);
    }
    ivec both = winner[0] | winner[1];
    memcpy(winners, &both, sizeof both);
}

#endif
