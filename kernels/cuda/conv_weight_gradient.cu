/* The gradients of conv1's and conv2's weights and biases, from what the pools let through: of each 2x2 window one
 * number passes a gradient, or none, so a quarter of a convolution's work is left, and no gradient is spread out
 * first. A block takes a sample at a time and keeps all sums in registers: a warp owns an output channel (of conv1
 * a share of its windows), lists the windows that pass a gradient, and adds for each its 5x5 patches of the input,
 * a lane one number of each. All reads of the device's memory are under way before the first is waited for. */
#include "device.cuh"

enum {
    KERNEL = 5,
    PATCH = KERNEL * KERNEL,
    PITCH = 37, /* of a row of the input: a patch's numbers lie in different banks */
    AT_ONCE = 4,
};

/* Of a layer: x (CHANNELS, SIDE, SIDE), OUTPUTS output channels, SHARES warps to each. */
template <int CHANNELS, int SIDE, int OUTPUTS, int SHARES> struct layer {
    enum {
        HALF = (SIDE - KERNEL + 1) / 2,
        WINDOWS = HALF * HALF,
        SHARE = WINDOWS / SHARES, /* windows of a warp */
        CHUNKS = (SHARE + WARP - 1) / WARP,
        TAPS = CHANNELS * PATCH,
        WARPS = OUTPUTS * SHARES,
        THREADS = WARPS * WARP,
        QUADS = CHANNELS * SIDE * SIDE / 4,
        WIDTH = OUTPUTS * (TAPS + 1),
        PLANE = SIDE * PITCH,
    };
    static_assert(WINDOWS % SHARES == 0 && PITCH % WARP == KERNEL && PITCH >= SIDE, "");
};

/* Some windows that pass a gradient: how much, and where their patch of x begins. */
struct alignas(16) listed {
    float d[AT_ONCE];
    uint32_t at[AT_ONCE];
};

/* A block's shared memory. */
template <class L> struct alignas(16) memory {
    float x[L::TAPS / PATCH * L::PLANE];
    struct listed list[L::WARPS][(L::SHARE + AT_ONCE - 1) / AT_ONCE];
    float sums[L::WARPS][L::TAPS + 1]; /* the last the bias's */
};

struct conv_weight_gradient {
    const float4 *x;
    const float *dy;
    const uint8_t *origin;
    float *parts;
    float scale;
    uint32_t count;
};

/* Of a sample, what a thread reads: its share of x, and of its warp's windows. */
template <class L> struct reads {
    float4 x[(L::QUADS + L::THREADS - 1) / L::THREADS];
    float dy[L::CHUNKS];
    unsigned origin[L::CHUNKS];
};

template <class L>
static __device__ __forceinline__ struct reads<L> read_all(const struct conv_weight_gradient &at, uint32_t n,
                                                           unsigned first)
{
    struct reads<L> reads;
    size_t begin = (size_t)n * (L::WIDTH / (L::TAPS + 1) * L::WINDOWS) + first;
#pragma unroll
    for (unsigned k = 0; k < (L::QUADS + L::THREADS - 1) / L::THREADS; k++)
        if (threadIdx.x + k * L::THREADS < L::QUADS)
            reads.x[k] = at.x[(size_t)n * L::QUADS + threadIdx.x + k * L::THREADS];
#pragma unroll
    for (unsigned k = 0; k < L::CHUNKS; k++) {
        unsigned i = k * WARP + threadIdx.x % WARP;
        reads.origin[k] = i < L::SHARE ? at.origin[begin + i] : (unsigned)CUDA_NOWHERE;
        reads.dy[k] = i < L::SHARE ? at.dy[begin + i] : 0;
    }
    return reads;
}

template <int SIDE, class L>
static __device__ __forceinline__ void spread(const struct reads<L> &reads, struct memory<L> &m)
{
#pragma unroll
    for (unsigned k = 0; k < (L::QUADS + L::THREADS - 1) / L::THREADS; k++) {
        float numbers[4] = {reads.x[k].x, reads.x[k].y, reads.x[k].z, reads.x[k].w};
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned i = 4 * (threadIdx.x + k * L::THREADS) + j;
            if (i < 4 * L::QUADS)
                m.x[i / (SIDE * SIDE) * L::PLANE + i / SIDE % SIDE * PITCH + i % SIDE] = numbers[j];
        }
    }
}

/* Lists the warp's windows, the first of which is `first` of its plane, in order. Returns how many; adds the lane's
 * part of the bias's gradient to *bias. */
template <class L>
static __device__ __forceinline__ unsigned list_windows(const struct reads<L> &reads, float scale, unsigned first,
                                                        struct listed *list, float *bias)
{
    unsigned lane = threadIdx.x % WARP, count = 0;
#pragma unroll
    for (unsigned k = 0; k < L::CHUNKS; k++) {
        unsigned window = first + k * WARP + lane, from = reads.origin[k];
        float d = reads.dy[k] * scale;
        bool passes = from != CUDA_NOWHERE;
        unsigned passing = __ballot_sync(0xffffffffu, passes);
        unsigned slot = count + __popc(passing & ((1u << lane) - 1));
        if (passes) {
            list[slot / AT_ONCE].d[slot % AT_ONCE] = d;
            list[slot / AT_ONCE].at[slot % AT_ONCE] =
                (window / L::HALF * 2 + from / 2) * PITCH + window % L::HALF * 2 + from % 2;
            *bias += d;
        }
        count += __popc(passing);
    }
    return count;
}

