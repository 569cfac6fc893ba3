/* conv2's ReLU, dropout of whole channels and 2x2 max-pool. A warp owns a plane, that is one channel of one
 * sample: it draws the plane's mask once and reads nothing of a dropped one. */
#include "device.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP, CHANNELS = CONV2_ELEMENTS, HALF = 5, WINDOWS = HALF * HALF };

static __global__ void __launch_bounds__(THREADS)
    pool_forward_kernel(struct layer_mask mask, uint32_t planes, const float2 *x, const float *bias, float *y,
                        uint8_t *origin)
{
    uint32_t p = blockIdx.x * WARPS + threadIdx.x / WARP, n = p / CHANNELS, c = p % CHANNELS;
    unsigned i = threadIdx.x % WARP;
    if (p >= planes || i >= WINDOWS)
        return;
    float result = 0;
    uint8_t from = CUDA_NOWHERE;
    if (layer_mask_draw(mask, n, c / 4) >> c % 4 & 1) {
        const float2 *window = x + (size_t)p * 2 * WINDOWS + i / HALF * 2 * HALF + i % HALF;
        float2 upper = window[0], lower = window[HALF];
        float numbers[4] = {upper.x, upper.y, lower.x, lower.y};
        result = pool(numbers, bias[c], mask.scale, &from);
    }
    y[(size_t)p * WINDOWS + i] = result;
    if (origin)
        origin[(size_t)p * WINDOWS + i] = from;
}

cudaError_t cuda_pool_forward(struct cuda_dropout dropout, uint32_t count, const float *x, const float *bias,
                              float *y, uint8_t *origin, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    uint32_t planes = count * CHANNELS;
    return LAUNCH(pool_forward_kernel, blocks_for(planes, WARPS), THREADS, stream,
                  layer_mask_make(DROPOUT_CONV2, dropout), planes, (const float2 *)x, bias, y, origin);
}
