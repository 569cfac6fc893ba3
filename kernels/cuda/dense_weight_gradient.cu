/* The gradients of the dense layers' weights: sums over the samples of dy (outputs) times x (inputs). All three
 * layers in one launch, as one alone fills no GPU. A block has a tile of a layer's weights and some of the samples,
 * a thread 4 by 4 weights in registers. */
#include "device.cuh"

enum {
    LAYERS = 3,
    TILE_SIDE = 40, /* divides the 120 outputs and 400 inputs of conv3, fits fc1's 84 and 120 well */
    EACH = 4,
    ACROSS = TILE_SIDE / EACH,
    THREADS = 128, /* of which ACROSS * ACROSS multiply */
    STAGE = CUDA_SPLIT_SAMPLES,
};

/* A block's shared memory: its columns of some samples. */
struct alignas(16) stage {
    float x[STAGE][TILE_SIDE], dy[STAGE][TILE_SIDE];
};

struct dense_layer {
    const float *x, *dy;
    uint32_t in, out, tiles_across, tiles;
    uint32_t into; /* where its weights begin in the canonical layout */
};
struct dense_weight_gradient {
    struct dense_layer layers[LAYERS];
    uint32_t tiles, splits, count;
    float *gradient;
};

/* The layer that has tile `tile`, counted over all layers; *of: the same tile, counted within that layer. */
static __device__ __forceinline__ struct dense_layer find_layer(const struct dense_weight_gradient &at, uint32_t tile,
                                                                uint32_t *of)
{
    struct dense_layer found = at.layers[0];
    *of = tile;
#pragma unroll
    for (int k = 1; k < LAYERS; k++) {
        if (*of < found.tiles)
            break;
        *of -= found.tiles;
        found = at.layers[k];
    }
    return found;
}

enum { PAIRS = TILE_SIDE / 2, READS = STAGE * PAIRS / THREADS };
static_assert(STAGE * PAIRS % THREADS == 0, "");

/* Columns column .. of STAGE rows of (count, width), whose widths are even; what is not there is 0. */
static __device__ __forceinline__ void read_rows(const float *rows, uint32_t width, uint32_t count, uint32_t first,
                                                 uint32_t column, float2 to[READS])
{
#pragma unroll
    for (unsigned k = 0; k < READS; k++) {
        unsigned i = threadIdx.x + k * THREADS, s = i / PAIRS, c = i % PAIRS * 2;
        to[k] = make_float2(0, 0);
        if (first + s < count && column + c < width)
            to[k] = *(const float2 *)(rows + (size_t)(first + s) * width + column + c);
    }
}

static __device__ __forceinline__ void write_rows(const float2 from[READS], float (*to)[TILE_SIDE])
{
#pragma unroll
    for (unsigned k = 0; k < READS; k++) {
        unsigned i = threadIdx.x + k * THREADS;
        *(float2 *)&to[i / PAIRS][i % PAIRS * 2] = from[k];
    }
}

static __global__ void __launch_bounds__(THREADS) dense_weight_gradient_kernel(struct dense_weight_gradient at)
{
    __shared__ struct stage m;
    uint32_t tile, split = blockIdx.x / at.tiles;
    struct dense_layer layer = find_layer(at, blockIdx.x % at.tiles, &tile);
    unsigned row = threadIdx.x / ACROSS * EACH, column = threadIdx.x % ACROSS * EACH;
    uint32_t first_row = tile / layer.tiles_across * TILE_SIDE, first_column = tile % layer.tiles_across * TILE_SIDE;
    bool mine = threadIdx.x < ACROSS * ACROSS;
    float sums[EACH][EACH] = {};
    for (uint32_t first = split * STAGE; first < at.count; first += at.splits * STAGE) {
        float2 x[READS], dy[READS]; /* all reads are under way before the first is waited for */
        read_rows(layer.x, layer.in, at.count, first, first_column, x);
        read_rows(layer.dy, layer.out, at.count, first, first_row, dy);
        __syncthreads(); /* all are through with the samples before */
        write_rows(x, m.x);
        write_rows(dy, m.dy);
        __syncthreads();
        if (!mine)
            continue;
#pragma unroll 4
        for (unsigned s = 0; s < STAGE; s++) {
            float4 a = *(const float4 *)&m.dy[s][row], b = *(const float4 *)&m.x[s][column];
            float rows[EACH] = {a.x, a.y, a.z, a.w}, columns[EACH] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    sums[i][j] += rows[i] * columns[j];
        }
    }
    float *to = at.gradient + (size_t)split * LENET5_WEIGHTS + layer.into;
    if (!mine || first_column + column >= layer.in) /* widths are multiples of EACH, too */
        return;
#pragma unroll
    for (unsigned i = 0; i < EACH; i++)
        if (first_row + row + i < layer.out) {
            float2 *at = (float2 *)(to + (first_row + row + i) * layer.in + first_column + column);
            at[0] = make_float2(sums[i][0], sums[i][1]);
            at[1] = make_float2(sums[i][2], sums[i][3]);
        }
}

cudaError_t cuda_dense_weight_gradient(struct cuda_dense dense, uint32_t count, float *gradient, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    const float *inputs[LAYERS] = {dense.pool2, dense.conv3, dense.fc1};
    const float *gradients[LAYERS] = {dense.dconv3, dense.dfc1, dense.dlogits};
    struct dense_weight_gradient at = {{}, 0, cuda_splits(count), count, gradient};
    for (int k = 0; k < LAYERS; k++) {
        const struct parameter *weights = &lenet5_parameters[4 + 2 * k];
        uint32_t out = (uint32_t)weights->shape[0], in = (uint32_t)weights->count / out;
        uint32_t across = blocks_for(in, TILE_SIDE), tiles = across * blocks_for(out, TILE_SIDE);
        at.layers[k] = {inputs[k], gradients[k], in, out, across, tiles, (uint32_t)weights->offset};
        at.tiles += tiles;
    }
    return LAUNCH(dense_weight_gradient_kernel, at.tiles * at.splits, THREADS, stream, at);
}
