#include "masks.h"

#include <math.h>
#include <string.h>

#include "philox.h"

enum { GROUP = 16 }; /* samples drawn together: the compiler makes their loops vectors */

static const unsigned elements[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS, FC1_ELEMENTS};

struct masks masks_make(uint64_t seed, double p_conv, double p_fc)
{
    struct masks masks = {.seed = seed, .p = {p_conv, p_conv, p_conv, p_fc}};
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
        masks.scale[layer] = masks.p[layer] < 1 ? (float)(1 / (1 - masks.p[layer])) : 0;
    return masks;
}

/* numbers[i][s] = number i of the block of `counter`, at position + s. */
static void draw_block(struct philox_counter counter, uint64_t seed, uint32_t numbers[4][GROUP])
{
    for (uint32_t s = 0; s < GROUP; s++) {
        struct philox_counter here = counter;
        here.c[1] += s;
        here = philox4x32(here, seed);
        for (int i = 0; i < 4; i++)
            numbers[i][s] = here.c[i];
    }
}

static void draw_layer(const struct masks *masks, uint32_t layer, uint64_t step, uint32_t position,
                       uint64_t keep[2][GROUP])
{
    uint64_t threshold = philox_threshold(masks->p[layer]);
    for (uint32_t e = 0; e < elements[layer]; e += 4) {
        uint32_t numbers[4][GROUP] = {{0}};
        if (threshold > 0)
            draw_block(philox_counter(PHILOX_DROPOUT, layer, step, position, e / 4), masks->seed, numbers);
        for (uint32_t i = 0; i < 4 && e + i < elements[layer]; i++)
            for (uint32_t s = 0; s < GROUP; s++)
                keep[e / 64][s] |= (uint64_t)(numbers[i][s] >= threshold) << ((e + i) % 64);
    }
}

void masks_draw(const struct masks *masks, uint64_t step, uint32_t position, uint32_t count, struct sample_mask *out)
{
    for (uint32_t first = 0; first < count; first += GROUP)
        for (uint32_t layer = 0; layer < DROPOUT_LAYERS; layer++) {
            uint64_t keep[2][GROUP] = {{0}};
            draw_layer(masks, layer, step, position + first, keep);
            for (uint32_t s = 0; s < GROUP && first + s < count; s++)
                for (int word = 0; word < 2; word++)
                    out[first + s].keep[layer][word] = keep[word][s];
        }
}
