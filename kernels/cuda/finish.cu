/* The gradient as the ranks sum it: sums of columns for the biases and the loss, and every number rounded to
 * fixed point, if it fits. One launch, whose blocks have two trades: the first SUMMERS sum 32 columns each,
 * the others round 1,024 numbers of the weights each. */
#include "device.cuh"
#include "sampler.h"

enum { LAYERS = 5, SUMMERS = 11, THREADS = 1024, ROWS = THREADS / WARP, AT_ONCE = 8 };

/* Columns column .. of rows (count, width), whose sums go to sums[into + column]. */
struct columns {
    const float *rows;
    uint32_t width, column, into;
};
struct finish {
    struct columns columns[SUMMERS];
    struct {
        uint32_t first, count;
    } biases[LAYERS];
    float limit;
};

/* Whoever else writes *refused writes the same. */
static __device__ __forceinline__ int64_t round_or_refuse(float number, float limit, int64_t *sums)
{
    bool refused = !(fabsf(number) < limit);
    if (refused)
        sums[CUDA_SUMS_REFUSED] = 1;
    return fixed_point(number, refused);
}

/* A thread sums every 32nd row of a column; then a warp sums the 32 threads of one. */
static __device__ void sum_columns(struct columns c, uint32_t count, float limit, int64_t *sums)
{
    __shared__ float part[ROWS][WARP + 1]; /* one more, so that columns too lie across all banks */
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool mine = c.column + lane < c.width;
    float sum = 0;
    for (uint32_t n = warp; n < count; n += AT_ONCE * ROWS)
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++)
            sum +=
                mine && n + k * ROWS < count ? c.rows[(n + k * ROWS) * (size_t)c.width + c.column + lane] : 0;
    part[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(part[lane][warp]);
    if (lane == 0 && c.column + warp < c.width)
        sums[c.into + c.column + warp] = round_or_refuse(sum, limit, sums);
}

static __device__ __forceinline__ bool is_bias(const struct finish &finish, uint32_t i)
{
    bool yes = false;
#pragma unroll
    for (int k = 0; k < LAYERS; k++)
        yes |= i - finish.biases[k].first < finish.biases[k].count;
    return yes;
}

static __global__ void __launch_bounds__(THREADS)
    finish_gradient_kernel(struct finish finish, uint32_t count, const float *gradient,
                           const volatile int32_t *stop, int64_t *sums)
{
    if (blockIdx.x < SUMMERS) {
        if (blockIdx.x == 0 && threadIdx.x == 0)
            sums[CUDA_SUMS_STOP] = stop != nullptr && *stop != 0;
        sum_columns(finish.columns[blockIdx.x], count, finish.limit, sums);
    } else {
        uint32_t i = (blockIdx.x - SUMMERS) * THREADS + threadIdx.x;
        if (i < LENET5_WEIGHTS && !is_bias(finish, i))
            sums[i] = round_or_refuse(count > 0 ? gradient[i] : 0, finish.limit, sums);
    }
}

/* A term of an exact sum may be a sample's: numbers that stand for several samples have that many times the room. */
static float limit_of(uint32_t count)
{
    return EXACT_LIMIT * (float)(count > 0 ? count : 1);
}

cudaError_t cuda_finish_gradient(struct cuda_rows rows, uint32_t count, const float *gradient,
                                 const volatile int32_t *stop, int64_t *sums, cudaStream_t stream)
{
    const float *layers[LAYERS] = {rows.conv1, rows.conv2, rows.conv3, rows.fc1, rows.fc2};
    struct finish finish = {};
    struct columns *next = finish.columns;
    for (int k = 0; k < LAYERS; k++) {
        const struct parameter *bias = &lenet5_parameters[2 * k + 1];
        uint32_t width = (uint32_t)bias->count, into = (uint32_t)bias->offset;
        finish.biases[k] = {into, width};
        for (uint32_t column = 0; column < width; column += WARP)
            *next++ = {layers[k], width, column, into};
    }
    *next = {rows.losses, 1, 0, CUDA_SUMS_LOSS};
    finish.limit = limit_of(count);
    return LAUNCH(finish_gradient_kernel, SUMMERS + blocks_for(LENET5_WEIGHTS, THREADS), THREADS, stream,
                  finish, count, gradient, stop, sums);
}
