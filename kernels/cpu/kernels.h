/* kernels.h - the layers of the CPU engine: one a file, each explained at its head.
 *
 * The convolutions that are followed by a pool (conv1, conv2) take one sample at a time, so that what
 * the pool and the masks make zero is never computed. conv3 and the dense layers take a whole tile.
 * Weight gradients are added to exact sums in the layout of layout.h: a sample's, or a tile's.
 *
 * The order of every sum is that of kernels/README.md; tests hold each layer to its twin in kernels/definition.
 *
 * A pool's winner is the number that it passes on, the first of the largest of its window: the gradient goes to it
 * alone. `kept` has a bit for each channel, set where the sample's mask keeps it; `scale` is 1 / (1 - p), and 1 without
 * dropout. Exact sums are LAYOUT_COUNT int64 (exact_sum.h); a term that they cannot take is refused, and the step with
 * it. Functions own nothing, allocate nothing and cannot fail; threads may call them at once on memory of their own.
 */
#ifndef DTRAIN_CPU_KERNELS_H
#define DTRAIN_CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "exact_sum.h"
#include "layout.h"
#include "lenet5.h"
#include "masks.h"
#include "winograd.h"

/* --- image.c: from 3,072 bytes to floats, 255 times (pixel / 127.5 - 1) ---------------------------- */

/* What conv1 forward multiplies with its weights: at[y % IMAGE_ROWS][channel][product][i] are the factors by winograd.h
 * of columns 4i to 4i + 7 of row y, [8 + i] those of row y + 14. i = 7 has no meaning. */
enum { IMAGE_ROWS = 6 }; /* that a row of windows sees, the only ones kept: they stay in the first-level cache */
struct image_columns {
    _Alignas(64) float at[IMAGE_ROWS][3][WINOGRAD_PRODUCTS][16];
};

/* Makes rows `from` to `to` - 1, and those 14 below. */
void image_columns(const uint8_t *pixels, int from, int to, struct image_columns *columns);

enum { IMAGE_SLACK = 16 }; /* floats past the end that a vector load may touch: zeros, as NaN would be refused */

/* The three channels of a pixel side by side: [y][x][channel]. */
struct image_pixels {
    _Alignas(64) float at[32][32][3], slack[IMAGE_SLACK];
};
void image_pixels(const uint8_t *pixels, struct image_pixels *image);

/* --- conv1.c, conv2.c, conv2_back.c: convolution, ReLU, dropout of channels, max-pool 2x2 ---------------------- */

/* Where number (y, x) of a channel of pool1 stands: rows y and y + 7 lie side by side, the even columns of both before
 * the odd ones. So they come from conv1's lanes, and what conv2 computes at once lies in a run. */
#define POOL1_PLACE(y, x) ((y) % 7 * 32 + (x) % 2 * 16 + (y) / 7 * 8 + (x) / 2)
enum { POOL1_PLANE = 14 * 16 };

/* What a sample's forward pass leaves for its backward pass. */
struct features {
    _Alignas(64) float pool1[6][POOL1_PLANE], slack[16]; /* [channel][POOL1_PLACE(y, x)]; conv2 reads past the end */
    uint16_t from1[6][7][2][16]; /* [channel][y % 7][y / 7][x]: in image_pixels, from where the patch of the window's
                                  * first number starts to where the winner's does */
    uint16_t from2[25][16];      /* [pool cell][channel]: which number of pool1 was the first that the winner saw: */
};
enum { CONV2_RIGHT = 1, CONV2_BELOW = 16 }; /* CONV2_BELOW * y + CONV2_RIGHT * x */

/* The numbers of the bits that are set in `kept`; returns how many. */
static inline int list_channels(unsigned kept, int *list)
{
    int count = 0;
    for (; kept != 0; kept &= kept - 1)
        list[count++] = __builtin_ctz(kept);
    return count;
}

/* The weights of conv1 as its forward pass reads them: factors by winograd.h, over 255. */
struct conv1_packed {
    float at[6][3][5][WINOGRAD_PRODUCTS]; /* [out][in][ky][product] */
};
void conv1_pack(const struct layout *w, struct conv1_packed *packed);

/* Only the channels whose bit is set in kept are computed, in pool1 and from1; the others are left alone. */
void conv1_forward(const struct layout *w, const struct conv1_packed *packed,
                   const uint8_t *pixels, unsigned kept, float scale, struct features *out);

/* Adds the sample's gradient to the exact sums (LAYOUT_COUNT of them); returns 0 if no term was refused. dpool1
 * is only read. */
size_t conv1_weight_gradient(const struct image_pixels *image, const struct features *features, unsigned kept,
                             float scale, float dpool1[6][14][16], int64_t *sums);

