/* The gradient as the ranks sum it: sums of columns for the convolutions, the biases and the loss, and every
 * number rounded to fixed point, if it fits. One launch with two kinds of blocks: the first SUMMERS sum 32
 * columns of a table each, the others round 1,024 numbers of the dense layers' weights each. */
#include "device.cuh"
#include "exact_sum.h"

enum { TABLES = 6, THREADS = 1024, ROWS = THREADS / WARP, AT_ONCE = 8, DENSE = CUDA_CONV1_WIDTH + CUDA_CONV2_WIDTH };

/* rows (count, width), whose columns' sums go to sums[into ..]. */
struct table {
    const float *rows;
    uint32_t count, width, into;
};
struct finish {
    struct table tables[TABLES];
    uint32_t summers;
    float limit;
};

/* Several threads may write *refused at once: all write the same value. */
static __device__ __forceinline__ int64_t round_or_refuse(float number, float limit, int64_t *sums)
{
    bool refused = !(fabsf(number) < limit);
    if (refused)
        sums[CUDA_SUMS_REFUSED] = 1;
    return fixed_point(number, refused);
}

/* A thread sums every 32nd row of a column; then a warp sums the 32 threads of one. */
static __device__ void sum_columns(struct table t, uint32_t column, float limit, int64_t *sums)
{
    __shared__ float part[ROWS][WARP + 1]; /* one more, so that columns too lie across all banks */
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool mine = column + lane < t.width;
    float sum = 0;
    for (uint32_t n = warp; n < t.count; n += AT_ONCE * ROWS)
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++)
            sum += mine && n + k * ROWS < t.count ? t.rows[(n + k * ROWS) * (size_t)t.width + column + lane] : 0;
    part[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(part[lane][warp]);
    if (lane == 0 && column + warp < t.width)
        sums[t.into + column + warp] = round_or_refuse(sum, limit, sums);
}

/* The table that block `block` sums columns of, WARP of them from *column on. */
static __device__ __forceinline__ struct table find_table(const struct finish &finish, uint32_t block,
                                                          uint32_t *column)
{
    struct table found = finish.tables[0];
    *column = block * WARP;
#pragma unroll
    for (int t = 0; t < TABLES - 1; t++) {
        uint32_t wide = (finish.tables[t].width + WARP - 1) / WARP * WARP;
        if (*column < wide)
            break;
        *column -= wide;
        found = finish.tables[t + 1];
    }
    return found;
}

static __device__ __forceinline__ bool is_bias(const struct finish &finish, uint32_t i)
{
    bool yes = false;
#pragma unroll
    for (int t = 2; t < TABLES - 1; t++) /* those before have their biases with their weights */
        yes |= i - finish.tables[t].into < finish.tables[t].width;
    return yes;
}

/* The sum of the parts. All are read before the first is added. */
static __device__ __forceinline__ float sum_splits(const float *part, uint32_t splits)
{
    float sum = 0;
#pragma unroll
    for (uint32_t s = 0; s < CUDA_SPLITS; s++)
        sum += s < splits ? part[(size_t)s * LENET5_WEIGHTS] : 0;
    return sum;
}

static __global__ void __launch_bounds__(THREADS)
    finish_gradient_kernel(struct finish finish, uint32_t splits, const float *gradient,
                           const volatile int32_t *stop, int64_t *sums)
{
    if (blockIdx.x < finish.summers) {
        uint32_t column;
        struct table table = find_table(finish, blockIdx.x, &column);
        if (blockIdx.x == 0 && threadIdx.x == 0)
            sums[CUDA_SUMS_STOP] = stop != nullptr && *stop != 0;
        sum_columns(table, column, finish.limit, sums);
    } else {
        uint32_t i = DENSE + (blockIdx.x - finish.summers) * THREADS + threadIdx.x;
        if (i < LENET5_WEIGHTS && !is_bias(finish, i))
            sums[i] = round_or_refuse(sum_splits(gradient + i, splits), finish.limit, sums);
    }
}

/* EXACT_LIMIT holds for the term of one sample: a number that is a sum over several may be that many times as large. */
static float limit_of(uint32_t count)
{
    return EXACT_LIMIT * (float)(count > 0 ? count : 1);
}

cudaError_t cuda_finish_gradient(struct cuda_rows rows, uint32_t count, const float *gradient,
                                 const volatile int32_t *stop, int64_t *sums, cudaStream_t stream)
{
    const struct parameter *of = lenet5_parameters;
    uint32_t parts = cuda_parts(count);
    struct finish finish = {
        {
            {rows.conv1, parts, CUDA_CONV1_WIDTH, (uint32_t)of[0].offset},
            {rows.conv2, parts, CUDA_CONV2_WIDTH, (uint32_t)of[2].offset},
            {rows.conv3, count, CONV3_ELEMENTS, (uint32_t)of[5].offset},
            {rows.fc1, count, FC1_ELEMENTS, (uint32_t)of[7].offset},
            {rows.fc2, count, LENET5_CLASSES, (uint32_t)of[9].offset},
            {rows.losses, count, 1, CUDA_SUMS_LOSS},
        },
        0,
        limit_of(count),
    };
    for (int t = 0; t < TABLES; t++)
        finish.summers += blocks_for(finish.tables[t].width, WARP);
    return LAUNCH(finish_gradient_kernel, finish.summers + blocks_for(LENET5_WEIGHTS - DENSE, THREADS), THREADS,
                  stream, finish, cuda_splits(count), gradient, stop, sums);
}