/* Adds one window's patches, of which the lane's numbers are at `from` and a plane further each. */
template <int CHANNELS, class L>
static __device__ __forceinline__ void add_window(const struct memory<L> &m, float d, unsigned from, float *sums)
{
#pragma unroll
    for (unsigned c = 0; c < CHANNELS; c++)
        sums[c] += d * m.x[from + c * L::PLANE];
}

/* The sums of a block's warps as a row of parts: those of the weights in their order, then the biases'. */
template <int SHARES, class L>
static __device__ __forceinline__ void write_row(const struct memory<L> &m, float *row)
{
#pragma unroll
    for (unsigned i = threadIdx.x; i < L::WIDTH; i += L::THREADS) {
        bool weight = i < L::WIDTH / (L::TAPS + 1) * L::TAPS;
        unsigned output = weight ? i / L::TAPS : i - L::WIDTH / (L::TAPS + 1) * L::TAPS;
        unsigned tap = weight ? i % L::TAPS : (unsigned)L::TAPS;
        float sum = 0;
#pragma unroll
        for (unsigned share = 0; share < SHARES; share++)
            sum += m.sums[output * SHARES + share][tap];
        row[i] = sum;
    }
}

template <int CHANNELS, int SIDE, int OUTPUTS, int SHARES>
static __global__ void __launch_bounds__(layer<CHANNELS, SIDE, OUTPUTS, SHARES>::THREADS, 2)
    conv_weight_gradient_kernel(struct conv_weight_gradient at)
{
    using L = layer<CHANNELS, SIDE, OUTPUTS, SHARES>;
    __shared__ struct memory<L> m;
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, output = warp / SHARES, share = warp % SHARES;
    unsigned tap = lane % PATCH, in_patch = tap / KERNEL * PITCH + tap % KERNEL; /* lanes 25.. repeat lanes 0.. */
    float sums[CHANNELS] = {0}, bias = 0;
    for (uint32_t n = blockIdx.x; n < at.count; n += gridDim.x) {
        unsigned window = share * L::SHARE;
        struct reads<L> reads = read_all<L>(at, n, output * L::WINDOWS + window);
        __syncthreads(); /* all are through with the sample before */
        spread<SIDE>(reads, m);
        unsigned count = list_windows(reads, at.scale, window, m.list[warp], &bias);
        __syncthreads();
        for (unsigned i = 0; i < count / AT_ONCE; i++) {
            struct listed some = m.list[warp][i];
#pragma unroll
            for (unsigned k = 0; k < AT_ONCE; k++)
                add_window<CHANNELS>(m, some.d[k], some.at[k] + in_patch, sums);
        }
        for (unsigned i = count / AT_ONCE * AT_ONCE; i < count; i++) {
            const struct listed &last = m.list[warp][i / AT_ONCE];
            add_window<CHANNELS>(m, last.d[i % AT_ONCE], last.at[i % AT_ONCE] + in_patch, sums);
        }
    }
    bias = warp_sum(bias);
#pragma unroll
    for (unsigned c = 0; c < CHANNELS; c++)
        if (lane < PATCH)
            m.sums[warp][c * PATCH + lane] = sums[c];
    if (lane == 0)
        m.sums[warp][L::TAPS] = bias;
    __syncthreads();
    write_row<SHARES>(m, at.parts + (size_t)blockIdx.x * L::WIDTH);
}

cudaError_t cuda_conv_weight_gradient(enum dropout_layer layer_of, const struct masks *masks, uint32_t count,
                                      const float *x, const float *dy, const uint8_t *origin, float *parts,
                                      cudaStream_t stream)
{
    using conv1 = layer<3, 32, CONV1_ELEMENTS, 4>;
    using conv2 = layer<CONV1_ELEMENTS, 14, CONV2_ELEMENTS, 1>;
    static_assert((int)conv1::WIDTH == CUDA_CONV1_WIDTH && (int)conv2::WIDTH == CUDA_CONV2_WIDTH, "");
    if (count == 0)
        return cudaSuccess;
    struct conv_weight_gradient at = {(const float4 *)x, dy, origin, parts, masks ? masks->scale[layer_of] : 1, count};
    if (layer_of == DROPOUT_CONV1)
        return LAUNCH((conv_weight_gradient_kernel<3, 32, CONV1_ELEMENTS, 4>), cuda_parts(count), conv1::THREADS,
                      stream, at);
    return LAUNCH((conv_weight_gradient_kernel<CONV1_ELEMENTS, 14, CONV2_ELEMENTS, 1>), cuda_parts(count),
                  conv2::THREADS, stream, at);
}
