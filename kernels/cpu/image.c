/* A picture's 3,072 bytes become an image twice: for conv1 forward as sums of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers.
 * A pixel p stands for (2p - 255) / 255. Here it is 2p - 255, and sums of that are whole numbers too: nothing is
 * rounded. conv1 divides by the 255: its packed weights, and in the end its weights' gradient. */
#include <string.h>

#include "kernels.h"
#include "winograd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads four bytes as one number");

/* Reads four pixels as one number, and cuts each out doubled. The factors are so made of 2p, not 2p - 255: the 255
 * cancel in those that are differences, and are taken off the two others. */
static inline void row_columns(const uint8_t *restrict row, float columns[restrict WINOGRAD_PRODUCTS][16])
{
    ROLLED for (int i = 0; i < 8; i++) { /* for pooled columns 2i and 2i + 1, from pixel 4i on */
        uint32_t four, next;
        int pixel[8];
        memcpy(&four, row + 4 * i, sizeof four);
        memcpy(&next, row + 4 * i + 4, sizeof next);
        pixel[0] = (int)(four << 1 & 510), pixel[4] = (int)(next << 1 & 510);
        UNROLL for (int k = 1; k < 4; k++) {
            pixel[k] = (int)(four >> (8 * k - 1) & 510);
            pixel[4 + k] = (int)(next >> (8 * k - 1) & 510);
        }
        UNROLL for (int odd = 0; odd < 2; odd++) {
            int factors[WINOGRAD_PRODUCTS];
            WINOGRAD_COLUMNS(pixel + 2 * odd, factors);
            factors[1] -= 2 * 255;
            factors[5] -= 255;
            UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                columns[k][odd * 8 + i] = (float)factors[k];
        }
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
