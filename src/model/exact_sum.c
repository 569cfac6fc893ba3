#include "exact_sum.h"

#include <math.h>
#include <string.h>

/* Adding 1.5 * 2^52 to a double below 2^51 leaves its rounded integer in the low bits: a conversion
 * that every vector unit has, where float to int64 needs AVX-512. */
static const double MAGIC = 0x1.8p52;

size_t exact_sum_add(size_t count, const float *terms, int64_t *sums)
{
    int64_t magic_bits;
    memcpy(&magic_bits, &MAGIC, sizeof magic_bits);
    uint32_t refused = 0; /* as wide as a term, so that both fill vectors alike */
    for (size_t i = 0; i < count; i++) {
        double shifted = (double)terms[i] * (1 / EXACT_UNIT) + MAGIC;
        int64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        sums[i] = (int64_t)((uint64_t)sums[i] + (uint64_t)bits - (uint64_t)magic_bits); /* refused ones wrap */
        refused += !(fabsf(terms[i]) < EXACT_LIMIT);
    }
    return refused;
}

/* (double)x for vector units without a conversion of 64-bit integers: the halves of x + 2^63 become the mantissas of
 * 2^84 + ... and 2^52 + ..., from which both offsets are taken away again. One rounding, that of the last addition. */
static inline double to_double(int64_t x)
{
    uint64_t bits = (uint64_t)x ^ 1ull << 63, high = bits >> 32 | 0x453ull << 52, low = (uint32_t)bits | 0x433ull << 52;
    double high_part, low_part;
    memcpy(&high_part, &high, sizeof high_part);
    memcpy(&low_part, &low, sizeof low_part);
    return high_part - (0x1p84 + 0x1p63 + 0x1p52) + low_part;
}

void exact_sum_read(size_t count, const int64_t *sums, double factor, float *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(to_double(sums[i]) * (EXACT_UNIT * factor));
}
