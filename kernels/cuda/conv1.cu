/* conv1 from the bytes of the data set to its pool: a block has a sample, a thread one window of the pool for every
 * output channel. The 6x6 pixels that a window sees stay in registers; a dropped channel is not computed. */
#include "device.cuh"

enum {
    THREADS = 224, /* of which WINDOWS convolve */
    RECORD = 1 + LENET5_PIXELS,
    CHANNELS = LENET5_CHANNELS,
    SIDE = LENET5_SIDE,
    PITCH = 46, /* of a row in shared memory: so that the pairs of a warp's windows lie in different banks */
    KERNEL = 5,
    TAPS = CHANNELS * KERNEL * KERNEL,
    SEEN = KERNEL + 1,
    OUTPUTS = CONV1_ELEMENTS,
    HALF = 14,
    WINDOWS = HALF * HALF,
};

/* A block's shared memory. */
struct alignas(16) memory {
    float x[CHANNELS][SIDE][PITCH];
    float weights[OUTPUTS][(TAPS + 3) / 4 * 4];
    float bias[OUTPUTS];
    unsigned kept[(OUTPUTS + 3) / 4];
};

struct conv1 {
    struct cuda_input input;
    const float *weights, *bias;
    struct layer_mask mask;
    float *images, *y;
    uint8_t *labels, *origin;
};

/* pixel / 127.5 - 1, as the CPU's kernels compute it. */
static __device__ __forceinline__ float normalise(uint8_t pixel)
{
    return (float)(2 * pixel - 255) * (1 / 255.0f);
}

/* Records begin anywhere, so bytes are read one by one. */
static __device__ __forceinline__ void read_all(const struct conv1 &at, struct memory &m, uint32_t n)
{
    const struct cuda_input &input = at.input;
    uint32_t place = input.first + n + (input.step ? input.step->position : 0);
    const uint8_t *record = input.records + (size_t)(input.order ? input.order[place] : place) * RECORD;
    unsigned t = threadIdx.x;
    if (t == 0)
        at.labels[n] = record[0];
    if (t < OUTPUTS)
        m.bias[t] = at.bias[t];
    if (t >= WARP && t - WARP < (OUTPUTS + 3) / 4)
        m.kept[t - WARP] = layer_mask_draw(at.mask, n, t - WARP);
#pragma unroll
    for (unsigned i = t; i < OUTPUTS * TAPS; i += THREADS)
        m.weights[i / TAPS][i % TAPS] = at.weights[i];
#pragma unroll
    for (unsigned i = t; i < LENET5_PIXELS; i += THREADS) {
        float x = normalise(record[1 + i]);
        m.x[i / (SIDE * SIDE)][i / SIDE % SIDE][i % SIDE] = x;
        if (at.images)
            at.images[(size_t)n * LENET5_PIXELS + i] = x;
    }
}

/* The four sums of the window for one output channel, row by row. */
static __device__ __forceinline__ void convolve(const float x[CHANNELS][SEEN][SEEN], const float *weights,
                                                float sums[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        sums[i] = 0;
#pragma unroll
    for (int quad = 0; quad < (TAPS + 3) / 4; quad++) {
        float4 four = ((const float4 *)weights)[quad];
        float w[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int tap = 4 * quad + j, c = tap / (KERNEL * KERNEL), u = tap / KERNEL % KERNEL, v = tap % KERNEL;
            if (tap < TAPS)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[i] += w[j] * x[c][u + i / 2][v + i % 2];
        }
    }
}

static __global__ void __launch_bounds__(THREADS, 2) conv1_forward_kernel(struct conv1 at)
{
    __shared__ struct memory m;
    uint32_t n = blockIdx.x;
    unsigned window = threadIdx.x;
    read_all(at, m, n);
    __syncthreads();
    if (window >= WINDOWS)
        return;
    float x[CHANNELS][SEEN][SEEN];
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
#pragma unroll
        for (int u = 0; u < SEEN; u++)
#pragma unroll
            for (int v = 0; v < SEEN; v += 2) {
                float2 pair = *(const float2 *)&m.x[c][window / HALF * 2 + u][window % HALF * 2 + v];
                x[c][u][v] = pair.x;
                x[c][u][v + 1] = pair.y;
            }
#pragma unroll 1
    for (unsigned k = 0; k < OUTPUTS; k++) {
        float result = 0;
        uint8_t from = CUDA_NOWHERE;
        if (m.kept[k / 4] >> k % 4 & 1) {
            float sums[4];
            convolve(x, m.weights[k], sums);
            result = pool(sums, m.bias[k], at.mask.scale, &from);
        }
        size_t to = ((size_t)n * OUTPUTS + k) * WINDOWS + window;
        at.y[to] = result;
        if (at.origin)
            at.origin[to] = from;
    }
}

cudaError_t cuda_conv1_forward(struct cuda_input input, struct cuda_dropout dropout, uint32_t count,
                               const float *weights, float *images, uint8_t *labels, float *y, uint8_t *origin,
                               cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    struct conv1 at = {input,
                       weights + lenet5_parameters[0].offset,
                       weights + lenet5_parameters[1].offset,
                       layer_mask_make(DROPOUT_CONV1, dropout),
                       images,
                       y,
                       labels,
                       origin};
    return LAUNCH(conv1_forward_kernel, count, THREADS, stream, at);
}
