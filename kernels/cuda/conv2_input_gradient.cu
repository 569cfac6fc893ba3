/* The gradient of conv2's input, from what its pool let through. A block has a sample. It spreads the gradients of
 * the output channels that pass any over planes with a border of zeros; GROUPS groups of warps share out those
 * channels, a warp makes three of the six input channels, a lane seven numbers of a row of each. */
#include "device.cuh"

enum {
    KERNEL = 5,
    INPUTS = CONV1_ELEMENTS,
    OUTPUTS = CONV2_ELEMENTS,
    SIDE = 14,
    NUMBERS = SIDE * SIDE,
    WEIGHTS = OUTPUTS * INPUTS * KERNEL * KERNEL,
    HALF = 5,
    WINDOWS = HALF * HALF,
    BORDER = KERNEL - 1,
    PITCH = SIDE + BORDER, /* rows and columns of a plane with its border; lanes read different banks */
    GROUPS = 4,
    SIDES = 2,                   /* warps of a group */
    CHANNELS = INPUTS / SIDES,   /* of a warp */
    ALONG = SIDE / 2,            /* numbers of a lane in a row */
    LANES = SIDE * SIDE / ALONG, /* of a warp that have some */
    THREADS = GROUPS * SIDES * WARP,
    ROW = (KERNEL * CHANNELS + 3) / 4 * 4,
};

/* A block's shared memory. */
struct alignas(16) memory {
    float weights[OUTPUTS][SIDES][KERNEL][ROW]; /* a row of a kernel, the input channels of a warp side by side */
    union {
        float dy[OUTPUTS][PITCH][PITCH];
        float sums[GROUPS][INPUTS * NUMBERS]; /* when all are through with dy */
    };
    unsigned passes[OUTPUTS];
};

struct conv2_input_gradient {
    const float *weights, *dy;
    const uint8_t *origin;
    float *dx;
    float scale;
};

/* What a thread reads, all of it under way before the first is waited for. */
struct reads {
    float weights[(WEIGHTS + THREADS - 1) / THREADS];
    float dy[(OUTPUTS * WINDOWS + THREADS - 1) / THREADS];
    unsigned origin[(OUTPUTS * WINDOWS + THREADS - 1) / THREADS];
};

static __device__ __forceinline__ struct reads read_all(const struct conv2_input_gradient &at, uint32_t n)
{
    struct reads reads;
    size_t begin = (size_t)n * OUTPUTS * WINDOWS;
#pragma unroll
    for (unsigned k = 0, i = threadIdx.x; i < OUTPUTS * WINDOWS; k++, i += THREADS) {
        reads.origin[k] = at.origin[begin + i];
        reads.dy[k] = at.dy[begin + i];
    }
#pragma unroll
    for (unsigned k = 0, i = threadIdx.x; i < WEIGHTS; k++, i += THREADS)
        reads.weights[k] = at.weights[i];
    return reads;
}

static __device__ __forceinline__ void clear(struct memory &m)
{
    float4 *dy = (float4 *)m.dy;
    static_assert(sizeof m.dy % sizeof *dy == 0, "");
    for (unsigned i = threadIdx.x; i < sizeof m.dy / sizeof *dy; i += THREADS)
        dy[i] = make_float4(0, 0, 0, 0);
    if (threadIdx.x < OUTPUTS)
        m.passes[threadIdx.x] = 0;
}

static __device__ __forceinline__ void write_weights(const struct reads &reads, struct memory &m)
{
#pragma unroll
    for (unsigned j = 0, i = threadIdx.x; i < WEIGHTS; j++, i += THREADS) {
        unsigned k = i / (INPUTS * KERNEL * KERNEL), c = i / (KERNEL * KERNEL) % INPUTS;
        unsigned u = i / KERNEL % KERNEL, v = i % KERNEL;
        m.weights[k][c / CHANNELS][u][v * CHANNELS + c % CHANNELS] = reads.weights[j];
    }
}

/* Several threads may write m.passes at once: all write the same value. */
static __device__ __forceinline__ void spread(const struct reads &reads, float scale, struct memory &m)
{
#pragma unroll
    for (unsigned j = 0, i = threadIdx.x; i < OUTPUTS * WINDOWS; j++, i += THREADS) {
        unsigned from = reads.origin[j], k = i / WINDOWS;
        unsigned row = i / HALF % HALF * 2 + from / 2, column = i % HALF * 2 + from % 2;
        if (from != CUDA_NOWHERE) {
            m.dy[k][BORDER + row][BORDER + column] = reads.dy[j] * scale;
            m.passes[k] = 1;
        }
    }
}

/* Adds what channel k of the output gives to the lane's numbers. */
static __device__ __forceinline__ void add_channel(const struct memory &m, unsigned k, unsigned side, unsigned row,
                                                   unsigned column, float sums[CHANNELS][ALONG])
{
#pragma unroll
    for (unsigned u = 0; u < KERNEL; u++) {
        float d[ALONG + BORDER], w[ROW];
#pragma unroll
        for (unsigned i = 0; i < ALONG + BORDER; i++)
            d[i] = m.dy[k][row + BORDER - u][column + i];
#pragma unroll
        for (unsigned i = 0; i < ROW; i += 4) {
            float4 four = *(const float4 *)&m.weights[k][side][u][i];
            w[i] = four.x;
            w[i + 1] = four.y;
            w[i + 2] = four.z;
            w[i + 3] = four.w;
        }
#pragma unroll
        for (unsigned v = 0; v < KERNEL; v++)
#pragma unroll
            for (unsigned c = 0; c < CHANNELS; c++)
#pragma unroll
                for (unsigned i = 0; i < ALONG; i++)
                    sums[c][i] += w[v * CHANNELS + c] * d[i + BORDER - v];
    }
}

static __global__ void __launch_bounds__(THREADS) conv2_input_gradient_kernel(struct conv2_input_gradient at)
{
    __shared__ struct memory m;
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / SIDES, side = warp % SIDES;
    unsigned row = lane < LANES ? lane / 2 : 0, column = lane % 2 * ALONG;
    struct reads reads = read_all(at, blockIdx.x);
    clear(m);
    __syncthreads();
    write_weights(reads, m);
    spread(reads, at.scale, m);
    __syncthreads();
    float sums[CHANNELS][ALONG] = {};
    unsigned passing = 0;
#pragma unroll 1
    for (unsigned k = 0; k < OUTPUTS; k++) {
        if (!m.passes[k])
            continue;
        if (passing % GROUPS == group)
            add_channel(m, k, side, row, column, sums);
        passing++;
    }
    __syncthreads();
    if (lane < LANES)
#pragma unroll
        for (unsigned c = 0; c < CHANNELS; c++)
#pragma unroll
            for (unsigned i = 0; i < ALONG; i++)
                m.sums[group][(side * CHANNELS + c) * NUMBERS + row * SIDE + column + i] = sums[c][i];
    __syncthreads();
#pragma unroll
    for (unsigned i = threadIdx.x; i < INPUTS * NUMBERS; i += THREADS) {
        float sum = 0;
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++)
            sum += m.sums[g][i];
        at.dx[(size_t)blockIdx.x * INPUTS * NUMBERS + i] = sum;
    }
}

cudaError_t cuda_conv2_input_gradient(const struct masks *masks, uint32_t count, const float *weights, const float *dy,
                                      const uint8_t *origin, float *dx, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    struct conv2_input_gradient at = {weights + lenet5_parameters[2].offset, dy, origin, dx,
                                      masks ? masks->scale[DROPOUT_CONV2] : 1};
    return LAUNCH(conv2_input_gradient_kernel, count, THREADS, stream, at);
}
