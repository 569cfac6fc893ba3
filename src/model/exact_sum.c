#include "exact_sum.h"

#include <math.h>
#include <string.h>

static size_t count_refused(size_t count, const float *terms)
{
    size_t refused = 0;
    for (size_t i = 0; i < count; i++)
        refused += !(fabsf(terms[i]) < EXACT_LIMIT);
    return refused;
}

size_t exact_sum_add(size_t count, const float *terms, int64_t *sums)
{
    const double magic = EXACT_MAGIC;
    const float limit = EXACT_LIMIT;
    uint64_t magic_bits;
    uint32_t limit_bits, largest = 0; /* of the magnitudes, as bits: infinite and NaN are the largest */
    memcpy(&magic_bits, &magic, sizeof magic_bits);
    memcpy(&limit_bits, &limit, sizeof limit_bits);
    for (size_t i = 0; i < count; i++) {
        double shifted = (double)terms[i] + magic;
        uint64_t bits;
        uint32_t magnitude;
        memcpy(&bits, &shifted, sizeof bits);
        memcpy(&magnitude, &terms[i], sizeof magnitude);
        magnitude &= 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
        sums[i] = (int64_t)((uint64_t)sums[i] + bits - magic_bits); /* refused ones wrap */
    }
    return largest < limit_bits ? 0 : count_refused(count, terms);
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
