/* reference.h - LeNet-5 forward and backward in double precision, written to be obviously right.
 *
 * Plain loops over the textbook formulas, nothing skipped and nothing shared with the fast kernels: what
 * the tests and bench/step compare them with. Tensors are row-major: images and activations (C, H, W),
 * convolution weights (K, C, 5, 5), dense weights (out, in). A backward pass overwrites dx and adds to
 * dw and db. Sizes are not checked, nothing is allocated, and nothing is shared between threads.
 */
#ifndef DTRAIN_REFERENCE_H
#define DTRAIN_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#include "lenet5.h"
#include "masks.h"

/* 5x5 convolution, stride 1, no padding: x (C, S, S) -> y (K, S-4, S-4). */
struct reference_conv {
    size_t in_channels, side, out_channels; /* C, S, K */
};
void reference_conv_forward(struct reference_conv shape, const double *x, const double *w, const double *b, double *y);
void reference_conv_backward(struct reference_conv shape, const double *x, const double *w, const double *dy,
                             double *dx, double *dw, double *db);

/* ReLU, then every number of channel c (`each` of them) times factor[c]: 0 for a dropped channel, else
 * 1/(1-p). In place. Backward needs the output y: its sign is that of the input where it matters. */
void reference_activation_forward(size_t channels, size_t each, const double *factor, double *y);
void reference_activation_backward(size_t channels, size_t each, const double *factor, const double *y, double *dy);

/* Max-pool 2x2: x (C, S, S) -> y (C, S/2, S/2); from[i] is the index in x that y[i] came from, the first
 * of equals. */
void reference_pool_forward(size_t channels, size_t side, const double *x, double *y, size_t *from);
void reference_pool_backward(size_t channels, size_t side, const size_t *from, const double *dy, double *dx);

/* y (out) = w x + b. */
void reference_dense_forward(size_t in, size_t out, const double *x, const double *w, const double *b, double *y);
void reference_dense_backward(size_t in, size_t out, const double *x, const double *w, const double *dy, double *dx,
                              double *dw, double *db);

/* Cross-entropy of softmax(z) against a label; dz is its gradient. Returns the loss. */
double reference_softmax_loss(size_t classes, const double *z, size_t label, double *dz);

/* The logits of one record (dataset.h) in predict mode. weights: canonical layout. */
void reference_predict(const double *weights, const uint8_t *record, double logits[LENET5_CLASSES]);

/* Sums over `count` records with their drawn masks: returns the sum of the losses, adds that of the
 * gradients to gradient (canonical layout; NULL: loss only). */
double reference_gradient(const double *weights, const struct masks *masks, size_t count, const uint8_t *const *records,
                          const struct sample_mask *drawn, double *gradient);

/* How far the sample is from the nearest point where a ReLU or a pool decides otherwise. Single precision
 * may decide otherwise already below about 1e-6; its gradient is then another one, not a worse one, so
 * comparisons leave such samples out. */
double reference_margin(const double *weights, const struct masks *masks, const uint8_t *record,
                        const struct sample_mask *drawn);

#endif
