/* exact_sum.h - sums that do not depend on their order.
 *
 * The gradient of a sample or a tile (a float) is rounded once to 64-bit fixed point with 36 fractional
 * bits; from there on it is integer addition, which is associative: any number of ranks, any all-reduce
 * algorithm and any order give the same bits.
 *
 * It cannot wrap unnoticed: a term must be below EXACT_LIMIT = 2^11, that is 2^47 units, so 65,536
 * terms stay below 2^63; more samples than that in one global batch are refused at start. Terms at or
 * over the limit, infinite or NaN are refused: counted, whatever they add to a sum that is then of no use.
 */
#ifndef DTRAIN_EXACT_SUM_H
#define DTRAIN_EXACT_SUM_H

#include <stddef.h>
#include <stdint.h>

#define EXACT_UNIT 0x1p-36 /* the value of 1 in a fixed-point sum */
/* Adding 1.5 * 2^52 units to a double below 2^51 units leaves its rounded number of units in the low bits: a conversion
 * that every vector unit has, where float to int64 needs AVX-512. */
#define EXACT_MAGIC (0x1.8p52 * EXACT_UNIT)
#define EXACT_LIMIT 0x1p11f /* a term's magnitude must be below this */
enum { EXACT_MAX_TERMS = 65536 };

/* Samples in a tile: consecutive ones of the global batch, the unit of work, which one rank computes. */
enum { TILE = 16 };

/* sums[i] += fixed(terms[i]), rounded to nearest, ties to even. Returns how many terms were refused
 * (their sums are then meaningless). No alignment is asked. */
size_t exact_sum_add(size_t count, const float *terms, int64_t *sums);

/* values[i] = (float)(sums[i] * EXACT_UNIT * factor), computed in double. */
void exact_sum_read(size_t count, const int64_t *sums, double factor, float *values);

#endif
