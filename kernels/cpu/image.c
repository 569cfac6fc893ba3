/* A picture's 3,072 bytes become an image twice: for conv1 forward as factors of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers.
 * A pixel p stands for (2p - 255) / 255. Here it is 2p - 255, a whole number, and the factors are whole quarters:
 * nothing is rounded. conv1 divides by the 255: its packed weights, and in the end its weights' gradient. */
#include <string.h>

#include "kernels.h"
#include "winograd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads four bytes as one number");

/* Lane i: columns 4i to 4i + 7 of a row; of 16 lanes the upper half is another row's. A row's last has no meaning. */
static inline void row_columns(const wide_ints *fours, wide factors[WINOGRAD_PRODUCTS])
{
    wide d[8];
    UNROLL for (int k = 0; k < 4; k++) { /* fours: pixels 4i to 4i + 3, a byte each */
        wide_ints twice = (k == 0 ? *fours << 1 : *fours >> (8 * k - 1)) & 2 * 255;
        d[k] = __builtin_convertvector(twice - 255, wide);
        wide_next(&d[k], &d[4 + k]);
    }
    winograd_columns(d, factors);
}

void image_columns(const uint8_t *pixels, struct image_columns *image)
{
    enum { ROWS = sizeof(wide) / sizeof(eight) }; /* rows computed together */
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < IMAGE_HALF; y++)
            UNROLL for (int half = 0; half < 2; half += ROWS) {
                const uint8_t *row = pixels + (c * 32 + y + half * 14) * 32;
                wide_ints fours;
                wide factors[WINOGRAD_PRODUCTS];
                wide_pair(row, row + (ROWS == 2 ? 14 * 32 : 16), &fours);
                row_columns(&fours, factors);
                UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    wide_store(image->at[c][y][k] + half * 8, &factors[k]);
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
