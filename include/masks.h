/* masks.h - the dropout masks of a step: who is kept, as bits, drawn from Philox.
 *
 * Inverted dropout: an element is zeroed with probability p, else multiplied by 1/(1-p); Dropout2d
 * (conv1..conv3) drops whole channels, so a channel is one element. Masks depend on the seed, the
 * step and the position in the GLOBAL batch, not on the rank that draws them.
 */
#ifndef DTRAIN_MASKS_H
#define DTRAIN_MASKS_H

#include <stdbool.h>
#include <stdint.h>

enum dropout_layer { DROPOUT_CONV1, DROPOUT_CONV2, DROPOUT_CONV3, DROPOUT_FC1, DROPOUT_LAYERS };

/* Elements a sample has in each layer: channels, or units. */
enum { CONV1_ELEMENTS = 6, CONV2_ELEMENTS = 16, CONV3_ELEMENTS = 120, FC1_ELEMENTS = 84 };

/* One sample: element e of layer l is kept when bit e % 64 of keep[l][e / 64] is set. Bits past the
 * layer's last element are 0. */
struct sample_mask {
    uint64_t keep[DROPOUT_LAYERS][2];
};

struct masks {
    uint64_t seed;
    double p[DROPOUT_LAYERS];
    float scale[DROPOUT_LAYERS]; /* of a kept element: 1/(1-p); 0 when p is 1 */
};

/* p_conv is of conv1..conv3, p_fc of fc1; both in [0, 1]. */
struct masks masks_make(uint64_t seed, double p_conv, double p_fc);

/* Draws the masks of `count` samples at consecutive global positions from `position` on. A layer with
 * p = 0 keeps all and draws nothing. */
void masks_draw(const struct masks *masks, uint64_t step, uint32_t position, uint32_t count, struct sample_mask *out);

static inline bool mask_keeps(const struct sample_mask *mask, enum dropout_layer layer, unsigned element)
{
    return mask->keep[layer][element / 64] >> (element % 64) & 1;
}

#endif
