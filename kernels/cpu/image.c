/* An image is read from its 3,072 bytes twice: for conv1 forward as sums of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers. */
#include <string.h>

#include "kernels.h"
#include "vector.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads two bytes as one number");

/* A pixel p stands for (2p - 255) / 255. Sums of pixels are formed as 16-bit integers, so each number is
 * rounded once. Two neighbouring columns are the two bytes of one 16-bit number. */
static inline void row_columns(const uint8_t *restrict row, float columns[restrict 7][16])
{
    const float half = 1 / 255.0f, one = 2 / 255.0f;
    for (int x = 0; x < 16; x++) {
        int16_t d[6];
        UNROLL for (int k = 0; k < 3; k++) {
            uint16_t pair;
            memcpy(&pair, row + 2 * (x + k), sizeof pair);
            d[2 * k] = pair & 255;
            d[2 * k + 1] = (int16_t)(pair >> 8);
        }
        columns[0][x] = (int16_t)(d[0] - d[2]) * one;
        columns[1][x] = (int16_t)(d[1] + d[2] - 255) * one;
        columns[2][x] = (int16_t)(d[2] - d[1]) * one;
        columns[3][x] = (int16_t)(d[1] - d[3]) * one;
        columns[4][x] = (int16_t)(d[3] - d[4]) * one;
        columns[5][x] = (int16_t)(2 * d[4] - 255) * half;
        columns[6][x] = (int16_t)(d[4] - d[5]) * one;
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
