/* tile.h - LeNet-5 over one tile, by the kernels of this folder.
 *
 * A tile's sums come from the same instructions in the same order wherever it is computed: they depend on
 * its samples, masks and weights alone.
 */
#ifndef DTRAIN_CPU_TILE_H
#define DTRAIN_CPU_TILE_H

#include "kernels.h"

/* Called as soon as a layer is done, by its name and pass, for sample s of the tile, or -1: the whole tile; for whoever
 * takes the time (bench/step). NULL: nobody does. */
struct tile_mark {
    void (*call)(void *context, const char *layer, const char *pass, int s);
    void *context;
};

static inline void tile_mark(struct tile_mark mark, const char *layer, const char *pass, int s)
{
    if (mark.call != NULL)
        mark.call(mark.context, layer, pass, s);
}

/* Scratch: what the layers hand on between the input and the sums. Some 670 KB, for one thread at a time. */
struct tile {
    struct conv1_packed conv1;
    struct conv2_packed conv2;
    struct conv2_windows conv2_windows;
    struct image_pixels pixels;
    struct features features[TILE];
    struct dense_tile dense;
    _Alignas(64) float dpool1[TILE][6][14][16];

    struct tile_mark mark;
};

/* Zeroes what the kernels never write: padding. Once, before anything else. */
void tile_init(struct tile *tile);

/* Packs the weights as the kernels read them: to be called again whenever they have changed. */
void tile_pack(struct tile *tile, const struct layout *weights);

/* `count` samples (1..TILE) and their masks; the masks of those that the tile lacks keep nothing. */
struct tile_input {
    int count;
    const uint8_t *records[TILE]; /* dataset.h */
    struct sample_mask masks[TILE];
    float scales[DROPOUT_LAYERS];
};

/* Forward and backward: adds the gradient to sums[LAYOUT_COUNT] and the loss to *loss, all of them
 * exact_sum.h's. Returns 0 if no term was refused. */
size_t tile_gradient(struct tile *tile, const struct layout *weights, const struct tile_input *input,
                     int64_t *sums, int64_t *loss);

/* Forward: adds the loss to *loss (exact_sum.h) and the samples classified right to *correct. Returns 0 if no
 * term was refused. */
size_t tile_evaluate(struct tile *tile, const struct layout *weights, const struct tile_input *input,
                     int64_t *loss, int64_t *correct);

#endif
