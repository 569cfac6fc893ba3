/* device.cuh - what the kernels share: launching, the masks of a layer, sums over a warp. */
#ifndef DTRAIN_CUDA_DEVICE_CUH
#define DTRAIN_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include "exact_sum.h"
#include "kernels.h"
#include "philox.h"

/* LAUNCH(kernel, blocks, threads, stream, arguments...) is a cudaError_t. tests/support/shim/cuda_runtime.h brings
 * its own, which runs the kernel on the host. */
#ifndef LAUNCH
#define LAUNCH(kernel, blocks, threads, stream, ...) \
    (kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__), cudaGetLastError())
#endif

enum { WARP = 32 };

static inline unsigned blocks_for(uint64_t work, unsigned each)
{
    return (unsigned)((work + each - 1) / each);
}

/* The sum over all lanes of a full warp, in a fixed order; every lane gets it. */
template <typename T> static __device__ __forceinline__ T warp_sum(T value)
{
    for (unsigned mask = WARP / 2; mask > 0; mask /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
}

/* The largest of all lanes, likewise; a NaN may go unseen. */
static __device__ __forceinline__ float warp_max(float value)
{
    for (unsigned mask = WARP / 2; mask > 0; mask /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, mask);
        value = other > value ? other : value;
    }
    return value;
}

/* 0 for what is not above 0; a NaN stays. */
static __device__ __forceinline__ float relu(float x)
{
    return x <= 0 ? 0 : x;
}

/* One more number of a max-pool, `which` of its window: it is taken if it is larger than those before, so the first of
 * equals stays, or if it is NaN. */
static __device__ __forceinline__ void challenge(float x, uint8_t which, float *largest, uint8_t *origin)
{
    if (x > *largest || x != x) {
        *largest = x;
        *origin = which;
    }
}

/* A window of a kept channel, row by row and without its bias, through bias, ReLU, dropout and max-pool. */
static __device__ __forceinline__ float pool(const float x[4], float bias, float scale, uint8_t *origin)
{
    float largest = x[0];
    uint8_t which = 0;
#pragma unroll
    for (uint8_t i = 1; i < 4; i++)
        challenge(x[i], i, &largest, &which);
    largest = relu(largest + bias);
    *origin = largest == 0 ? (uint8_t)CUDA_NOWHERE : which;
    return largest * scale;
}

/* A multiple of EXACT_UNIT, rounded to nearest, ties to even: exact_sum.h. 0 for what is refused. */
static __device__ __forceinline__ int64_t fixed_point(float number, bool refused)
{
    return refused ? 0 : llrint((double)number * (1 / EXACT_UNIT));
}

/* struct cuda_dropout as the kernels take it: one layer of it, all by value. */
struct layer_mask {
    uint64_t seed, threshold; /* 0: nothing is dropped, nothing drawn */
    const struct cuda_step *step;
    uint32_t layer, first;
    float scale; /* of what is kept */
};

static inline struct layer_mask layer_mask_make(enum dropout_layer layer, struct cuda_dropout dropout)
{
    const struct masks *masks = dropout.masks;
    if (masks == nullptr)
        return {0, 0, nullptr, (uint32_t)layer, 0, 1};
    return {masks->seed,   philox_threshold(masks->p[layer]),
            dropout.step,  (uint32_t)layer,
            dropout.first, masks->scale[layer]};
}

/* Bit i: element 4 * block + i of sample n is kept. */
static __device__ __forceinline__ unsigned layer_mask_draw(const struct layer_mask &mask, uint32_t n,
                                                           uint32_t block)
{
    if (mask.threshold == 0)
        return 0xf;
    struct philox_counter numbers = philox4x32(
        philox_counter(PHILOX_DROPOUT, mask.layer, mask.step->step, mask.first + n, block), mask.seed);
    unsigned bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= (unsigned)(numbers.c[i] >= mask.threshold) << i;
    return bits;
}

#endif
