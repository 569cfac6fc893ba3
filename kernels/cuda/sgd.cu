/* The update of weights and velocity; the last block that is through with it moves struct cuda_step on to the next
 * batch. */
#include "device.cuh"

enum { THREADS = 1024 };

static __device__ void move_on(uint32_t samples, const int64_t *sums, struct cuda_step *step)
{
    if (sums[CUDA_SUMS_REFUSED] != 0) {
        step->not_finite = 1;
        return;
    }
    step->step++;
    step->position += samples;
    step->loss += sums[CUDA_SUMS_LOSS];
    step->applied++;
    step->stopped = sums[CUDA_SUMS_STOP] != 0;
}

static __global__ void __launch_bounds__(THREADS)
    sgd_kernel(float momentum, double average, uint32_t samples, const int64_t *sums, float *velocity,
               float *weights, struct cuda_step *step)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    bool over = step->stopped || step->not_finite;
    if (!over && sums[CUDA_SUMS_REFUSED] == 0 && i < LENET5_WEIGHTS) {
        float g = (float)((double)sums[i] * average);
        float v = momentum * velocity[i] + g;
        velocity[i] = v;
        weights[i] -= step->learning_rate * v;
    }
    __syncthreads(); /* the block has read *step */
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&step->arrived, 1u) == gridDim.x - 1) {
            step->arrived = 0;
            if (!over)
                move_on(samples, sums, step);
        }
    }
}

cudaError_t cuda_sgd(float momentum, uint32_t samples, const int64_t *sums, float *velocity, float *weights,
                     struct cuda_step *step, cudaStream_t stream)
{
    return LAUNCH(sgd_kernel, blocks_for(LENET5_WEIGHTS, THREADS), THREADS, stream, momentum,
                  EXACT_UNIT / samples, samples, sums, velocity, weights, step);
}

cudaError_t cuda_loads(void)
{
    struct cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(sgd_kernel));
}
