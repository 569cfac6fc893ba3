#include "masks.h"

#include <math.h>
#include <string.h>

#include "philox.h"

/* Left to make vectors of a loop over philox4x32, GCC 12 has several shuffles for each product. */
#ifdef __AVX2__
#include <immintrin.h>
#define PHILOX_BY_HAND
typedef uint64_t number; /* of 32 bits */
#else
typedef uint32_t number;
#endif

enum { GROUP = 16 }; /* samples drawn together: the compiler makes their loops vectors */

static const unsigned elements[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS, FC1_ELEMENTS};

struct masks masks_make(uint64_t seed, double p_conv, double p_fc)
{
    struct masks masks = {.seed = seed, .p = {p_conv, p_conv, p_conv, p_fc}};
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
        masks.scale[layer] = masks.p[layer] < 1 ? (float)(1 / (1 - masks.p[layer])) : 0;
    return masks;
}

#ifdef PHILOX_BY_HAND
/* A number of 32 bits in each lane, and above it whatever was left there; and the whole products of those numbers. */
#ifdef __AVX512F__
typedef uint64_t lanes __attribute__((vector_size(64)));

static inline lanes multiply(lanes a, uint32_t b)
{
    return (lanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
}
#else
typedef uint64_t lanes __attribute__((vector_size(32)));

static inline lanes multiply(lanes a, uint32_t b)
{
    return (lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
}
#endif

enum { LANES = sizeof(lanes) / sizeof(uint64_t) };

/* philox4x32 of a counter in each lane. */
static inline void philox_lanes(lanes c[4], uint64_t seed)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        lanes product0 = multiply(c[0], PHILOX_MULTIPLIER_0), product1 = multiply(c[2], PHILOX_MULTIPLIER_1);
        c[0] = product1 >> 32 ^ c[1] ^ k0;
        c[1] = product1;
        c[2] = product0 >> 32 ^ c[3] ^ k1;
        c[3] = product0;
        k0 += PHILOX_KEY_STEP_0;
        k1 += PHILOX_KEY_STEP_1;
    }
}
#endif

/* numbers[i][s] = number i of the block of `counter`, at position + s. */
static void draw_block(struct philox_counter counter, uint64_t seed, number numbers[4][GROUP])
{
#ifdef PHILOX_BY_HAND
    for (uint32_t s = 0; s < GROUP; s += LANES) {
        const lanes none = {0};
        lanes here[4] = {none + counter.c[0], none + counter.c[1] + s, none + counter.c[2], none + counter.c[3]};
        for (uint32_t i = 0; i < LANES; i++)
            here[1][i] += i;
        philox_lanes(here, seed);
        for (int i = 0; i < 4; i++) {
            lanes halves = here[i] & 0xffffffff;
            memcpy(&numbers[i][s], &halves, sizeof halves);
        }
    }
#else
    for (uint32_t s = 0; s < GROUP; s++) {
        struct philox_counter here = counter;
        here.c[1] += s;
        here = philox4x32(here, seed);
        for (int i = 0; i < 4; i++)
            numbers[i][s] = here.c[i];
    }
#endif
}

static void draw_layer(const struct masks *masks, uint32_t layer, uint64_t step, uint32_t position,
                       uint64_t keep[2][GROUP])
{
    uint64_t threshold = philox_threshold(masks->p[layer]);
    for (uint32_t e = 0; e < elements[layer]; e += 4) {
        number numbers[4][GROUP];
        if (threshold > 0)
            draw_block(philox_counter(PHILOX_DROPOUT, layer, step, position, e / 4), masks->seed, numbers);
        else
            memset(numbers, 0, sizeof numbers);
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
