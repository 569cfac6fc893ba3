/* kernels.h - the CUDA kernels of LeNet-5's training step, as C functions that launch them.
 *
 * Tensors are fp32, contiguous, row-major (N, C, H, W) and in device memory; N, here `count`, is this
 * rank's samples of a global batch and may be 0. Buffers begin on 16 bytes; x and y are not one buffer
 * unless it says "in place". Results are the same bits on every run: sums are taken in a fixed order.
 * A NaN is never swallowed: every ReLU and pool lets it through.
 *
 * Every function queues on `stream`, waits for nothing, can be captured into a CUDA graph, and returns what
 * cudaGetLastError says of the launch. What differs from step to step lies in struct cuda_step in device
 * memory, so one graph serves all full batches of a run and a second one the last of each epoch.
 */
#ifndef DTRAIN_CUDA_KERNELS_H
#define DTRAIN_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "evaluation.h"
#include "lenet5.h"
#include "masks.h"

/* In device memory, one for each replica. The host writes it when nothing is queued, and reads it after. */
struct cuda_step {
    uint64_t step;       /* number of the coming step: the masks' */
    uint32_t position;   /* where the coming batch begins in the epoch's order */
    float learning_rate; /* of the coming step */
    int64_t loss;        /* sum of the losses of the samples of all steps applied, in EXACT_UNITs
                            (exact_sum.h); the host clears it */
    uint32_t applied;    /* steps applied; the host clears it */
    uint32_t stopped;    /* 1: a rank wished to stop. The step that said so was applied */
    uint32_t not_finite; /* 1: a loss or gradient was not finite. The step was not applied */
    uint32_t arrived;    /* blocks of cuda_sgd that are through; 0 between launches */
};

/* What the ranks sum, int64: LENET5_WEIGHTS gradients in canonical layout, in EXACT_UNITs, then these in the
 * order of enum sum_slot (engine.h). Integers, so that no order of summation changes a bit. */
enum { CUDA_SUMS_LOSS = LENET5_WEIGHTS, CUDA_SUMS_STOP, CUDA_SUMS_REFUSED, CUDA_SUMS };

/* --- convolutions ---------------------------------------------------------------------------------- */

/* Whose masks: those of `layer` at the global positions first .. first + count of step->step, as masks_draw
 * draws them. masks NULL: predict mode, nothing is dropped and step is not read. */
struct cuda_dropout {
    const struct masks *masks; /* in host memory, read during the call */
    const struct cuda_step *step;
    uint32_t first;
};

/* The samples at the positions step->position + first .. + count of `order`. Without a step (NULL) positions count
 * from `first` alone; without an order (NULL) position i is record i. */
struct cuda_input {
    const uint8_t *records; /* RECORD_BYTES each (dataset.h) */
    const uint32_t *order;
    const struct cuda_step *step;
    uint32_t first;
};

/* From the bytes to y (count, 6, 14, 14) = maxpool2x2(dropout2d(relu(conv1))). Leaves images (count, 3, 32, 32) =
 * pixel / 127.5 - 1 (NULL: not wanted) and labels[count]. weights: canonical. origin, a byte for each number of y
 * (NULL: not wanted), says where in its window that came from: 0..3 row by row, the first of equals; CUDA_NOWHERE:
 * dropped or not above 0, so no gradient passes. */
enum { CUDA_NOWHERE = 255 };
cudaError_t cuda_conv1_forward(struct cuda_input input, struct cuda_dropout dropout, uint32_t count,
                               const float *weights, float *images, uint8_t *labels, float *y, uint8_t *origin,
                               cudaStream_t stream);

/* y (count, 16, 5, 5) = maxpool2x2(dropout2d(relu(x + bias))) of conv2: x (count, 16, 10, 10). origin as in
 * cuda_conv1_forward. */
cudaError_t cuda_pool_forward(struct cuda_dropout dropout, uint32_t count, const float *x, const float *bias,
                              float *y, uint8_t *origin, cudaStream_t stream);

/* dx (count, 6, 14, 14) of conv2 from dy (count, 16, 5, 5), the gradient of its pool's output; origin and masks as in
 * forward. weights: canonical. */
cudaError_t cuda_conv2_input_gradient(const struct masks *masks, uint32_t count, const float *weights, const float *dy,
                                      const uint8_t *origin, float *dx, cudaStream_t stream);

/* The gradients of a convolution's weights come in parts, one from each block, of `count` samples so many. */
enum { CUDA_PARTS = 256, CUDA_CONV1_WIDTH = 6 * 76, CUDA_CONV2_WIDTH = 16 * 151 };
static inline uint32_t cuda_parts(uint32_t count)
{
    return count < (uint32_t)CUDA_PARTS ? count : (uint32_t)CUDA_PARTS;
}

/* The gradients of the weights and biases of conv1 (DROPOUT_CONV1) from x (count, 3, 32, 32), or of conv2
 * from x (count, 6, 14, 14), in parts (cuda_parts(count), 456 or 2416): rows in canonical layout, the biases
 * behind the weights, whose sum cuda_finish_gradient takes. dy (count, C, side/2, side/2): the gradient
 * of the pool's output; origin and masks as in forward. */
cudaError_t cuda_conv_weight_gradient(enum dropout_layer layer, const struct masks *masks, uint32_t count,
                                      const float *x, const float *dy, const uint8_t *origin, float *parts,
                                      cudaStream_t stream);

