/* Softmax cross-entropy, and what an accuracy check counts. A thread a sample. */
#include "device.cuh"
#include "exact_sum.h"

enum { THREADS = 64, CLASSES = LENET5_CLASSES };

/* z[CLASSES] = the logits of sample n, as pairs: rows are 40 bytes. */
static __device__ __forceinline__ void read_logits(const float *logits, const float *bias, uint32_t n,
                                                   float *z)
{
    const float2 *row = (const float2 *)(logits + (size_t)n * CLASSES);
#pragma unroll
    for (int k = 0; k < CLASSES; k += 2) {
        float2 pair = row[k / 2];
        z[k] = pair.x + bias[k];
        z[k + 1] = pair.y + bias[k + 1];
    }
}

/* Returns the loss; z becomes the numerators exp(z - largest), *inverse one over their sum. */
static __device__ __forceinline__ float cross_entropy(float *z, uint8_t label, float *inverse)
{
    float largest = z[0], wanted = z[0]; /* largest is subtracted, so that exp cannot overflow */
#pragma unroll
    for (int k = 1; k < CLASSES; k++) {
        largest = z[k] > largest ? z[k] : largest;
        wanted = k == label ? z[k] : wanted;
    }
    float sum = 0;
#pragma unroll
    for (int k = 0; k < CLASSES; k++) {
        z[k] = expf(z[k] - largest);
        sum += z[k];
    }
    *inverse = 1 / sum;
    return logf(sum) + (largest - wanted);
}

static __global__ void __launch_bounds__(THREADS)
    loss_kernel(uint32_t count, const float *logits, const float *bias, const uint8_t *labels, float *losses,
                float *dlogits, int64_t *refused)
{
    uint32_t n = blockIdx.x * THREADS + threadIdx.x;
    if (n == 0)
        *refused = 0;
    if (n >= count)
        return;
    float z[CLASSES], inverse;
    uint8_t label = labels[n];
    read_logits(logits, bias, n, z);
    losses[n] = cross_entropy(z, label, &inverse);
    float2 *row = (float2 *)(dlogits + (size_t)n * CLASSES);
#pragma unroll
    for (int k = 0; k < CLASSES; k += 2)
        row[k / 2] = make_float2(z[k] * inverse - (k == label), z[k + 1] * inverse - (k + 1 == label));
}

/* Every thread stays to the end, for the sums over its warp. */
static __global__ void __launch_bounds__(THREADS)
    evaluate_kernel(uint32_t count, const float *logits, const float *bias, const uint8_t *labels,
                    struct evaluation *total)
{
    uint32_t n = blockIdx.x * THREADS + threadIdx.x;
    int64_t loss = 0;
    int correct = 0, refused = 0;
    if (n < count) {
        float z[CLASSES], inverse, largest;
        uint8_t label = labels[n];
        int best = 0;
        read_logits(logits, bias, n, z);
        largest = z[0];
#pragma unroll
        for (int k = 1; k < CLASSES; k++)
            if (z[k] > largest) {
                largest = z[k];
                best = k;
            }
        correct = best == label;
        float entropy = cross_entropy(z, label, &inverse);
        refused = !(entropy < EXACT_LIMIT); /* so that the sum of a set of 2^16 cannot wrap */
        loss = fixed_point(entropy, refused);
    }
    loss = warp_sum(loss);
    correct = warp_sum(correct);
    refused = warp_sum(refused);
    if (threadIdx.x % WARP == 0) {
        atomicAdd((unsigned long long *)&total->loss, (unsigned long long)loss);
        atomicAdd((unsigned long long *)&total->correct, (unsigned long long)correct);
        atomicAdd((unsigned long long *)&total->refused, (unsigned long long)refused);
    }
}

cudaError_t cuda_loss(uint32_t count, const float *logits, const float *bias, const uint8_t *labels,
                      float *losses, float *dlogits, int64_t *sums, cudaStream_t stream)
{
    return LAUNCH(loss_kernel, blocks_for(count + 1, THREADS), THREADS, stream, count, logits, bias, labels,
                  losses, dlogits, sums + CUDA_SUMS_REFUSED);
}

cudaError_t cuda_evaluate(uint32_t count, const float *logits, const float *bias, const uint8_t *labels,
                          struct evaluation *sum, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    return LAUNCH(evaluate_kernel, blocks_for(count, THREADS), THREADS, stream, count, logits, bias, labels,
                  sum);
}
