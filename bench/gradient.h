/* gradient.h - a gradient beside the double-precision reference: for step.c and nodes.h. */
#ifndef DTRAIN_BENCH_GRADIENT_H
#define DTRAIN_BENCH_GRADIENT_H

#include <float.h>
#include <math.h>

#include "dataset.h"
#include "kernels/reference/reference.h"
#include "lenet5.h"

static const double GRADIENT_TOLERANCE = 1e-5, GRADIENT_MARGIN = 2e-6;

/* Pictures for a batch that decide nothing by a hair, as sums in single precision would decide it otherwise; once the
 * set is used up, any from its beginning on. */
static void gradient_pick(const struct split *split, const double *weights, const struct masks *masks,
                          const struct sample_mask *drawn, size_t samples, uint32_t *order, const uint8_t **records)
{
    for (size_t i = 0, next = 0; i < samples; i++) {
        do {
            order[i] = (uint32_t)(next++ % split->count);
            records[i] = split_record(split, order[i]);
        } while (next < split->count && reference_margin(weights, masks, records[i], &drawn[i]) < GRADIENT_MARGIN);
    }
}

/* The relative error of the worst tensor; huge if any number is not finite. expected: the sum over the samples. */
static double gradient_error(const float *actual, const double *expected, size_t samples)
{
    double worst = 0;
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        double difference = 0, norm = 0;
        for (size_t i = 0; i < lenet5_parameters[p].count; i++) {
            double e = expected[lenet5_parameters[p].offset + i] / (double)samples;
            double d = (double)actual[lenet5_parameters[p].offset + i] - e;
            difference += d * d;
            norm += e * e;
        }
        double error = sqrt(difference / norm);
        worst = fmax(worst, isfinite(error) ? error : DBL_MAX); /* fmax ignores NaN; JSON knows no infinity */
    }
    return worst;
}

#endif