/* In place: y = dropout(relu(y + bias)) of layer DROPOUT_CONV3: y (count, 120), or DROPOUT_FC1: y (count,
 * 84). */
cudaError_t cuda_activation_forward(enum dropout_layer layer, struct cuda_dropout dropout, uint32_t count,
                                    const float *bias, float *y, cudaStream_t stream);

/* In place: dy becomes the gradient before the bias. y: what forward left. masks as in forward. */
cudaError_t cuda_activation_backward(enum dropout_layer layer, const struct masks *masks, uint32_t count,
                                     const float *y, float *dy, cudaStream_t stream);

/* --- loss ------------------------------------------------------------------------------------------ */

/* Softmax cross-entropy: losses[count] and the gradient of their sum, dlogits (count, 10), from logits
 * (count, 10) + bias (10). In place allowed. Clears sums[CUDA_SUMS_REFUSED]. */
cudaError_t cuda_loss(uint32_t count, const float *logits, const float *bias, const uint8_t *labels,
                      float *losses, float *dlogits, int64_t *sums, cudaStream_t stream);

/* The dense layers of a training step in one launch, forward and backward: from conv3 without its bias to the
 * loss, and back to the gradients before each bias. */
struct cuda_head {
    const float *weights;           /* (LENET5_WEIGHTS), canonical */
    const uint8_t *labels;          /* (count) */
    float *conv3;                   /* (count, 120): becomes y, after bias, ReLU and dropout */
    float *fc1;                     /* (count, 84): y */
    float *losses;                  /* (count) */
    float *dlogits, *dfc1, *dconv3; /* (count, 10), (count, 84), (count, 120) */
};

/* Also clears sums[CUDA_SUMS_REFUSED]. */
cudaError_t cuda_head(struct cuda_dropout dropout, uint32_t count, struct cuda_head head, int64_t *sums,
                      cudaStream_t stream);

/* Adds count samples to *sum, in device memory. */
cudaError_t cuda_evaluate(uint32_t count, const float *logits, const float *bias, const uint8_t *labels,
                          struct evaluation *sum, cudaStream_t stream);

/* --- the dense layers' weights ---------------------------------------------------------------------- */

/* cuda_dense_weight_gradient leaves the gradient in cuda_splits(count) parts: runs of CUDA_SPLIT_SAMPLES samples go to
 * them in turn. */
enum { CUDA_SPLITS = 8, CUDA_SPLIT_SAMPLES = 32 };
static inline uint32_t cuda_splits(uint32_t count)
{
    uint32_t splits = (count + CUDA_SPLIT_SAMPLES - 1) / CUDA_SPLIT_SAMPLES;
    return splits < (uint32_t)CUDA_SPLITS ? splits : (uint32_t)CUDA_SPLITS;
}

/* What the dense layers read going forward, and the gradients before their biases. */
struct cuda_dense {
    const float *pool2, *conv3, *fc1;    /* (count, 400), (count, 120), (count, 84) */
    const float *dconv3, *dfc1, *dlogits; /* (count, 120), (count, 84), (count, 10) */
};

/* The gradients of the weights of conv3, fc1 and fc2, in parts whose sum cuda_finish_gradient takes: gradient
 * (cuda_splits(count), LENET5_WEIGHTS), rows in canonical layout; other places are not written. */
cudaError_t cuda_dense_weight_gradient(struct cuda_dense dense, uint32_t count, float *gradient, cudaStream_t stream);

/* --- all of them ----------------------------------------------------------------------------------- */

/* cudaSuccess where the current device loads them: there is machine code for it, or its driver translates the PTX. */
cudaError_t cuda_loads(void);

/* --- gradient and update --------------------------------------------------------------------------- */

/* What is summed over its rows: parts of the gradients of the convolutions, and of the dense layers the
 * gradients before each bias, whose sums over the samples are those of the biases. */
struct cuda_rows {
    const float *conv1, *conv2; /* (cuda_parts(count), 456), (cuda_parts(count), 2416): cuda_conv_weight_gradient */
    const float *conv3, *fc1;   /* (count, 120), (count, 84): dy of cuda_activation_backward */
    const float *fc2;           /* (count, 10): dlogits */
    const float *losses;        /* (count) */
};

/* The last kernel before the sums over ranks, which fills all of sums but what it refuses: the gradients
 * of the dense layers' weights from `gradient` (cuda_dense_weight_gradient; nothing of it is read when count is 0), all
 * others from the rows, each rounded once to a multiple of EXACT_UNIT; the loss; and the
 * stop wish (*stop != 0; pinned host memory that the device sees, or device memory; NULL: no wish). A number
 * that is not finite or as large as EXACT_LIMIT for each sample is refused: it sets
 * sums[CUDA_SUMS_REFUSED], and its own place is then 0. */
cudaError_t cuda_finish_gradient(struct cuda_rows rows, uint32_t count, const float *gradient,
                                 const volatile int32_t *stop, int64_t *sums, cudaStream_t stream);

/* After the sums over ranks: v = momentum v + g, w -= learning_rate v with g = sums / samples (of the global
 * batch), then *step moves on to the next batch. If anything was refused it only sets step->not_finite; if
 * stopped or not_finite was set before, it does nothing: steps queued after the end change nothing. */
cudaError_t cuda_sgd(float momentum, uint32_t samples, const int64_t *sums, float *velocity, float *weights,
                     struct cuda_step *step, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
