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
    WEIGHTS = OUTPUTS * TAPS,
    WEIGHT_READS = (WEIGHTS + OUTPUTS + THREADS - 1) / THREADS,
    READS = (LENET5_PIXELS + THREADS - 1) / THREADS, /* pixels of a thread */
};

/* A block's shared memory. */
struct alignas(16) memory {
    float x[CHANNELS][SIDE][PITCH];
    float weights[OUTPUTS][TAPS + 1]; /* and the bias */
    unsigned kept[(OUTPUTS + 3) / 4];
};

struct conv1 {
    struct cuda_input input;
    const float *weights; /* the biases behind them */
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
    uint32_t position = input.first + n + (input.step ? input.step->position : 0);
    const uint8_t *record = input.records + (size_t)(input.order ? input.order[position] : position) * RECORD;
    unsigned t = threadIdx.x;
    float weights[WEIGHT_READS]; /* all reads are under way before the first is waited for */
    uint8_t pixels[READS];
#pragma unroll
    for (unsigned k = 0; k < WEIGHT_READS; k++)
        weights[k] = t + k * THREADS < WEIGHTS + OUTPUTS ? at.weights[t + k * THREADS] : 0;
#pragma unroll
    for (unsigned k = 0; k < READS; k++)
        pixels[k] = t + k * THREADS < LENET5_PIXELS ? record[1 + t + k * THREADS] : 0;
    if (t == 0)
        at.labels[n] = record[0];
    if (t >= WARP && t - WARP < (OUTPUTS + 3) / 4)
        m.kept[t - WARP] = layer_mask_draw(at.mask, n, t - WARP);
#pragma unroll
    for (unsigned k = 0; k < WEIGHT_READS; k++) {
        unsigned i = t + k * THREADS;
        if (i < WEIGHTS + OUTPUTS)
            m.weights[i < WEIGHTS ? i / TAPS : i - WEIGHTS][i < WEIGHTS ? i % TAPS : (unsigned)TAPS] = weights[k];
    }
#pragma unroll
    for (unsigned k = 0; k < READS; k++) {
        unsigned i = t + k * THREADS;
        float x = normalise(pixels[k]);
        if (i >= LENET5_PIXELS)
            continue;
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
    for (int quad = 0; quad < (TAPS + 1) / 4; quad++) {
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

static_assert((TAPS + 1) % 4 == 0, "a row of weights is read by quads");

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
            result = pool(sums, m.weights[k][TAPS], at.mask.scale, &from);
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
                       layer_mask_make(DROPOUT_CONV1, dropout),
                       images,
                       y,
                       labels,
                       origin};
    return LAUNCH(conv1_forward_kernel, count, THREADS, stream, at);
}
