/* The dropout family: one pass over memory, four floats and more at a time.
 *
 * One block of Philox decides on four elements. Without `feature` those are a quad, four floats in a row, and
 * a thread has QUADS of them. With it they are four channels in a row, a run of 4 * inner floats, which a
 * team of threads shares: each draws the same block and has QUADS quads of the run; long runs take many
 * teams.
 */
#include "dropout_cuda.h"

#include "device.cuh"

enum { THREADS = 256, QUADS = 4 };

static const uint64_t LAUNCH_UNITS = (uint64_t)1 << 32; /* quads, or teams, that 32 bits can number */

/* ----- what the kernels need ----------------------------------------------------------------------- */

/* Division of a 32-bit number by 1..2^32 without dividing: x / d = (x + 1) * inverse / 2^64, rounded down
 * (Robison, "N-bit unsigned division via N-bit multiply-add", 2005). */
struct divider {
    uint64_t inverse; /* (2^64 - 1) / d, rounded down */
    uint32_t divisor; /* modulo 2^32 */
};

static struct divider divider_make(uint64_t divisor)
{
    return {UINT64_MAX / divisor, (uint32_t)divisor};
}

static __device__ __forceinline__ uint32_t divide(uint32_t x, struct divider by, uint32_t *remainder)
{
    uint64_t high = by.inverse >> 32, low = by.inverse & 0xffffffffu;
    uint32_t quotient = (uint32_t)((high * x + high + ((low * x + low) >> 32)) >> 32);
    *remainder = x - quotient * by.divisor;
    return quotient;
}

struct drop {
    struct dropout_stream stream;
    struct dropout_numbers numbers; /* of a p below 1: the threshold is below 2^32 */
    uint64_t inner, sample;         /* floats in a channel, in a sample */
};

/* The keep bits of the four elements of block `block` of sample n. */
static __device__ __forceinline__ unsigned draw(const struct drop &drop, uint32_t n, uint32_t block)
{
    const struct dropout_stream &stream = drop.stream;
    struct philox_counter r = philox4x32(
        philox_counter(PHILOX_DROPOUT, stream.layer, stream.step, stream.position + n, block), stream.seed);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        kept |= (unsigned)(r.c[i] >= (uint32_t)drop.numbers.threshold) << i;
    return kept;
}

static __device__ __forceinline__ float pass(const struct drop &drop, bool kept, float x)
{
    return kept ? fmaf(drop.numbers.scale, x, drop.numbers.shift) : drop.numbers.dropped;
}

static __device__ __forceinline__ float4 pass_quad(const struct drop &drop, unsigned kept, float4 x)
{
    return make_float4(pass(drop, kept & 1, x.x), pass(drop, kept & 2, x.y), pass(drop, kept & 4, x.z),
                       pass(drop, kept & 8, x.w));
}

/* The first `left` of four floats, the rest 0. WHOLE: all four are there, on 16 bytes. */
template <bool WHOLE> static __device__ __forceinline__ float4 read_quad(const float *from, uint32_t left)
{
    if (WHOLE || (left >= 4 && (uintptr_t)from % sizeof(float4) == 0))
        return *(const float4 *)from;
    return make_float4(from[0], left > 1 ? from[1] : 0, left > 2 ? from[2] : 0, left > 3 ? from[3] : 0);
}

template <bool WHOLE> static __device__ __forceinline__ void write_quad(float *to, uint32_t left, float4 v)
{
    if (WHOLE || (left >= 4 && (uintptr_t)to % sizeof(float4) == 0)) {
        *(float4 *)to = v;
        return;
    }
    to[0] = v.x;
    if (left > 1)
        to[1] = v.y;
    if (left > 2)
        to[2] = v.z;
    if (left > 3)
        to[3] = v.w;
}

/* ----- every number for itself --------------------------------------------------------------------- */

/* Where quad i of the launch begins, and how many of its floats there are. */
struct quad {
    uint32_t n, block;
    uint64_t begin;
    uint32_t left; /* at most 4 */
};

template <bool WHOLE>
static __device__ __forceinline__ struct quad quad_make(uint32_t i, struct divider per_sample,
                                                        uint64_t sample)
{
    uint32_t block, n = divide(i, per_sample, &block);
    uint64_t at = (uint64_t)block * 4;
    uint32_t left = sample - at < 4 ? (uint32_t)(sample - at) : 4;
    return {n, block, WHOLE ? (uint64_t)i * 4 : n * sample + at, left};
}

