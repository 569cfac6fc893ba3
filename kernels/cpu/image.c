/* A picture's 3,072 bytes become an image twice: for conv1 forward as factors of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers.
 * A pixel p stands for (2p - 255) / 255. Here it is 2p - 255, a whole number, and the factors are whole quarters:
 * nothing is rounded. conv1 divides by the 255: its packed weights, and in the end its weights' gradient. */
#include <string.h>

#include "kernels.h"
#include "winograd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads four bytes as one number");

/* Lane i: columns 4i to 4i + 7 of a row. The last lane has no meaning. */
static inline void row_columns(const uint8_t row[32], eight factors[WINOGRAD_PRODUCTS])
{
    eight d[8];
    eight_ints fours; /* pixels 4i to 4i + 3, a byte each */
    memcpy(&fours, row, sizeof fours);
    UNROLL for (int k = 0; k < 4; k++) {
        eight_ints pixels = fours >> 8 * k & 255;
        d[k] = __builtin_convertvector(2 * pixels - 255, eight);
        d[4 + k] = PICK_EIGHT(d[k], d[k], 1, 2, 3, 4, 5, 6, 7, 7);
    }
    winograd_columns(d, factors);
}

void image_columns(const uint8_t *pixels, struct image_columns *image)
{
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 32; y++) {
            eight factors[WINOGRAD_PRODUCTS];
            row_columns(pixels + (c * 32 + y) * 32, factors);
            UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++) {
                if (y < IMAGE_HALF)
                    eight_store(image->at[c][y][k], &factors[k]);
                if (y >= 14)
                    eight_store(image->at[c][y - 14][k] + 8, &factors[k]);
            }
        }
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
