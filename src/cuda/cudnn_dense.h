/* cudnn_dense.h - the matrix products of LeNet-5 on one GPU: conv3, whose window is its whole input, fc1 and
 * fc2, with what lies between and behind them. Everything is queued on the net's
 * stream, if no other is named.
 */
#ifndef DTRAIN_CUDA_CUDNN_DENSE_H
#define DTRAIN_CUDA_CUDNN_DENSE_H

#include "cudnn_buffers.h"

/* From pool2_y to conv3_y, without its bias: n samples. */
void dense_conv3(struct cudnn_net *net, int n);

/* On to the logits, without fc2's bias. The first `count` of n samples matter. */
void dense_logits(struct cudnn_net *net, int n, uint32_t count, struct cuda_dropout dropout);

/* In a training step: from conv3_y to the losses, and back to the gradients before each bias: logits (in
 * place), d_fc1_y, d_conv3_y. By one kernel of the project (cuda_head), or by cuBLAS's products and the
 * kernels between them, which is faster from some number of samples on. */
void dense_step(struct cudnn_net *net, bool one_kernel, uint32_t count, struct cuda_dropout dropout);

/* Whether one kernel is faster here: timed once, see cudnn_choose.h. Overwrites the buffers. */
bool dense_choose_one_kernel(struct cudnn_net *net, struct chooser *chooser, uint32_t count);

/* From there to the gradients of the weights, on any stream, and to d_pool2_y. */
void dense_weight_gradient(struct cudnn_net *net, uint32_t count, cudaStream_t stream);
void dense_conv3_input_gradient(struct cudnn_net *net, int n);

#endif