/* The weights of conv2 as its forward pass reads them: factors by winograd.h. */
struct conv2_packed {
    _Alignas(64) float by_channel[WINOGRAD_PRODUCTS][6][5][16]; /* [product][in][ky][out] */
    float by_window[16][6][5][WINOGRAD_PRODUCTS];               /* the same as [out][in][ky][product] */
};
void conv2_pack(const struct layout *w, struct conv2_packed *packed);

/* pool2: [y * 5 + x][channel], the order conv3 reads it in; dropped channels are 0. */
void conv2_forward(const struct layout *w, const struct conv2_packed *packed, unsigned kept1, unsigned kept2,
                   float scale, float pool2[25][16], struct features *features);

/* Turns dpool2 into the gradient before ReLU and dropout; adds the weights' to the exact sums and returns 0 if
 * no term was refused. kept1, kept2: as in the forward pass. */
size_t conv2_weight_gradient(const struct features *features, float pool2[25][16], unsigned kept1, unsigned kept2,
                             float scale, float dpool2[25][16], int64_t *sums);

/* What a winner sends back to the 6x6 numbers that its window was made of: of a left winner, then of a right one, rows
 * out * 6 + 1 + ky of 6 x 8 numbers, for each input channel eight columns, of which five are the weights, from the
 * first or the second on. (With vectors of 512 bits two channels alternate.) Row out * 6 is of zeros: it stands above a
 * channel's rows, for winners of the lower row, and below those of the channel before. Zero at first. */
struct conv2_windows {
    _Alignas(64) float at[2 * (16 * 6 + 1) * 6 * 8];
};
void conv2_pack_windows(const struct layout *w, struct conv2_windows *windows);

/* After conv2_weight_gradient. dpool1 is overwritten; of dropped channels it has no meaning. */
void conv2_input_gradient(const struct conv2_windows *windows, const struct features *features, unsigned kept1,
                          float dpool2[25][16], float dpool1[6][14][16]);

/* --- dense.c: conv3, fc1 and fc2 over a tile ----------------------------------------------------- */

/* Activations and gradients of a tile. Rows are [sample][unit], their padding 0; lanes are
 * [unit][sample], 0 in units past those used. Samples the tile lacks are 0 in pool2 and get no gradient. */
struct dense_tile {
    _Alignas(64) float pool2[TILE][25][16], conv3[TILE][128], fc1[TILE][96];
    float pool2_lanes[400][TILE], conv3_lanes[120][TILE], fc1_lanes[88][TILE]; /* 84 used */
    /* dense_pack: the weights of conv3's and fc1's chains, [chain][input][out] */
    float conv3_chains[8][50][128], fc1_chains[120][96];
    uint32_t all;           /* dense_pack: ~0 if a weight is not finite: then no zeros are left out; else 0 */
    int by_sample;          /* conv3_forward: whether it and fc1 leave out inputs that are zero, and need no lanes */
    float logits[16][TILE]; /* 10 used; softmax_loss turns them into their gradient */
    float dpool2[TILE][25][16], dconv3[TILE][128], dfc1[TILE][96], dlogits[TILE][16];
};

/* Prepares for these weights: to be called again whenever they have changed. */
void dense_pack(const struct layout *w, struct dense_tile *tile);

/* Forward: pool2 -> conv3 -> fc1 -> logits, with the layer's masks and scale (masks.h), after dense_pack with these
 * weights. */
void conv3_forward(const struct layout *w, const struct sample_mask masks[TILE], float scale,
                   struct dense_tile *tile);
void fc1_forward(const struct layout *w, const struct sample_mask masks[TILE], float scale,
                 struct dense_tile *tile);
void fc2_forward(const struct layout *w, struct dense_tile *tile);

/* Backward, in the order given, from the gradient in logits to dpool2: a layer's _weight_gradient adds that of its
 * weights and biases to the exact sums (LAYOUT_COUNT of them) and returns 0 if no term was refused. */
size_t fc2_weight_gradient(struct dense_tile *tile, int64_t *sums);
void fc2_input_gradient(const struct layout *w, struct dense_tile *tile);
size_t fc1_weight_gradient(float scale, struct dense_tile *tile, int64_t *sums);
void fc1_input_gradient(const struct layout *w, struct dense_tile *tile);
size_t conv3_weight_gradient(float scale, struct dense_tile *tile, int64_t *sums);
void conv3_input_gradient(const struct layout *w, struct dense_tile *tile);

/* --- softmax.c ------------------------------------------------------------------------------------ */

/* Softmax and cross-entropy: fills losses, and overwrites the logits with the gradient of their sum. A label of -1
 * marks a sample that the tile lacks: its loss and gradient are 0. */
void softmax_loss(float logits[LENET5_CLASSES][TILE], const int32_t labels[TILE], float losses[TILE]);

/* How many samples' largest logit (the first of equals) is their label. */
int softmax_correct(float logits[LENET5_CLASSES][TILE], const int32_t labels[TILE]);

#endif
