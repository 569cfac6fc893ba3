#include "tile.h"

#include <string.h>

#include "exact_sum.h"

void tile_init(struct tile *tile)
{
    memset(tile, 0, sizeof *tile);
}

void tile_pack(struct tile *tile, const struct layout *weights)
{
    conv1_pack(weights, &tile->conv1);
    conv2_pack(weights, &tile->conv2);
    conv2_pack_windows(weights, &tile->conv2_windows);
    dense_pack(weights, &tile->dense);
}

/* Records lie anywhere in the data set: the next is fetched while one is worked on, in two parts, since a core has some
 * twenty reads of cache lines under way at most. */
static void prefetch_half(const struct tile_input *input, int s, size_t half)
{
    if (s >= input->count)
        return;
    for (size_t i = half * LENET5_PIXELS / 2; i < (half + 1) * LENET5_PIXELS / 2; i += 64)
        __builtin_prefetch(input->records[s] + i);
}

/* Which channels of a convolution a sample keeps. */
static unsigned kept(const struct tile_input *input, int s, int layer)
{
    return (unsigned)input->masks[s].keep[layer][0];
}

/* Each pass of a convolution takes all of the tile's samples before the next begins: its weights then stay in the
 * first-level cache. */
static void forward(struct tile *tile, const struct layout *weights, const struct tile_input *input,
                    int32_t labels[TILE])
{
    const struct tile_mark mark = tile->mark; /* a copy, which stays in the first-level cache */
    struct dense_tile *dense = &tile->dense;
    for (int s = 0; s < input->count; s++) {
        prefetch_half(input, s + 1, 0);
        labels[s] = input->records[s][0];
        conv1_forward(weights, &tile->conv1, input->records[s] + 1, kept(input, s, DROPOUT_CONV1),
                      input->scales[DROPOUT_CONV1], &tile->features[s]);
        prefetch_half(input, s + 1, 1);
        tile_mark(mark, "conv1", "forward", s);
    }
    for (int s = 0; s < input->count; s++) {
        conv2_forward(weights, &tile->conv2, kept(input, s, DROPOUT_CONV1), kept(input, s, DROPOUT_CONV2),
                      input->scales[DROPOUT_CONV2], dense->pool2[s], &tile->features[s]);
        tile_mark(mark, "conv2", "forward", s);
    }
    for (int s = input->count; s < TILE; s++) {
        labels[s] = -1;
        memset(dense->pool2[s], 0, sizeof dense->pool2[s]);
    }
    conv3_forward(weights, input->masks, input->scales[DROPOUT_CONV3], dense);
    tile_mark(mark, "conv3", "forward", -1);
    fc1_forward(weights, input->masks, input->scales[DROPOUT_FC1], dense);
    tile_mark(mark, "fc1", "forward", -1);
    fc2_forward(weights, dense);
    tile_mark(mark, "fc2", "forward", -1);
}

/* Adds each sample's loss to the sum; returns how many were refused. */
static size_t add_losses(const float losses[TILE], int64_t *sum)
{
    size_t refused = 0;
    for (int s = 0; s < TILE; s++)
        refused += exact_sum_add(1, &losses[s], sum);
    return refused;
}

size_t tile_gradient(struct tile *tile, const struct layout *weights, const struct tile_input *input,
                     int64_t *sums, int64_t *loss)
{
    const struct tile_mark mark = tile->mark;
    int32_t labels[TILE];
    float losses[TILE];
    forward(tile, weights, input, labels);
    softmax_loss(tile->dense.logits, labels, losses);
    size_t refused = add_losses(losses, loss);
    tile_mark(mark, "softmax", "loss", -1);
    refused += fc2_weight_gradient(&tile->dense, sums);
    tile_mark(mark, "fc2", "weights", -1);
    fc2_input_gradient(weights, &tile->dense);
    tile_mark(mark, "fc2", "input", -1);
    refused += fc1_weight_gradient(input->scales[DROPOUT_FC1], &tile->dense, sums);
    tile_mark(mark, "fc1", "weights", -1);
    fc1_input_gradient(weights, &tile->dense);
    tile_mark(mark, "fc1", "input", -1);
    refused += conv3_weight_gradient(input->scales[DROPOUT_CONV3], &tile->dense, sums);
    tile_mark(mark, "conv3", "weights", -1);
    conv3_input_gradient(weights, &tile->dense);
    tile_mark(mark, "conv3", "input", -1);

    for (int s = 0; s < input->count; s++) {
        refused += conv2_weight_gradient(&tile->features[s], tile->dense.pool2[s], kept(input, s, DROPOUT_CONV1),
                                         kept(input, s, DROPOUT_CONV2), input->scales[DROPOUT_CONV2],
                                         tile->dense.dpool2[s], sums);
        tile_mark(mark, "conv2", "weights", s);
    }
    for (int s = 0; s < input->count; s++) {
        conv2_input_gradient(&tile->conv2_windows, &tile->features[s], kept(input, s, DROPOUT_CONV1),
                             tile->dense.dpool2[s], tile->dpool1[s]);
        tile_mark(mark, "conv2", "input", s);
    }
    for (int s = 0; s < input->count; s++) {
        image_pixels(input->records[s] + 1, &tile->pixels);
        tile_mark(mark, "image", "pixels", s);
        refused += conv1_weight_gradient(&tile->pixels, &tile->features[s], kept(input, s, DROPOUT_CONV1),
                                         input->scales[DROPOUT_CONV1], tile->dpool1[s], sums);
        tile_mark(mark, "conv1", "weights", s);
    }
    return refused;
}

size_t tile_evaluate(struct tile *tile, const struct layout *weights, const struct tile_input *input,
                     int64_t *loss, int64_t *correct)
{
    int32_t labels[TILE];
    float losses[TILE];
    forward(tile, weights, input, labels);
    *correct += softmax_correct(tile->dense.logits, labels);
    softmax_loss(tile->dense.logits, labels, losses);
    return add_losses(losses, loss);
}
