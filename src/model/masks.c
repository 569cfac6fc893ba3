#include "masks.h"

#include <math.h>
#include <string.h>

#include "philox.h"

static const unsigned elements[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS,
                                                  FC1_ELEMENTS};

struct masks masks_make(uint64_t seed, double p_conv, double p_fc)
{
    struct masks masks = {.seed = seed, .p = {p_conv, p_conv, p_conv, p_fc}};
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
        masks.scale[layer] = masks.p[layer] < 1 ? (float)(1 / (1 - masks.p[layer])) : 0;
    return masks;
}

void masks_draw(const struct masks *masks, uint64_t step, uint32_t position, uint32_t count,
                struct sample_mask *out)
{
    memset(out, 0, count * sizeof *out);
    for (uint32_t layer = 0; layer < DROPOUT_LAYERS; layer++) {
        uint64_t threshold = philox_threshold(masks->p[layer]);
        for (uint32_t s = 0; s < count; s++) {
            uint64_t *keep = out[s].keep[layer];
            for (uint32_t e = 0; e < elements[layer]; e += 4) {
                struct philox_counter r = {{0}};
                if (threshold > 0)
                    r = philox4x32(philox_counter(PHILOX_DROPOUT, layer, step, position + s, e / 4),
                                   masks->seed);
                uint64_t bits = 0;
                for (uint32_t i = 0; i < 4 && e + i < elements[layer]; i++)
                    bits |= (uint64_t)(r.c[i] >= threshold) << i;
                keep[e / 64] |= bits << (e % 64);
            }
        }
    }
}
