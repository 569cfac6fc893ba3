/* dropout.h - the dropout family on tensors of any size, forward and backward, on the CPU.
 *
 *   PyTorch's module                    feature  alpha
 *   Dropout                             no       no
 *   Dropout1d, Dropout2d, Dropout3d     yes      no
 *   AlphaDropout                        no       yes
 *   FeatureAlphaDropout                 yes      yes
 *
 * A tensor is contiguous fp32, seen as (samples, channels, inner). Every number is dropped for itself, or,
 * with `feature`, every channel of a sample as a whole. Dropped with probability p, else kept:
 *
 *   y = keep ? scale * x + shift : dropped        dx = keep ? scale * dy : 0
 *
 * Plain dropout: scale 1/(1-p), shift and dropped 0. Alpha dropout keeps mean 0 and variance 1 (SELU's
 * fixed point): scale a = ((1-p)(1+p s^2))^-1/2, shift a s p, dropped a s (p-1), s = 1.7580993408473766.
 * p = 0 copies every bit. p = 1 gives zeros, as PyTorch does. What is dropped is never computed with: a
 * NaN that is dropped leaves no trace.
 *
 * Masks are not stored: backward draws them again from Philox. Element e of a sample (a number, or a
 * channel) is kept when number e of its stream is >= dropout_numbers.threshold. The CUDA twin of this
 * module, dropout_cuda.h, draws the same masks from the same descriptor, bit for bit.
 *
 * Threads: any, at the same time too: there is no state.
 *
 *     struct dropout dropout;                                   Dropout2d of 256 samples of 6 channels of 28 x 28
 *     struct dropout_stream stream = {.seed = 1, .step = step, .layer = 0, .position = 0};
 *     dropout_make(0.5, true, false, 4, (size_t[]){256, 6, 28, 28}, &dropout, &error);
 *     dropout_forward(&dropout, stream, x, y, &error);
 *     dropout_backward(&dropout, stream, dy, dx, &error);       the same stream: the same mask
 */
#ifndef DTRAIN_DROPOUT_H
#define DTRAIN_DROPOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Filled in by dropout_make. */
struct dropout {
    double p;
    bool feature, alpha;
    size_t samples, channels, inner;
};

/* Where the masks are drawn: sample n of the tensor uses (seed, PHILOX_DROPOUT, layer, step, position + n).
 * Give every layer of a model its own number, so that no two share masks. */
struct dropout_stream {
    uint64_t seed;
    uint64_t step;     /* below 2^48 */
    uint32_t layer;    /* 0..255 */
    uint32_t position; /* of the first sample in the GLOBAL batch */
};

/* Describes dropout of a tensor of shape[dimensions]: the first dimension is samples, the second channels,
 * the rest inner; without `feature` a tensor of one dimension (or none) is one sample. Sizes of 0 are fine.
 * Errors (EXIT_USAGE): p outside [0, 1] or NaN; `feature` with fewer than 2 dimensions; more numbers than
 * memory can hold; more than 2^34 elements in a sample, the length of a random stream. */
bool dropout_make(double p, bool feature, bool alpha, size_t dimensions, const size_t *shape, struct dropout *dropout,
                  struct error *error);

/* y from x, and dx from dy, all of the described size. In place (y == x) or apart, not overlapping
 * otherwise. Errors (EXIT_USAGE): a null pointer, unless the tensor is empty; a stream out of range. */
bool dropout_forward(const struct dropout *dropout, struct dropout_stream stream, const float *x, float *y,
                     struct error *error);
bool dropout_backward(const struct dropout *dropout, struct dropout_stream stream, const float *dy, float *dx,
                      struct error *error);

/* ----- the parts, for tests and other devices ----- */

/* The numbers of the formulas above. */
struct dropout_numbers {
    uint64_t threshold; /* 2^32 p: 2^32 keeps nothing */
    float scale, shift, dropped;
};
struct dropout_numbers dropout_numbers(const struct dropout *dropout);
struct dropout_numbers dropout_backward_numbers(const struct dropout *dropout); /* dx from dy: no constants */

/* What forward and backward check before they begin. *count: the numbers in the tensor. */
bool dropout_check(const struct dropout *dropout, struct dropout_stream stream, const void *from, const void *to,
                   size_t *count, struct error *error);

/* How many elements a mask has: samples * channels (* inner without `feature`). */
size_t dropout_elements(const struct dropout *dropout);

/* The mask that forward and backward draw: keep[dropout_elements] = 1 kept, 0 dropped. */
void dropout_draw(const struct dropout *dropout, struct dropout_stream stream, uint8_t *keep);

/* Forward and backward under a given mask. */
void dropout_forward_masked(const struct dropout *dropout, const uint8_t *keep, const float *x, float *y);
void dropout_backward_masked(const struct dropout *dropout, const uint8_t *keep, const float *dy, float *dx);

#endif