template <bool WHOLE>
static __global__ void __launch_bounds__(THREADS)
    elements_kernel(struct drop drop, struct divider per_sample, uint64_t quads, const float *x, float *y)
{
    uint32_t first = blockIdx.x * (THREADS * QUADS) + threadIdx.x;
    unsigned kept[QUADS];
    float4 v[QUADS];
#pragma unroll
    for (int k = 0; k < QUADS; k++) { /* all reads are under way before the first number is drawn */
        struct quad quad = quad_make<WHOLE>(first + k * THREADS, per_sample, drop.sample);
        if (first + k * THREADS < quads)
            v[k] = read_quad<WHOLE>(x + quad.begin, quad.left);
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        struct quad quad = quad_make<WHOLE>(first + k * THREADS, per_sample, drop.sample);
        kept[k] = draw(drop, quad.n, quad.block);
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        struct quad quad = quad_make<WHOLE>(first + k * THREADS, per_sample, drop.sample);
        if (first + k * THREADS < quads)
            write_quad<WHOLE>(y + quad.begin, quad.left, pass_quad(drop, kept[k], v[k]));
    }
}

/* ----- whole channels ------------------------------------------------------------------------------ */

/* How runs are cut: `segments` teams to a run, `groups` runs to a sample. */
struct teams {
    uint32_t size; /* threads: a power of two, at most a warp */
    struct divider segments, groups;
    uint64_t count;
};

/* The keep bits of four channels, and where in a segment the second to fourth begin. */
struct channels {
    unsigned kept;
    int32_t begin[3];
};

static __device__ __forceinline__ struct channels channels_make(unsigned kept, uint64_t inner,
                                                                uint64_t skipped, int32_t floats)
{
    struct channels channels = {kept, {0, 0, 0}};
#pragma unroll
    for (int i = 0; i < 3; i++) { /* before the segment, in it, or past its end */
        int64_t at = (int64_t)((i + 1) * inner - skipped);
        channels.begin[i] = at < 0 ? 0 : at > floats ? floats : (int32_t)at;
    }
    return channels;
}

/* Which of the four float number `at` of the segment belongs to. */
static __device__ __forceinline__ int channel_at(const struct channels &c, int32_t at)
{
    return (at >= c.begin[0]) + (at >= c.begin[1]) + (at >= c.begin[2]);
}

/* The keep bits of the quad that begins with float `at`. */
static __device__ __forceinline__ unsigned channels_keep(const struct channels &c, int32_t at)
{
    int first = channel_at(c, at), last = channel_at(c, at + 3);
    if (first == last)
        return c.kept >> first & 1 ? 0xf : 0;
    unsigned kept = 0;
    for (int i = 0; i < 4; i++)
        kept |= (c.kept >> channel_at(c, at + i) & 1) << i;
    return kept;
}

template <bool WHOLE>
static __global__ void __launch_bounds__(THREADS)
    channels_kernel(struct drop drop, struct teams teams, const float *x, float *y)
{
    uint32_t lane = threadIdx.x % teams.size, segment, group;
    uint32_t team = blockIdx.x * (THREADS / teams.size) + threadIdx.x / teams.size;
    if (team >= teams.count)
        return;
    uint32_t run = divide(team, teams.segments, &segment), n = divide(run, teams.groups, &group);
    uint32_t floats = teams.size * QUADS * 4; /* of a segment, but for a run's last */
    uint64_t skipped = (uint64_t)segment * floats, begin = (uint64_t)group * 4 * drop.inner + skipped;
    if (begin >= drop.sample) /* the last run of a sample may have fewer channels */
        return;
    uint64_t run_left = 4 * drop.inner - skipped, sample_left = drop.sample - begin, least = floats;
    least = run_left < least ? run_left : least;
    uint32_t left = (uint32_t)(sample_left < least ? sample_left : least);
    struct channels channels = channels_make(draw(drop, n, group), drop.inner, skipped, (int32_t)floats);

    unsigned kept[QUADS];
    float4 v[QUADS];
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        uint32_t at = (lane + k * teams.size) * 4;
        kept[k] = channels_keep(channels, (int32_t)at);
        if (at < left && kept[k])
            v[k] = read_quad<WHOLE>(x + n * drop.sample + begin + at, left - at);
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        uint32_t at = (lane + k * teams.size) * 4;
        if (at < left)
            write_quad<WHOLE>(y + n * drop.sample + begin + at, left - at,
                              pass_quad(drop, kept[k], v[k]));
    }
}

