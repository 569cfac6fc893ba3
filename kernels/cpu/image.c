/* A picture's 3,072 bytes become an image twice: for conv1 forward as sums of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers.
 * A pixel p stands for (2p - 255) / 255. Here it is 2p - 255, and sums of that are whole numbers too: nothing is
 * rounded. conv1 makes up for the 255, in its packed weights and in their gradient. */
#include <string.h>

#include "kernels.h"
#include "winograd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads four bytes as one number");

static inline void row_columns(const uint8_t *restrict row, float columns[restrict WINOGRAD_PRODUCTS][16])
{
    for (int odd = 0; odd < 2; odd++)
        for (int i = 0; i < 8; i++) { /* for pooled column 2i + odd, from pixel 2 (2i + odd) on */
            int d[6], factors[WINOGRAD_PRODUCTS];
            uint32_t four, next;
            memcpy(&four, row + 4 * i + 2 * odd, sizeof four);
            memcpy(&next, row + 4 * i + 2 * odd + 4, sizeof next);
            UNROLL for (int k = 0; k < 6; k++)
                d[k] = 2 * (int)((k < 4 ? four : next) >> k % 4 * 8 & 255) - 255;
            WINOGRAD_COLUMNS(d, factors);
            UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                columns[k][odd * 8 + i] = (float)factors[k];
        }
}

void image_columns(const uint8_t *pixels, struct image_columns *image)
{
    uint8_t padded[LENET5_PIXELS + 8]; /* what the last row's loads touch */
    memcpy(padded, pixels, LENET5_PIXELS);
    memset(padded + LENET5_PIXELS, 0, 8);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 32; y++)
            row_columns(padded + (c * 32 + y) * 32, image->at[c][y]);
}

void image_pixels(const uint8_t *pixels, struct image_pixels *image)
{
    uint8_t bytes[32 * 32 * 3]; /* interleaving bytes moves a quarter of what interleaving floats would */
    float *numbers = image->at[0][0];
    for (size_t i = 0; i < 32 * 32; i++)
        for (size_t c = 0; c < 3; c++)
            bytes[i * 3 + c] = pixels[c * 32 * 32 + i];
    for (size_t i = 0; i < 32 * 32 * 3; i++)
        numbers[i] = (float)(2 * bytes[i] - 255);
}
