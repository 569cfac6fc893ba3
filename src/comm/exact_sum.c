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

void exact_sum_read(size_t count, const int64_t *sums, double factor, float *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((double)sums[i] * (EXACT_UNIT * factor));
}