/* ----- launches ------------------------------------------------------------------------------------ */

/* `samples` samples, few enough for one launch. */
static cudaError_t launch_elements(const struct drop &drop, size_t samples, const float *x, float *y,
                                   bool whole, cudaStream_t stream)
{
    uint64_t per_sample = (drop.sample + 3) / 4, quads = samples * per_sample;
    auto kernel = whole ? elements_kernel<true> : elements_kernel<false>;
    return LAUNCH(kernel, blocks_for(quads, THREADS * QUADS), THREADS, stream, drop, divider_make(per_sample),
                  quads, x, y);
}

/* The smallest team that takes a run at once, or a warp. */
static uint32_t team_size(uint64_t inner)
{
    uint32_t size = 1;
    while (size < WARP && size * QUADS < inner)
        size *= 2;
    return size;
}

static uint64_t groups_of(const struct drop &drop)
{
    return (drop.sample / drop.inner + 3) / 4;
}

static uint64_t segments_of(uint64_t inner)
{
    uint64_t quads = (uint64_t)team_size(inner) * QUADS;
    return (inner + quads - 1) / quads;
}

static cudaError_t launch_channels(const struct drop &drop, size_t samples, const float *x, float *y,
                                   bool whole, cudaStream_t stream)
{
    uint64_t segments = segments_of(drop.inner), groups = groups_of(drop);
    struct teams teams = {team_size(drop.inner), divider_make(segments), divider_make(groups),
                          samples * groups * segments};
    auto kernel = whole ? channels_kernel<true> : channels_kernel<false>;
    return LAUNCH(kernel, blocks_for(teams.count * teams.size, THREADS), THREADS, stream, drop, teams, x, y);
}

/* A tensor with p in (0, 1): as many samples a launch as 32 bits can number the work of. */
static cudaError_t launch_all(const struct dropout *dropout, const struct dropout_numbers *numbers,
                              struct dropout_stream position, const float *x, float *y, cudaStream_t stream)
{
    struct drop drop = {position, *numbers, dropout->inner, dropout->channels * dropout->inner};
    bool channels = dropout->feature && dropout->inner > 1;
    uint64_t units = channels ? groups_of(drop) * segments_of(drop.inner) : (drop.sample + 3) / 4;
    size_t most = units < LAUNCH_UNITS ? LAUNCH_UNITS / units : 1, left = dropout->samples;
    bool whole = drop.sample % 4 == 0 && ((uintptr_t)x | (uintptr_t)y) % sizeof(float4) == 0;
    cudaError_t code = cudaSuccess;
    while (left > 0 && code == cudaSuccess) {
        size_t samples = left < most ? left : most;
        auto launch = channels ? launch_channels : launch_elements;
        code = launch(drop, samples, x, y, whole, stream);
        x += samples * drop.sample;
        y += samples * drop.sample;
        drop.stream.position += (uint32_t)samples;
        left -= samples;
    }
    return code;
}

static bool run(const struct dropout *dropout, bool backward, struct dropout_stream position,
                const float *from, float *to, cudaStream_t stream, struct error *error)
{
    size_t count;
    if (!dropout_check(dropout, position, from, to, &count, error))
        return false;
    cudaError_t code = cudaSuccess;
    if (count > 0 && dropout->p == 1) {
        code = cudaMemsetAsync(to, 0, count * sizeof *to, stream);
    } else if (count > 0 && dropout->p > 0) {
        struct dropout_numbers numbers =
            backward ? dropout_backward_numbers(dropout) : dropout_numbers(dropout);
        code = launch_all(dropout, &numbers, position, from, to, stream);
    } else if (count > 0 && to != from) {
        code = cudaMemcpyAsync(to, from, count * sizeof *to, cudaMemcpyDeviceToDevice, stream);
    }
    return code == cudaSuccess ||
           error_set(error, EXIT_RUNTIME, "dropout: CUDA: %s", cudaGetErrorString(code));
}

bool dropout_cuda_forward(const struct dropout *dropout, struct dropout_stream stream, const float *x,
                          float *y, cudaStream_t cuda_stream, struct error *error)
{
    return run(dropout, false, stream, x, y, cuda_stream, error);
}

bool dropout_cuda_backward(const struct dropout *dropout, struct dropout_stream stream, const float *dy,
                           float *dx, cudaStream_t cuda_stream, struct error *error)
{
    return run(dropout, true, stream, dy, dx, cuda_stream, error);
}
