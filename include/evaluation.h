/* evaluation.h - what a check counts, in predict mode; also in device memory, where kernels add to it. Integers: the
 * order of addition does not matter. */
#ifndef DTRAIN_EVALUATION_H
#define DTRAIN_EVALUATION_H

#include <stdint.h>

struct evaluation {
    int64_t loss;    /* sum of the samples' losses, in EXACT_UNITs (exact_sum.h) */
    int64_t correct; /* samples whose largest output is their label (the first of equals) */
    int64_t refused; /* losses, or sums of a tile's, that are infinite, NaN or over EXACT_LIMIT: the loss is then
                        meaningless */
};

#endif
