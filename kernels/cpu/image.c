/* A picture's 3,072 bytes become an image twice: for conv1 forward as factors of neighbouring columns, and for
 * conv1 backward with the channels of a pixel together, so that a row of a patch is one run of 15 numbers.
 * A pixel p stands for (2p - 255) / 255. Here it is 2p - 255, a whole number, and the factors are whole quarters:
 * nothing is rounded. conv1 divides by the 255: its packed weights, and in the end its weights' gradient. */
#include <string.h>

#include "kernels.h"
#include "winograd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image_columns reads four bytes as one number");

/* Lane i: columns 4i to 4i + 7 of a row; of 16 lanes the upper half is another row's. A row's last has no meaning.
 * fours: pixels 4i to 4i + 3, a byte each. */
#if defined(__AVX512VNNI__)
static inline void row_columns(const wide_ints *fours, wide factors[WINOGRAD_PRODUCTS])
{
    /* winograd.h's coefficients of d0 to d7, eightfold. With pixels p they give four times the factors of 2p - 255:
     * what 255 is multiplied with is the sum of a factor's coefficients, which is 0 but for the second one's. */
    static const int8_t eighths[WINOGRAD_PRODUCTS][8] = {
        {8, 0, -42, 0, 42, 0, -8, 0},     {0, 8, 8, -34, -34, 8, 8, 0},   {0, -8, 8, 34, -34, -8, 8, 0},
        {0, 4, 2, -20, -10, 16, 8, 0},    {0, -4, 2, 20, -10, -16, 8, 0}, {0, 16, 32, -20, -40, 4, 8, 0},
        {0, -16, 32, 20, -40, -4, 8, 0},  {0, -8, 0, 42, 0, -42, 0, 8},
    };
    const __m512 quarters = _mm512_set1_ps(3 << 20); /* a number whose last bit is a quarter */
    __m512i low = (__m512i)*fours, high = _mm512_alignr_epi32(low, low, 1);
    UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++) {
        int32_t by[2];
        memcpy(by, eighths[k], sizeof by);
        __m512i sum = _mm512_add_epi32((__m512i)quarters, _mm512_set1_epi32(k == 1 ? 18 * 255 : 0));
        sum = _mm512_dpbusd_epi32(sum, low, _mm512_set1_epi32(by[0]));
        sum = _mm512_dpbusd_epi32(sum, high, _mm512_set1_epi32(by[1]));
        factors[k] = (wide)_mm512_sub_ps((__m512)sum, quarters);
    }
}
#else
static inline void row_columns(const wide_ints *fours, wide factors[WINOGRAD_PRODUCTS])
{
    wide d[8];
    UNROLL for (int k = 0; k < 4; k++) {
        wide_ints twice = (k == 0 ? *fours << 1 : *fours >> (8 * k - 1)) & 2 * 255;
        d[k] = __builtin_convertvector(twice - 255, wide);
        wide_next(&d[k], &d[4 + k]);
    }
    winograd_columns(d, factors);
}
#endif

void image_columns(const uint8_t *pixels, int from, int to, struct image_columns *columns)
{
    enum { ROWS = sizeof(wide) / sizeof(eight) }; /* computed together */
    for (int y = from; y < to; y++)
        for (int c = 0; c < 3; c++)
            UNROLL for (int half = 0; half < 2; half += ROWS) {
                const uint8_t *row = pixels + (c * 32 + y + half * 14) * 32;
                wide_ints fours;
                wide factors[WINOGRAD_PRODUCTS];
                wide_pair(row, row + (ROWS == 2 ? 14 * 32 : 16), &fours);
                row_columns(&fours, factors);
                UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    wide_store(columns->at[y % IMAGE_ROWS][c][k] + half * 8, &factors[k]);
            }
}

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
void image_pixels(const uint8_t *pixels, struct image_pixels *image)
{
    const __m512 one = _mm512_set1_ps(3 << 22); /* a number whose last bit is a one */
    const __m512i zero = _mm512_sub_epi32((__m512i)one, _mm512_set1_epi32(255)), twice = _mm512_set1_epi32(2);
    __m512i places[6]; /* of a row's 32 red, 32 green and 32 blue bytes: which one is the lowest byte of a lane */
    UNROLL for (int i = 0; i < 6; i++)
        UNROLL for (int lane = 0; lane < 16; lane++)
            ((ivec *)places)[i][lane] = (i * 16 + lane) % 3 * 32 + (i * 16 + lane) / 3;
    for (int y = 0; y < 32; y++) {
        const uint8_t *row = pixels + y * 32;
        wide_ints red_green;
        wide_pair(row, row + 32 * 32, &red_green);
        __m512i blue = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(row + 2 * 32 * 32)));
        UNROLL for (int i = 0; i < 6; i++) {
            __m512i bytes = _mm512_permutex2var_epi8((__m512i)red_green, places[i], blue);
            __m512i sum = _mm512_dpbusd_epi32(zero, bytes, twice);
            _mm512_store_ps(image->at[y][0] + i * 16, _mm512_sub_ps((__m512)sum, one));
        }
    }
}
#elif defined(__AVX2__)
/* Sixteen pixels. Both halves of a vector have the same bytes, so that a shuffle within halves finds its four numbers.
 * A byte p becomes the float 2^16 + 2p: what is left are bytes that all have. */
static inline void sixteen_pixels(const uint8_t *pixels, float *numbers)
{
    const __m256i rest = _mm256_set1_epi32(0x47804780); /* the float's upper bytes, twice */
    const __m256 zero = _mm256_set1_ps((1 << 16) + 255);
    __m256i fours[4]; /* of four pixels: red, green, blue, rest */
    __m256i color[3], places[3];
    UNROLL for (int c = 0; c < 3; c++)
        color[c] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(pixels + c * 32 * 32)));
    __m256i low[2] = {_mm256_unpacklo_epi32(color[0], color[1]), _mm256_unpacklo_epi32(color[2], rest)};
    __m256i high[2] = {_mm256_unpackhi_epi32(color[0], color[1]), _mm256_unpackhi_epi32(color[2], rest)};
    fours[0] = _mm256_unpacklo_epi64(low[0], low[1]);
    fours[1] = _mm256_unpackhi_epi64(low[0], low[1]);
    fours[2] = _mm256_unpacklo_epi64(high[0], high[1]);
    fours[3] = _mm256_unpackhi_epi64(high[0], high[1]);
    UNROLL for (int i = 0; i < 3; i++)
        UNROLL for (int lane = 0; lane < 8; lane++) {
            int number = (i * 8 + lane) % 12, place = number % 3 * 4 + number / 3; /* of twelve */
            ((eight_ints *)places)[i][lane] = 0x80 | place << 8 | 12 << 16 | 13 << 24;
        }
    UNROLL for (int i = 0; i < 6; i++) {
        const __m256i *from = fours + i / 3 * 2;
        __m256i bytes = i % 3 == 0 ? from[0] : i % 3 == 1 ? _mm256_blend_epi32(from[0], from[1], 0xf0) : from[1];
        __m256i number = _mm256_shuffle_epi8(bytes, places[i % 3]);
        _mm256_storeu_ps(numbers + i * 8, _mm256_sub_ps((__m256)number, zero));
    }
}

void image_pixels(const uint8_t *pixels, struct image_pixels *image)
{
    for (int i = 0; i < 32 * 32; i += 16)
        sixteen_pixels(pixels + i, image->at[0][0] + i * 3);
}
#else
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
#endif
