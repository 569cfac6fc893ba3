/* definition.h - the arithmetic of a training step, defined: kernels/README.md in code, one number after the other.
 *
 * Every engine that promises the digests of README.md computes these bits: whatever it splits among lanes, threads or
 * ranks, it leaves the same sums. Slow and plain; what the tests hold the fast engines to. Everything is in canonical
 * layout (lenet5.h). Compiled without contraction: the only multiply-adds are those written as fmaf.
 */
#ifndef DTRAIN_DEFINITION_H
#define DTRAIN_DEFINITION_H

#include <stddef.h>
#include <stdint.h>

#include "exact_sum.h"
#include "lenet5.h"
#include "masks.h"

/* What a batch leaves, whatever the order of its tiles: integers. */
struct definition_sums {
    int64_t gradient[LENET5_WEIGHTS], loss; /* exact_sum.h */
    int64_t refused;                        /* not 0 when a term was: the step is then not applied */
};

/* Adds the gradient and the loss of a tile: `count` samples (1..TILE) at consecutive positions of the batch, the first
 * one's a multiple of TILE. scales: masks.h. */
void definition_tile(const float *weights, int count, const uint8_t *const *records, const struct sample_mask *masks,
                     const float scales[DROPOUT_LAYERS], struct definition_sums *sums);

/* v = momentum v + g, w -= learning_rate v, where g is the average over the batch's samples. */
void definition_update(const struct definition_sums *sums, size_t samples, float learning_rate, float momentum,
                       float *velocity, float *weights);

/* Without dropout: adds a sample's loss to sums->loss, and 1 to *correct when its largest logit (the first of equals)
 * is its label. */
void definition_evaluate(const float *weights, const uint8_t *record, struct definition_sums *sums, int64_t *correct);

#endif
