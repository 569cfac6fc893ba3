/* ReLU and dropout of the dense layers, in place: conv3, whose channels are single numbers, and fc1. A thread
 * has four neighbours of a sample, which is what one block of Philox decides. */
#include "device.cuh"

enum { THREADS = 128 };

static __device__ __forceinline__ float activate(float x, bool kept, float scale)
{
    return kept ? relu(x) * scale : 0;
}

/* y is 0 where it was dropped or not above 0 before the ReLU. */
static __device__ __forceinline__ float backward(float y, float dy, float scale)
{
    return y == 0 ? 0 : dy * scale;
}

template <int QUADS>
static __global__ void __launch_bounds__(THREADS)
    activation_forward_kernel(struct layer_mask mask, uint32_t quads, const float4 *bias, float4 *y)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x, n = i / QUADS, q = i % QUADS;
    if (i >= quads)
        return;
    float4 v = y[i], b = bias[q];
    unsigned kept = layer_mask_draw(mask, n, q);
    y[i] = make_float4(activate(v.x + b.x, kept & 1, mask.scale), activate(v.y + b.y, kept & 2, mask.scale),
                       activate(v.z + b.z, kept & 4, mask.scale), activate(v.w + b.w, kept & 8, mask.scale));
}

static __global__ void __launch_bounds__(THREADS)
    activation_backward_kernel(float scale, uint32_t quads, const float4 *y, float4 *dy)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= quads)
        return;
    float4 v = y[i], d = dy[i];
    dy[i] = make_float4(backward(v.x, d.x, scale), backward(v.y, d.y, scale), backward(v.z, d.z, scale),
                        backward(v.w, d.w, scale));
}

cudaError_t cuda_activation_forward(enum dropout_layer layer, struct cuda_dropout dropout, uint32_t count,
                                    const float *bias, float *y, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    struct layer_mask mask = layer_mask_make(layer, dropout);
    uint32_t quads = count * (layer == DROPOUT_CONV3 ? CONV3_ELEMENTS : FC1_ELEMENTS) / 4;
    auto kernel = layer == DROPOUT_CONV3 ? activation_forward_kernel<CONV3_ELEMENTS / 4>
                                         : activation_forward_kernel<FC1_ELEMENTS / 4>;
    return LAUNCH(kernel, blocks_for(quads, THREADS), THREADS, stream, mask, quads, (const float4 *)bias,
                  (float4 *)y);
}

cudaError_t cuda_activation_backward(enum dropout_layer layer, const struct masks *masks, uint32_t count,
                                     const float *y, float *dy, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    float scale = masks ? masks->scale[layer] : 1;
    uint32_t quads = count * (layer == DROPOUT_CONV3 ? CONV3_ELEMENTS : FC1_ELEMENTS) / 4;
    return LAUNCH(activation_backward_kernel, blocks_for(quads, THREADS), THREADS, stream, scale, quads,
                  (const float4 *)y, (float4 *)dy);
}
