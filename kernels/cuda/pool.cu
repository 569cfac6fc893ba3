/* ReLU, dropout of whole channels and 2x2 max-pool, forward and backward. A warp owns a plane, that is one
 * channel of one sample: it draws the plane's mask once and reads nothing of a dropped one. */
#include "device.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };

/* Pool outputs of a plane; output i's window is at float2 i + i / HALF * HALF of the plane and HALF further.
 */
template <int SIDE> struct plane {
    enum { HALF = SIDE / 2, OUTPUTS = HALF * HALF, NUMBERS = SIDE * SIDE };
};

/* The largest so far, the first of equals; a NaN is larger than all. */
static __device__ __forceinline__ void challenge(float x, uint8_t place, float *largest, uint8_t *origin)
{
    if (x > *largest || x != x) {
        *largest = x;
        *origin = place;
    }
}

template <int CHANNELS, int SIDE>
static __global__ void __launch_bounds__(THREADS)
    pool_forward_kernel(struct layer_mask mask, uint32_t planes, const float *x, const float *bias, float *y,
                        uint8_t *origin)
{
    using plane = struct plane<SIDE>;
    uint32_t p = blockIdx.x * WARPS + threadIdx.x / WARP, n = p / CHANNELS, c = p % CHANNELS;
    if (p >= planes)
        return;
    bool kept = layer_mask_draw(mask, n, c / 4) >> c % 4 & 1;
    float b = bias ? bias[c] : 0;
    const float2 *rows = (const float2 *)(x + (size_t)p * plane::NUMBERS);
#pragma unroll
    for (unsigned i = threadIdx.x % WARP; i < plane::OUTPUTS; i += WARP) {
        float result = 0;
        uint8_t from = CUDA_NOWHERE;
        if (kept) {
            float2 upper = rows[i + i / plane::HALF * plane::HALF];
            float2 lower = rows[i + i / plane::HALF * plane::HALF + plane::HALF];
            float largest = upper.x;
            uint8_t place = 0;
            challenge(upper.y, 1, &largest, &place);
            challenge(lower.x, 2, &largest, &place);
            challenge(lower.y, 3, &largest, &place);
            largest = relu(largest + b);
            result = largest * mask.scale;
            from = largest == 0 ? (uint8_t)CUDA_NOWHERE : place;
        }
        y[(size_t)p * plane::OUTPUTS + i] = result;
        if (origin)
            origin[(size_t)p * plane::OUTPUTS + i] = from;
    }
}

template <int SIDE>
static __global__ void __launch_bounds__(THREADS)
    pool_backward_kernel(float scale, uint32_t planes, const float *dy, const uint8_t *origin, float *dx)
{
    using plane = struct plane<SIDE>;
    uint32_t p = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (p >= planes)
        return;
    float2 *rows = (float2 *)(dx + (size_t)p * plane::NUMBERS);
#pragma unroll
    for (unsigned i = threadIdx.x % WARP; i < plane::OUTPUTS; i += WARP) {
        uint8_t from = origin[(size_t)p * plane::OUTPUTS + i];
        float d = from == CUDA_NOWHERE ? 0 : dy[(size_t)p * plane::OUTPUTS + i] * scale;
        rows[i + i / plane::HALF * plane::HALF] = make_float2(from == 0 ? d : 0, from == 1 ? d : 0);
        rows[i + i / plane::HALF * plane::HALF + plane::HALF] =
            make_float2(from == 2 ? d : 0, from == 3 ? d : 0);
    }
}

cudaError_t cuda_pool_forward(enum dropout_layer layer, struct cuda_dropout dropout, uint32_t count,
                              const float *x, const float *bias, float *y, uint8_t *origin,
                              cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    struct layer_mask mask = layer_mask_make(layer, dropout);
    uint32_t planes = count * (layer == DROPOUT_CONV1 ? CONV1_ELEMENTS : CONV2_ELEMENTS);
    auto kernel = layer == DROPOUT_CONV1 ? pool_forward_kernel<CONV1_ELEMENTS, 28>
                                         : pool_forward_kernel<CONV2_ELEMENTS, 10>;
    return LAUNCH(kernel, blocks_for(planes, WARPS), THREADS, stream, mask, planes, x, bias, y, origin);
}

cudaError_t cuda_pool_backward(enum dropout_layer layer, const struct masks *masks, uint32_t count,
                               const float *dy, const uint8_t *origin, float *dx, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    float scale = masks ? masks->scale[layer] : 1;
    uint32_t planes = count * (layer == DROPOUT_CONV1 ? CONV1_ELEMENTS : CONV2_ELEMENTS);
    auto kernel = layer == DROPOUT_CONV1 ? pool_backward_kernel<28> : pool_backward_kernel<10>;
    return LAUNCH(kernel, blocks_for(planes, WARPS), THREADS, stream, scale, planes, dy, origin, dx);
}
