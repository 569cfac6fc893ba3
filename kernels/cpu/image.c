/* An image is read from its 3,072 bytes twice: for conv1 forward as sums of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers. */
#include <string.h>

#include "kernels.h"
#include "vector.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads two bytes as one number");

/* As many 16-bit numbers as a vector has lanes. */
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));

KERNEL void store(float *to, shorts numbers, float factor)
{
    vec_store(to, __builtin_convertvector(numbers, vec) * factor);
}

/* A pixel p stands for (2p - 255) / 255. Sums of pixels are formed as integers, so each number is
 * rounded once. Two neighbouring columns are the two bytes of one 16-bit number. */
KERNEL void row_columns(const uint8_t *row, float columns[7][16])
{
    for (int x = 0; x < 16; x += LANES) {
        shorts d[6];
        UNROLL for (int k = 0; k < 3; k++) {
            words pair;
            memcpy(&pair, row + 2 * (x + k), sizeof pair);
            d[2 * k] = (shorts)(pair & 255);
            d[2 * k + 1] = (shorts)(pair >> 8);
        }
        const float half = 1 / 255.0f, one = 2 / 255.0f;
        store(&columns[0][x], d[0] - d[2], one);
        store(&columns[1][x], d[1] + d[2] - 255, one);
        store(&columns[2][x], d[2] - d[1], one);
        store(&columns[3][x], d[1] - d[3], one);
        store(&columns[4][x], d[3] - d[4], one);
        store(&columns[5][x], 2 * d[4] - 255, half);
        store(&columns[6][x], d[4] - d[5], one);
    }
}

void image_columns(const uint8_t *pixels, struct image_columns *image)
{
    uint8_t padded[LENET5_PIXELS + 4]; /* what the last row's loads touch */
    memcpy(padded, pixels, LENET5_PIXELS);
    memset(padded + LENET5_PIXELS, 0, 4);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 32; y++)
            row_columns(padded + (c * 32 + y) * 32, image->at[c][y]);
}

static inline float normalise(uint8_t pixel)
{
    return (float)(2 * pixel - 255) * (1 / 255.0f);
}

void image_pixels(const uint8_t *pixels, struct image_pixels *image)
{
    uint8_t bytes[32 * 32 * 3]; /* interleaving bytes moves a quarter of what interleaving floats would */
    float *numbers = image->at[0][0];
    for (size_t i = 0; i < 32 * 32; i++)
        for (size_t c = 0; c < 3; c++)
            bytes[i * 3 + c] = pixels[c * 32 * 32 + i];
    for (size_t i = 0; i < 32 * 32 * 3; i++)
        numbers[i] = normalise(bytes[i]);
}
