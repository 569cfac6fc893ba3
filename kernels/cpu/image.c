/* An image is read from its 3,072 bytes twice: for conv1 forward as even and odd columns, so that
 * the pool is an elementwise maximum, and for conv1 backward with the channels of a pixel together, so
 * that a row of a patch is one run of 15 numbers. */
#include "kernels.h"

/* pixel / 127.5 - 1, rounded once: the integer is exact. */
static inline float normalise(uint8_t pixel)
{
    return (float)(2 * pixel - 255) * (1 / 255.0f);
}

void image_split(const uint8_t *pixels, struct image_split *image)
{
    for (size_t c = 0; c < 3; c++)
        for (size_t y = 0; y < 32; y++, pixels += 32)
            for (size_t x = 0; x < 16; x++) {
                image->at[c][y][0][x] = normalise(pixels[2 * x]);
                image->at[c][y][1][x] = normalise(pixels[2 * x + 1]);
            }
}

void image_pixels(const uint8_t *pixels, struct image_pixels *image)
{
    for (size_t y = 0; y < 32; y++)
        for (size_t x = 0; x < 32; x++)
            for (size_t c = 0; c < 3; c++)
                image->at[y][x][c] = normalise(pixels[(c * 32 + y) * 32 + x]);
}
