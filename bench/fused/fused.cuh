/* fused.cuh - the step. A group of 8 blocks works on a tile of 16 samples, 2 samples a block; conv3 is split over the
 * group by inputs. CLUSTER 1: a group is a thread block cluster and its blocks write into each other's shared memory.
 * CLUSTER 0: they write into mailboxes in global memory (L2) and wait for each other by counters: any 8 blocks. */
#include "fused.h"
#include "include/exact_sum.h"
#include "include/philox.h"

#ifndef KERNEL
#define KERNEL fused_train
#endif
#ifndef CLUSTER
#define CLUSTER 0
#endif
#ifndef __CUDACC__
#include "host_shim.h"
#else
#include <cuda_runtime.h>
#endif

enum { WARPS = THREADS / 32, PITCH_IMAGE = 38, PITCH1 = 26, PITCH3 = 52, PITCH_FC1 = 124, PLANE = 32 * PITCH_IMAGE,
       PLANE1 = 14 * PITCH1, INPUTS = 50, PATCH = 36, PITCH_D3 = 124, PITCH_BLOCK = 217, WINO = 40, RECORD = 3073 };
#define ALL 0xffffffffu

/* A number for each of the block's two samples; not an array, which would lie in local memory. */
struct both {
    unsigned a, b;
    __device__ __forceinline__ unsigned operator[](unsigned e) const { return e ? b : a; }
};

/* The thread, read anew: so that the compiler keeps nothing of it over the whole step. */
static __device__ __forceinline__ unsigned tid()
{
#ifdef __CUDACC__
    unsigned t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
#else
    return threadIdx.x;
#endif
}

struct alignas(8) winner { float d; int base; }; /* base -1: nothing passes */

/* What other blocks of the group write. */
struct alignas(16) exchange {
    float pool2[SAMPLES16][PITCH3];
    float part[RANKS][EACH][120];
    /* Samples in the batch's order. */
    float x3[SAMPLES16][120], d3[SAMPLES16][PITCH_D3], y1[SAMPLES16][84], d1[SAMPLES16][84], dz[SAMPLES16][12];
    float dpool2[EACH][RANKS][PITCH3];
};

/* Without clusters: a word is a float and, above it, the round; who waits reads words until all have the round. */
struct alignas(16) mailbox {
    exchange x;
    uint64_t pool2[SAMPLES16 * INPUTS], part[RANKS][EACH][120], dpool2[EACH][RANKS][PITCH3];
    uint4 rows[SAMPLES16][140]; /* three floats and the round: x3 40, d3 40, y1 28, d1 28, dz 4 */
    uint4 conv[3336 / 2];       /* of rank 0's: the group's new weights up to fc1, two words each */
};
#define MAIL_SIZE sizeof(mailbox)

struct alignas(16) memory {
    /* the small parameters, SMALL numbers in a row: the sums and the mailboxes have them in this order, too */
    float w1[6][3][28], w2[16][6][28], b1[8], b2[16], b3[120], wf1[84][PITCH_FC1], wf2[10][84], bf1[84], bf2[12];
    float w3[120][PITCH3];
    float v3[SLICE3], vs[OWN];
    float image[EACH][3][32][PITCH_IMAGE];
    winner win1[EACH][6][196], win2[EACH][16][28];
    /* After conv2's weights' gradient, with the union's first part: conv2's blocks [e][window][PITCH_BLOCK]. */
    float pool1[EACH][6][14][PITCH1];
    union {
        exchange x;
        struct {
            float pool2[SAMPLES16][PITCH3];
            float h1[6][3][WINO], h2[16][6][WINO]; /* the convolutions' weights for taps: five rows of 8 */
        } wino;
        struct {
            float part[WARPS][6][76];
            winner list[WARPS][32];
        };
    };
    float x3[EACH][120], y1[EACH][84], d1[EACH][84], logits[EACH][12];
    uint32_t at[SAMPLES16];
    uint8_t nibble[SAMPLES16][6], nibble3[EACH][30], nibble1[EACH][22];
    uint8_t keep1[SAMPLES16];
    uint16_t keep2[SAMPLES16];
    uint8_t place[SAMPLES16]; /* slot's inverse: sums over samples go in the samples' order */
    uint8_t slot[SAMPLES16]; /* place in the tile of the sample at 2 * rank + e */
    int8_t label[EACH];
    uint8_t channels1[EACH][8], channels2[EACH][16]; /* the kept ones, in order */
    uint16_t patch[PATCH]; /* of a number of conv2's blocks: place of its tap * 4 (for p 0) << 4, bit p: there is one */
    unsigned *trouble;
#ifdef STAMPS
    long long clocks[32];
#endif
};

static_assert(sizeof(memory) <= 227 * 1024 && offsetof(memory, x) == offsetof(memory, pool1) + sizeof(memory::pool1) &&
                  sizeof(float) * EACH * 25 * PITCH_BLOCK <= sizeof(memory::pool1) + sizeof(memory::part) &&
                  sizeof(fused_nets) <= 4096,
              "what a block of an H100 and a launch may have");

static __device__ __forceinline__ memory &shared()
{
#ifdef __CUDACC__
    extern __shared__ float4 bytes[];
    return *reinterpret_cast<memory *>(bytes);
#else
    return *static_cast<memory *>(shim_shared(blockIdx.x));
#endif
}

static __device__ __forceinline__ unsigned rank_of() { return blockIdx.x % RANKS; }
static __device__ __forceinline__ unsigned block_of(const fused &f) { return blockIdx.x - f.first_block; }
static __device__ __forceinline__ unsigned group_of(const fused &f) { return block_of(f) / RANKS; }

#if CLUSTER
#error words are for mailboxes
#endif
static __device__ __forceinline__ mailbox &mail_of(const fused &f, unsigned rank)
{
    return reinterpret_cast<mailbox *>(f.mail)[group_of(f) * RANKS + rank];
}
static __device__ __forceinline__ void send_word(uint64_t *to, float v, unsigned round)
{
#ifdef __CUDACC__
    asm volatile("{ .reg .b64 w; mov.b64 w, {%1, %2}; st.relaxed.gpu.global.u64 [%0], w; }" ::"l"(to),
                 "r"(__float_as_uint(v)), "r"(round)
                 : "memory");
#else
    uint32_t bits;
    memcpy(&bits, &v, 4);
    *to = (uint64_t)round << 32 | bits;
#endif
}
static __device__ __forceinline__ uint64_t word(const uint64_t *p)
{
#ifdef __CUDACC__
    uint64_t w;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(p) : "memory");
    return w;
#else
    return *p;
#endif
}
static __device__ __noinline__ uint64_t late_word(const uint64_t *p, unsigned round, unsigned *trouble)
{
    uint64_t w;
#pragma unroll 1
    for (unsigned polls = 0; (unsigned)((w = word(p)) >> 32) != round;) {
#ifdef __CUDACC__
        if (++polls == 1 << 21) {
            if (trouble) {
                unsigned *t = trouble + blockIdx.x * 4;
                *(volatile unsigned *)(t + 1) = round, *(volatile unsigned *)(t + 2) = (unsigned)(w >> 32),
                *(volatile unsigned *)t = 2;
                __threadfence_system();
            }
            __trap();
            __builtin_unreachable();
        }
#else
        (void)polls, (void)trouble;
        shim_yield();
#endif
    }
    return w;
}
/* N words at once, `pitch` apart. */
template <int N>
static __device__ __forceinline__ void words(const fused &f, const uint64_t *p, unsigned pitch, unsigned round,
                                             float *v)
{
    uint64_t w[N];
    bool all = true;
#pragma unroll
    for (int i = 0; i < N; i++)
        w[i] = word(p + i * pitch);
#pragma unroll
    for (int i = 0; i < N; i++)
        all &= (unsigned)(w[i] >> 32) == round;
    if (!all)
#pragma unroll 1
        for (unsigned polls = 0; !all; polls++) { /* together: one way to the L2 */
            all = true;
#pragma unroll
            for (int i = 0; i < N; i++)
                w[i] = word(p + i * pitch);
#pragma unroll
            for (int i = 0; i < N; i++)
                all &= (unsigned)(w[i] >> 32) == round;
#ifdef __CUDACC__
            if (polls == 1 << 21)
                late_word(p, ~0u, f.trouble);
#else
            (void)f;
            shim_yield();
#endif
        }
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)w[i];
        memcpy(&v[i], &bits, 4);
    }
}

static __device__ __forceinline__ unsigned bits_of(float v) { unsigned b; memcpy(&b, &v, 4); return b; }
static __device__ __forceinline__ float float_of(unsigned b) { float v; memcpy(&v, &b, 4); return v; }
static __device__ __forceinline__ void send_four(uint4 *to, uint4 v)
{
#ifdef __CUDACC__
    asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#else
    *to = v;
#endif
}
/* N of 16 bytes; the last 4 bytes have the round (16 bytes are written at once). */
template <int N>
static __device__ __forceinline__ void fours(const fused &f, const uint4 *const *p, unsigned round, uint4 *v)
{
    bool all;
#pragma unroll 1
    for (unsigned polls = 0;; polls++) {
        all = true;
#pragma unroll
        for (int i = 0; i < N; i++)
#ifdef __CUDACC__
            asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                         : "l"(p[i])
                         : "memory");
#else
            v[i] = *p[i];
#endif
#pragma unroll
        for (int i = 0; i < N; i++)
            all &= v[i].w == round;
        if (all)
            break;
#ifdef __CUDACC__
        if (polls == 1 << 21)
            late_word(&mail_of(f, 0).pool2[0], ~0u, f.trouble);
#else
        (void)f;
        shim_yield();
#endif
    }
}

/* ----- waiting for each other ---------------------------------------------------------------------- */

#ifdef __CUDACC__
static __device__ __forceinline__ unsigned acquire(const unsigned *p)
{
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ void release(unsigned *p)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}
#else
static inline unsigned acquire(const unsigned *p) { shim_yield(); return *p; }
static inline void release(unsigned *p) { ++*p; }
#endif

static __device__ __forceinline__ void arrive(unsigned *counter)
{
    __syncthreads();
    if (tid() == 0) {
        release(counter);
    }
}

/* A wait that takes a second or so is a fault: it says where, then ends the launch. */
enum { MOST_POLLS = 1 << 21 };
static __device__ __noinline__ void poll(const unsigned *counter, unsigned target)
{
#pragma unroll 1
        for (unsigned polls = 0, now; (int)((now = acquire(counter)) - target) < 0;) {
#ifdef __CUDACC__
            if (++polls == MOST_POLLS) {
                if (shared().trouble) {
                    unsigned *t = shared().trouble + blockIdx.x * 4;
                    *(volatile unsigned *)(t + 1) = target, *(volatile unsigned *)(t + 2) = now,
                    *(volatile unsigned *)t = 1;
                    __threadfence_system();
                }
                __trap();
                __builtin_unreachable();
            }
#else
            (void)polls, (void)now;
#endif
        }
}
static __device__ __forceinline__ void await(const unsigned *counter, unsigned target)
{
    if (tid() == 0)
        poll(counter, target);
    __syncthreads();
}

enum { PAD = 32 }; /* a counter a line of 128 bytes */
struct group_barrier { unsigned *counter, target, round; bool pending; };

static __device__ __forceinline__ void group_arrive(group_barrier &b)
{
#if CLUSTER && defined(__CUDACC__)
    __syncwarp(); /* aligned: the lanes must be together */
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
    arrive(b.counter);
    b.target += RANKS;
#endif
}

static __device__ __forceinline__ void group_await(group_barrier &b)
{
#if CLUSTER && defined(__CUDACC__)
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    await(b.counter, b.target);
#endif
}

/* To the peer's copy of a number of this block's shared memory; without clusters, of its exchange: a mailbox. */
static __device__ __forceinline__ void send(const fused &f, unsigned rank, float *mine, float v)
{
#if CLUSTER && defined(__CUDACC__)
    (void)f;
    asm volatile("{ .reg .u32 at; mapa.shared::cluster.u32 at, %0, %1; st.shared::cluster.f32 [at], %2; }"
                 ::"r"((unsigned)__cvta_generic_to_shared(mine)), "r"(rank), "f"(v) : "memory");
#elif CLUSTER
    char *other = static_cast<char *>(shim_shared(blockIdx.x / RANKS * RANKS + rank));
    *reinterpret_cast<float *>(other + (reinterpret_cast<char *>(mine) - reinterpret_cast<char *>(&shared()))) = v;
#else
#ifdef __CUDACC__
    unsigned at = (unsigned)__cvta_generic_to_shared(mine) - (unsigned)__cvta_generic_to_shared(&shared().x);
#else
    unsigned at = (unsigned)(reinterpret_cast<char *>(mine) - reinterpret_cast<char *>(&shared().x));
#endif
    unsigned box = (group_of(f) * RANKS + rank) * (unsigned)sizeof(mailbox); /* 32 bits do */
    __stcg(reinterpret_cast<float *>(reinterpret_cast<char *>(f.mail) + (box + at)), v);
#endif
}

static __device__ __forceinline__ void send4(const fused &f, unsigned rank, float *mine, float4 v)
{
#if CLUSTER && defined(__CUDACC__)
    (void)f;
    asm volatile(
        "{ .reg .u32 at; mapa.shared::cluster.u32 at, %0, %1; st.shared::cluster.v4.f32 [at], {%2, %3, %4, %5}; }" ::
            "r"((unsigned)__cvta_generic_to_shared(mine)),
        "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
        : "memory");
#elif defined(__CUDACC__)
    unsigned at = (unsigned)__cvta_generic_to_shared(mine) - (unsigned)__cvta_generic_to_shared(&shared().x);
    unsigned box = (group_of(f) * RANKS + rank) * (unsigned)sizeof(mailbox);
    __stcg(reinterpret_cast<float4 *>(reinterpret_cast<char *>(f.mail) + (box + at)), v);
#else
    send(f, rank, mine, v.x), send(f, rank, mine + 1, v.y), send(f, rank, mine + 2, v.z), send(f, rank, mine + 3, v.w);
#endif
}

#ifdef STAMPS
/* Clocks since the stamp before: added up; and of 64 steps the slowest block's. */
static __device__ __forceinline__ void stamp(const fused &f, memory &m, unsigned i)
{
    long long now = clock64(), passed = now - m.clocks[24], step = m.clocks[25];
    m.clocks[24] = now, m.clocks[i] += passed;
    if (i == 0)
        m.clocks[25] = ++step;
    if (step >= 100 && step < 164)
        atomicMax(reinterpret_cast<unsigned long long *>(f.stamps + 128 * 32 + (step - 100) * 32 + i),
                  (unsigned long long)passed);
}
#define STAMP(i) do { __syncthreads(); if (tid() == 0 && f.stamps) stamp(f, m, i); } while (0)
#else
#define STAMP(i) do {} while (0)
#endif

/* ----- small things -------------------------------------------------------------------------------- */

static __device__ __forceinline__ float relu(float x) { return x <= 0 ? 0 : x; }

static __device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (unsigned m = 16; m > 0; m /= 2)
        v += __shfl_xor_sync(ALL, v, m);
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (unsigned m = 16; m > 0; m /= 2) {
        float o = __shfl_xor_sync(ALL, v, m);
        v = o > v ? o : v;
    }
    return v;
}

/* 16 bytes to shared memory that arrive later: await_copies. */
static __device__ __forceinline__ void copy16(float *to, const float *from)
{
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
#else
    memcpy(to, from, 16);
#endif
}
static __device__ __forceinline__ void await_copies()
{
#ifdef __CUDACC__
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

/* After a barrier: `floats` of the exchange from `first` on are here. */
static __device__ __forceinline__ void receive(const fused &f, const float *first, unsigned floats)
{
#if !CLUSTER
    float *here = reinterpret_cast<float *>(&shared().x);
    const float *mail = reinterpret_cast<const float *>(reinterpret_cast<const mailbox *>(f.mail) + block_of(f));
    unsigned from = (unsigned)(first - here) / 4;
    for (unsigned i = tid(); i < floats / 4; i += THREADS)
        copy16(here + 4 * (from + i), mail + 4 * (from + i));
    await_copies();
#else
    (void)f, (void)first, (void)floats;
#endif
}

static __device__ __forceinline__ void reduce(int64_t *sum, long long v)
{
#ifdef __CUDACC__
#ifdef NORED
    if (v == 0x123456789abcdefll)
#endif
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sum), "l"(v) : "memory");
#else
    atomicAdd(sum, (int64_t)v);
#endif
}

/* Adds a tile's or a block's part of a gradient. */
static __device__ __forceinline__ long long fixed(float v, bool &refused)
{
    bool no = !(fabsf(v) < EXACT_LIMIT);
    refused |= no;
    return no ? 0 : __float2ll_rn(v * 0x1p36f);
}
static __device__ __forceinline__ void add(int64_t *sum, float v, bool &refused)
{
    bool no = !(fabsf(v) < EXACT_LIMIT);
    refused |= no;
    if (!no && v != 0)
        reduce(sum, __float2ll_rn(v * 0x1p36f));
}

/* (float)(sum * EXACT_UNIT / samples), in two halves: 64-bit conversions are slow. */
static __device__ __forceinline__ float mean_of(int64_t sum, double unit)
{
    return (float)((double)sum * unit);
}

enum { AT_W2 = 504, AT_B1 = 3192, AT_B2 = 3200, AT_B3 = 3216 };
enum { AT_WF1 = 3336, AT_WF2 = 13752, AT_BF1 = 14592, AT_BF2 = 14676 };
static __device__ __forceinline__ float *small_place(memory &m, unsigned j) { return &m.w1[0][0][0] + j; }
/* Or -1: padding. */
static __host__ __device__ inline int canonical_small(unsigned j)
{
    if (j < AT_B1)
        return j % 28 < 25 ? (int)((j < AT_W2 ? 0 : 6) + j / 28 * 25 + j % 28) : -1;
    if (j < AT_B2)
        return j < AT_B1 + 6 ? (int)(450 + j - AT_B1) : -1;
    if (j < AT_WF1)
        return (int)(j < AT_B3 ? 2856 + j - AT_B2 : 50872 + j - AT_B3);
    if (j < AT_WF2)
        return (j - AT_WF1) % PITCH_FC1 < 120 ? (int)(50992 + (j - AT_WF1) / PITCH_FC1 * 120 + (j - AT_WF1) % PITCH_FC1)
                                              : -1;
    if (j < AT_BF1)
        return (int)(61156 + j - AT_WF2);
    return j < AT_BF2 ? (int)(61072 + j - AT_BF1) : j < AT_BF2 + 10 ? (int)(61996 + j - AT_BF2) : -1;
}
static __host__ __device__ __forceinline__ unsigned canonical3(unsigned rank, unsigned e)
{
    return 2872 + e / INPUTS * 400 + rank * INPUTS + e % INPUTS;
}

static __device__ unsigned draw(const fused &f, uint64_t step, unsigned layer, unsigned position, unsigned block)
{
    if (f.threshold[layer] == 0)
        return 0xf;
    struct philox_counter r = philox4x32(philox_counter(PHILOX_DROPOUT, layer, step, position, block), f.seed);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        bits |= (unsigned)(r.c[i] >= f.threshold[layer]) << i;
    return bits;
}

/* The n-th set bit. */
static __device__ __forceinline__ unsigned nth(unsigned bits, unsigned n)
{
    for (; n > 0; n--)
        bits &= bits - 1;
    return (unsigned)__ffs(bits) - 1;
}

/* ----- what a tile needs: who does what, masks, pictures --------------------------------------------- */

static __device__ __forceinline__ unsigned word_of(const uint8_t *p) { return *reinterpret_cast<const unsigned *>(p); }
/* 2 p - 255 of byte i of the four: 65536 + 2 p is a float whose second byte is p. */
static __device__ __forceinline__ float pixel(unsigned four, int i)
{
#ifdef __CUDACC__
    return __uint_as_float(__byte_perm(four, 0x47800000u, 0x7604u | (unsigned)i << 4)) - (65536.0f + 255);
#else
    return (float)(2 * (int)(four >> 8 * i & 255) - 255);
#endif
}

static __device__ __noinline__ void prepare(const fused &f, memory &m, uint64_t step, unsigned position, unsigned tile,
                                            unsigned count)
{
    unsigned t = tid(), rank = rank_of();
    if (t < SAMPLES16 * 6) {
        unsigned s = t / 6, q = t % 6;
        m.nibble[s][q] = s < count ? (uint8_t)draw(f, step, q < 2 ? 0 : 1, tile * 16 + s, q < 2 ? q : q - 2) : 0;
    } else if (t >= 128 && t < 128 + SAMPLES16)
        m.at[t - 128] = f.order[position + tile * 16 + (t - 128 < count ? t - 128 : 0)];
#ifdef __CUDACC__
    if (t < 160)
        asm volatile("barrier.sync 1, 160;" ::: "memory");
#else
    __syncthreads();
#endif
    if (t < 32) { /* the heaviest sample with the lightest, and so on */
        unsigned s = t % 16, place = 0;
        unsigned k1 = m.nibble[s][0] | (m.nibble[s][1] & 3u) << 4;
        unsigned k2 = m.nibble[s][2] | m.nibble[s][3] << 4 | m.nibble[s][4] << 8 | m.nibble[s][5] << 12;
        unsigned work = ((unsigned)__popc(k1) * (20 + (unsigned)__popc(k2))) * 16 + s;
#pragma unroll
        for (unsigned o = 0; o < SAMPLES16; o++)
            place += __shfl_sync(ALL, work, o) > work;
        place = place < 8 ? 2 * place : 2 * (15 - place) + 1;
        if (t < SAMPLES16)
            m.keep1[s] = (uint8_t)k1, m.keep2[s] = (uint16_t)k2, m.place[s] = (uint8_t)place,
            m.slot[place] = (uint8_t)s;
        __syncwarp();
        unsigned e = t / 16, i = t % 16, mine = m.slot[2 * rank + e], below = (1u << i) - 1;
        k1 = m.keep1[mine], k2 = m.keep2[mine];
        if (k1 >> i & 1)
            m.channels1[e][__popc(k1 & below)] = (uint8_t)i;
        if (k2 >> i & 1)
            m.channels2[e][__popc(k2 & below)] = (uint8_t)i;
    }
    __syncthreads();
    unsigned slot[EACH] = {m.slot[2 * rank], m.slot[2 * rank + 1]};
    const uint8_t *record[EACH] = {f.records + (size_t)m.at[slot[0]] * RECORD + 1,
                                   f.records + (size_t)m.at[slot[1]] * RECORD + 1};
    unsigned low[3], high[3];
#pragma unroll
    for (unsigned i = 0; i < 3; i++) { /* 768 fours of pixels a sample, where they lie */
        unsigned p = t + i * THREADS;
        const uint8_t *at = (p >= 768 ? record[1] - 3072 : record[0]) + 4 * p;
        low[i] = word_of(at - ((uintptr_t)at & 3)), high[i] = word_of(at + 3 - ((uintptr_t)(at + 3) & 3));
    }
    if (t < EACH * 51) {
        unsigned e = t / 51, i = t % 51;
        unsigned bits = draw(f, step, i < 30 ? 2 : 3, tile * 16 + (e ? slot[1] : slot[0]), i < 30 ? i : i - 30);
        if (i < 30)
            m.nibble3[e][i] = (uint8_t)bits;
        else
            m.nibble1[e][i - 30] = (uint8_t)bits;
    } else if (t >= 128 && t < 128 + EACH) {
        unsigned e = t - 128;
        m.label[e] = (e ? slot[1] : slot[0]) < count ? (int8_t)(e ? record[1] : record[0])[-1] : -1;
    }
#pragma unroll
    for (unsigned i = 0; i < 3; i++) {
        unsigned p = t + i * THREADS, e = p >= 768, q = p - 768 * e;
        unsigned shift = 8 * ((unsigned)(uintptr_t)(e ? record[1] : record[0]) & 3);
#ifdef __CUDACC__
        unsigned four = __funnelshift_r(low[i], high[i], shift);
#else
        unsigned four = (unsigned)(((uint64_t)high[i] << 32 | low[i]) >> shift);
#endif
        float *to = &m.image[e][0][q / 8][q % 8 * 4];
        *reinterpret_cast<float2 *>(to) = make_float2(pixel(four, 0), pixel(four, 1));
        *reinterpret_cast<float2 *>(to + 2) = make_float2(pixel(four, 2), pixel(four, 3));
    }
    if (t < 2 * SAMPLES16)
        m.x.pool2[t / 2][INPUTS + t % 2] = 0;
    __syncthreads();
}

/* ----- convolutions forward ------------------------------------------------------------------------ */

/* The convolutions' weights as taps() wants them. */
static __device__ void wino_weights(memory &m)
{
    for (unsigned i = tid(); i < (18 + 96) * 5; i += THREADS) {
        const float *g = &m.w1[0][0][0] + i / 5 * 28 + i % 5 * 5; /* w2 follows */
        float4 *h = reinterpret_cast<float4 *>(&m.wino.h1[0][0][0] + i * 8);
        float g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3], g4 = g[4];
        h[0] = make_float4(g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2);
        h[1] = make_float4(g3, g3 + g4, g4, 0);
    }
}

/* 25 taps over a 2x2 window for KT output channels by the CPU's winograd.h; x: the window's first number; w[k]:
 * wino_weights' 40 floats; acc[k][row][A to D]. unit: what the columns are multiplied with, or 0. */
template <int KT>
static __device__ __forceinline__ void taps(const float *x, int pitch, float unit, const float *const *w,
                                            float (*acc)[2][4])
{
    float f[6][7];
#pragma unroll
    for (int r = 0; r < 6; r++) {
        float d[6];
#pragma unroll
        for (int q = 0; q < 3; q++) {
            float2 v = *reinterpret_cast<const float2 *>(x + r * pitch + 2 * q);
            d[2 * q] = v.x, d[2 * q + 1] = v.y;
        }
        f[r][0] = d[0] - d[2], f[r][1] = d[1] + d[2], f[r][2] = d[2] - d[1], f[r][3] = d[1] - d[3];
        f[r][4] = d[3] - d[4], f[r][5] = d[4], f[r][6] = d[4] - d[5];
        if (unit != 0)
#pragma unroll
            for (int i = 0; i < 7; i++)
                f[r][i] *= unit;
    }
#pragma unroll
    for (int k = 0; k < KT; k++) {
#pragma unroll
        for (int u = 0; u < 5; u++) {
            float4 a = *reinterpret_cast<const float4 *>(w[k] + u * 8),
                   b = *reinterpret_cast<const float4 *>(w[k] + u * 8 + 4);
            float h[7] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z};
#pragma unroll
            for (int o = 0; o < 2; o++) {
                float *sum = acc[k][o];
                const float *c = f[u + o];
                sum[0] = fmaf(c[0], h[0], sum[0]), sum[1] = fmaf(c[1], h[1], sum[1]);
                sum[2] = fmaf(c[2], h[2], sum[2]), sum[3] = fmaf(c[3], h[3], sum[3]);
                sum[0] = fmaf(c[4], h[4], sum[0]), sum[1] = fmaf(c[5], h[5], sum[1]), sum[3] = fmaf(c[6], h[6], sum[3]);
            }
        }
    }
}

/* ReLU, dropout's factor, pool; from: 0..3, which of the window, or -1. */
static __device__ __forceinline__ float pool(const float (*sums)[4], float bias, float scale, int *from)
{
    float acc[4];
#pragma unroll
    for (int o = 0; o < 2; o++) {
        const float *s = sums[o];
        acc[2 * o] = s[0] + s[1] + s[2], acc[2 * o + 1] = s[1] - s[2] - s[3];
    }
    float best = acc[0];
    int at = 0;
#pragma unroll
    for (int o = 1; o < 4; o++)
        if (acc[o] > best || acc[o] != acc[o])
            best = acc[o], at = o;
    best = relu(best + bias);
    *from = best == 0 ? -1 : at;
    return best * scale;
}

/* A warp, two pooled rows of KT channels. */
template <int KT>
static __device__ void conv1_unit(memory &m, float scale, unsigned e, unsigned first, unsigned chunk,
                                  unsigned size = KT)
{
    unsigned lane = tid() % 32, wx = lane % 16, wy = chunk * 2 + lane / 16;
    bool mine = wx < 14;
    wx = mine ? wx : 13;
    float acc[KT][2][4] = {};
    unsigned channel[KT];
#pragma unroll
    for (int k = 0; k < KT; k++)
        channel[k] = m.channels1[e][first + (k < (int)size ? k : 0)]; /* one channel is done twice */
#pragma unroll 1
    for (int c = 0; c < 3; c++) {
        const float *w[KT];
#pragma unroll
        for (int k = 0; k < KT; k++)
            w[k] = m.wino.h1[channel[k]][c];
        taps<KT>(&m.image[e][c][2 * wy][2 * wx], PITCH_IMAGE, 1 / 255.0f, w, acc);
    }
#pragma unroll
    for (int k = 0; k < KT; k++) {
        int from;
        float v = pool(acc[k], m.b1[channel[k]], scale, &from);
        if (mine) {
            m.pool1[e][channel[k]][wy][wx] = v;
            m.win1[e][channel[k]][wy * 14 + wx].base =
                from < 0 ? -1 : (int)((2 * wy + (unsigned)from / 2) * PITCH_IMAGE + 2 * wx + (unsigned)from % 2);
        }
    }
}

static __device__ void conv1_forward(const fused &f, memory &m, both kept)
{
    both n = {(unsigned)__popc(kept.a), (unsigned)__popc(kept.b)}, groups = {(n.a + 2) / 3, (n.b + 2) / 3};
    for (unsigned u = tid() / 32; u < 7 * (groups[0] + groups[1]); u += WARPS) {
        unsigned e = u >= 7 * groups[0], v = e ? u - 7 * groups[0] : u, g = v / 7;
        unsigned half = groups[e] == 2 ? n[e] / 2 : 0, first = g ? half : 0,
                 size = groups[e] == 2 && g == 0 ? half : n[e] - half; /* 1 or 2 groups */
        if (size == 3)
            conv1_unit<3>(m, f.scale[0], e, first, v % 7);
        else
            conv1_unit<2>(m, f.scale[0], e, first, v % 7, size);
    }
}

/* A warp, all 25 windows of KT channels; the result goes to who has those inputs of conv3. */
template <int KT>
static __device__ void conv2_unit(const fused &f, memory &m, unsigned round, unsigned e, unsigned kept1, unsigned first)
{
    unsigned lane = tid() % 32, i = lane < 16 ? lane : lane - 1;
    bool mine = lane < 15 || (lane >= 16 && lane < 26);
    i = mine ? i : 24;
    unsigned wy = i / 5, wx = i % 5, channel[KT];
    float acc[KT][2][4] = {};
#pragma unroll
    for (int k = 0; k < KT; k++)
        channel[k] = m.channels2[e][first + k];
#pragma unroll 1
    for (unsigned rest = kept1; rest != 0; rest &= rest - 1) {
        unsigned c = (unsigned)__ffs(rest) - 1;
        const float *w[KT];
#pragma unroll
        for (int k = 0; k < KT; k++)
            w[k] = m.wino.h2[channel[k]][c];
        taps<KT>(&m.pool1[e][c][2 * wy][2 * wx], PITCH1, 0, w, acc);
    }
#pragma unroll
    for (int k = 0; k < KT; k++) {
        int from;
        float v = pool(acc[k], m.b2[channel[k]], f.scale[1], &from);
        if (mine) {
            m.win2[e][channel[k]][i].base =
                from < 0 ? -1 : (int)((2 * wy + (unsigned)from / 2) * PITCH1 + 2 * wx + (unsigned)from % 2);
            send_word(&mail_of(f, channel[k] / 2).pool2[m.slot[2 * rank_of() + e] * INPUTS + channel[k] % 2 * 25 + i],
                      v, round);
        }
    }
}

static __device__ void conv2_forward(const fused &f, memory &m, unsigned round, both kept1, both kept2)
{
    for (unsigned i = tid(); i < EACH * 3 * 32 * 16; i += THREADS) { /* the pictures as conv1's weights want them */
        float2 *x = reinterpret_cast<float2 *>(&m.image[0][0][0][0] + i / 16 * PITCH_IMAGE + i % 16 * 2);
        *x = make_float2(x->x * (1 / 255.0f), x->y * (1 / 255.0f));
    }
    both n = {(unsigned)__popc(kept2.a), (unsigned)__popc(kept2.b)};
    unsigned at_once = n[0] + n[1] > WARPS ? 2 : 1;
    unsigned units0 = (n[0] + at_once - 1) / at_once, units1 = (n[1] + at_once - 1) / at_once;
    for (unsigned u = tid() / 32; u < units0 + units1; u += WARPS) {
        unsigned e = u >= units0, first = at_once * (e ? u - units0 : u);
        if (at_once == 2 && first + 1 < n[e])
            conv2_unit<2>(f, m, round, e, kept1[e], first);
        else
            conv2_unit<1>(f, m, round, e, kept1[e], first);
    }
    for (unsigned i = tid(); i < EACH * 400; i += THREADS) {
        unsigned e = i / 400, k = i / 25 % 16;
        if (!(kept2[e] >> k & 1))
            send_word(&mail_of(f, k / 2).pool2[m.slot[2 * rank_of() + e] * INPUTS + k % 2 * 25 + i % 25], 0, round);
    }
}

/* ----- the dense layers ---------------------------------------------------------------------------- */

/* All 16 samples, this block's 50 inputs, all outputs: parts of sums, sent to who has the sample. */
static __device__ void conv3_forward(const fused &f, memory &m, unsigned round)
{
    unsigned t = tid(), o = t % 120, g = t / 120;
    if (g >= 4)
        return;
    float acc[4] = {};
#pragma unroll
    for (int q = 0; q < PITCH3 / 4; q++) {
        float4 w = *reinterpret_cast<const float4 *>(&m.w3[o][4 * q]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float4 x = *reinterpret_cast<const float4 *>(&m.x.pool2[4 * g + j][4 * q]);
            acc[j] = fmaf(w.x, x.x, acc[j]), acc[j] = fmaf(w.y, x.y, acc[j]);
            acc[j] = fmaf(w.z, x.z, acc[j]), acc[j] = fmaf(w.w, x.w, acc[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        unsigned to = m.place[4 * g + j];
        send_word(&mail_of(f, to / 2).part[rank_of()][to % 2][o], acc[j], round);
    }
}

/* softmax.c's, with its multiply-adds written out. */
static __device__ __forceinline__ float bits_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static __device__ __forceinline__ int float_bits(float f) { int i; memcpy(&i, &f, 4); return i; }
static __device__ __forceinline__ float exp_of(float x)
{
    const float round = 0x1.8p23f;
    x = x < -87.0f ? -87.0f : x;
    float shifted = fmaf(x, 1.44269504f, round), n = shifted - round;
    float r = fmaf(-n, 1.42860677e-6f, fmaf(-n, 0.693145752f, x));
    float p = fmaf(r, 1 / 5040.0f, 1 / 720.0f);
    p = fmaf(p, r, 1 / 120.0f), p = fmaf(p, r, 1 / 24.0f), p = fmaf(p, r, 1 / 6.0f), p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f), p = fmaf(p, r, 1.0f);
    return p * bits_float((float_bits(shifted) - float_bits(round) + 127) << 23);
}
static __device__ __forceinline__ float log_of(float x)
{
    int exponent = (float_bits(x) - 0x3f3504f3) >> 23;
    float m = x * bits_float((127 - exponent) << 23), s = (m - 1.0f) / (m + 1.0f), q = s * s;
    float series = fmaf(q, 1 / 9.0f, 1 / 7.0f);
    series = fmaf(series, q, 1 / 5.0f), series = fmaf(series, q, 1 / 3.0f), series = fmaf(series, q, 1.0f);
    return fmaf((float)exponent, 0.693147181f, 2.0f * s * series);
}

/* Rows of this block's samples to all eight, by the threads from `first` on; three times as many as there are words. */
template <bool BACK>
static __device__ __forceinline__ void send_rows(const fused &f, memory &m, unsigned first, unsigned round)
{
    enum { ROW = BACK ? 40 + 28 + 4 : 40 + 28 };
    unsigned i = tid() - first, g = i / (EACH * ROW), e = i / ROW % EACH, q = i % ROW;
    if (g >= 3)
        return;
    const float *from = q < 40   ? (BACK ? m.x.part[0][e] : m.x3[e]) + 3 * q
                        : q < 68 ? (BACK ? m.d1[e] : m.y1[e]) + 3 * (q - 40)
                                 : m.logits[e] + 3 * (q - 68);
    uint4 v = {bits_of(from[0]), bits_of(from[1]), bits_of(from[2]), round};
    uint4 *to = &mail_of(f, 0).rows[m.slot[2 * rank_of() + e]][q + (BACK ? q < 40 ? 40 : 68 : q < 40 ? 0 : 40)];
    for (unsigned r = g; r < RANKS; r += 3)
        send_four(reinterpret_cast<uint4 *>(reinterpret_cast<char *>(to) + r * sizeof(mailbox)), v);
}

static __device__ void receive_rows(const fused &f, memory &m, unsigned round)
{
    uint4 v[5];
    const uint4 *p[5], *rows = mail_of(f, rank_of()).rows[0];
#pragma unroll
    for (unsigned k = 0; k < 5; k++)
        p[k] = rows + (tid() + k * THREADS < SAMPLES16 * 140 ? tid() + k * THREADS : tid());
    fours<5>(f, p, round, v);
#pragma unroll
    for (unsigned k = 0; k < 5; k++) {
        unsigned i = tid() + k * THREADS, s = i / 140, q = i % 140;
        if (i < SAMPLES16 * 140) {
            float *to = q < 40    ? m.x.x3[s] + 3 * q
                        : q < 80  ? m.x.d3[s] + 3 * (q - 40)
                        : q < 108 ? m.x.y1[s] + 3 * (q - 80)
                        : q < 136 ? m.x.d1[s] + 3 * (q - 108)
                                  : m.x.dz[s] + 3 * (q - 136);
            to[0] = float_of(v[k].x), to[1] = float_of(v[k].y), to[2] = float_of(v[k].z);
        }
    }
    __syncthreads();
}

static __device__ void head(const fused &f, memory &m, unsigned round, int64_t *sums, bool &refused)
{
    unsigned t = tid();
    if (t < EACH * 120) { /* conv3's sum, ReLU, dropout */
        unsigned e = t / 120, o = t % 120;
        float part[RANKS];
        words<RANKS>(f, &mail_of(f, rank_of()).part[0][e][o], EACH * 120, round, part);
        float sum = part[0];
#pragma unroll
        for (int r = 1; r < RANKS; r++)
            sum += part[r];
        sum += m.b3[o];
        m.x3[e][o] = m.nibble3[e][o / 4] >> o % 4 & 1 ? relu(sum) * f.scale[2] : 0;
    }
    __syncthreads();
    if (t < 84 * EACH) { /* fc1: a thread an output of a sample */
        unsigned o = t % 84, e = t / 84;
        float sum = 0;
#pragma unroll 10
        for (unsigned k = 0; k < 30; k++) {
            float4 w = *reinterpret_cast<const float4 *>(&m.wf1[o][4 * k]),
                   x = *reinterpret_cast<const float4 *>(&m.x3[e][4 * k]);
            sum = fmaf(w.x, x.x, sum), sum = fmaf(w.y, x.y, sum), sum = fmaf(w.z, x.z, sum), sum = fmaf(w.w, x.w, sum);
        }
        sum += m.bf1[o];
        m.y1[e][o] = m.nibble1[e][o / 4] >> o % 4 & 1 ? relu(sum) * f.scale[3] : 0;
    }
    __syncthreads();
    if (t < 32) { /* fc2 and softmax: half a warp a sample */
        unsigned e = t / 16, k = t % 16, row = k < 10 ? k : 9;
        int label = m.label[e];
        float z = 0;
#pragma unroll 7
        for (unsigned o = 0; o < 21; o++) {
            float4 w = *reinterpret_cast<const float4 *>(&m.wf2[row][4 * o]),
                   y = *reinterpret_cast<const float4 *>(&m.y1[e][4 * o]);
            z = fmaf(w.x, y.x, z), z = fmaf(w.y, y.y, z), z = fmaf(w.z, y.z, z), z = fmaf(w.w, y.w, z);
        }
        z += m.bf2[row];
        float largest = z, sum = 0;
#pragma unroll
        for (unsigned j = 8; j > 0; j /= 2) { /* lanes 10..15 have logit 9 once more */
            float o = __shfl_xor_sync(ALL, largest, j);
            largest = o > largest ? o : largest;
        }
        float numerator = exp_of(z - largest);
#pragma unroll
        for (unsigned j = 0; j < 10; j++)
            sum += __shfl_sync(ALL, numerator, e * 16 + j);
        float wanted = __shfl_sync(ALL, z, e * 16 + (label >= 0 ? (unsigned)label : 0));
        if (k < 12)
            m.logits[e][k] = label >= 0 && k < 10 ? numerator / sum - ((int)k == label) : 0;
        if (k == 0 && label >= 0)
            add(sums + SUMS_LOSS, log_of(sum) + (largest - wanted), refused);
    } else if (t >= 64)
        send_rows<false>(f, m, 64, round);
    __syncthreads();
    if (t < EACH * 84) {
        unsigned e = t / 84, o = t % 84;
        float sum = 0;
#pragma unroll
        for (int k = 0; k < 10; k++)
            sum = fmaf(m.wf2[k][o], m.logits[e][k], sum);
        m.d1[e][o] = m.y1[e][o] == 0 ? 0 : sum * f.scale[3];
    }
    __syncthreads();
    if (t < EACH * 120) {
        unsigned e = t / 120, k = t % 120;
        float sum = 0, x = m.x3[e][k];
#pragma unroll 7
        for (unsigned o = 0; o < 21; o++) {
            float4 d = *reinterpret_cast<const float4 *>(&m.d1[e][4 * o]);
            sum = fmaf(m.wf1[4 * o][k], d.x, sum), sum = fmaf(m.wf1[4 * o + 1][k], d.y, sum);
            sum = fmaf(m.wf1[4 * o + 2][k], d.z, sum), sum = fmaf(m.wf1[4 * o + 3][k], d.w, sum);
        }
        m.x.part[0][e][k] = x == 0 ? 0 : sum * f.scale[2];
    }
    __syncthreads();
    send_rows<true>(f, m, 0, round);
}

/* What each sample's outputs send back to this block's 50 inputs: half a warp four inputs, a lane a
 * sample. Warps 0 to 6. */
static __device__ __forceinline__ void conv3_input(const fused &f, memory &m, unsigned round)
{
    unsigned s = tid() % 16, q = tid() / 16, i = q < 13 ? 4 * q : 48;
    float a0 = 0, a1 = 0, a2 = 0, a3 = 0;
#pragma unroll 3
    for (unsigned o = 0; o < 120; o += 4) {
        float4 v = *reinterpret_cast<const float4 *>(&m.x.d3[s][o]);
        float d[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float4 w = *reinterpret_cast<const float4 *>(&m.w3[o + j][i]);
            a0 = fmaf(d[j], w.x, a0), a1 = fmaf(d[j], w.y, a1), a2 = fmaf(d[j], w.z, a2), a3 = fmaf(d[j], w.w, a3);
        }
    }
    unsigned to = m.place[s];
    if (q < 13)
    {
        uint64_t *at = &mail_of(f, to / 2).dpool2[to % 2][rank_of()][i];
        send_word(at, a0, round), send_word(at + 1, a1, round), send_word(at + 2, a2, round),
            send_word(at + 3, a3, round);
    }
}

/* A warp, eight outputs from o on. */
static __device__ __noinline__ void conv3_weights(memory &m, int64_t *sums, unsigned o, bool &refused_)
{
    unsigned lane = tid() % 32, second = lane < 20 ? 32 + lane : 51; /* numbers 50, 51 are zeros */
    bool refused = false;
    float acc[8][2] = {};
#pragma unroll 2
    for (int s = 0; s < SAMPLES16; s++) {
        float x0 = m.x.pool2[s][lane], x1 = m.x.pool2[s][second];
        float4 a = *reinterpret_cast<const float4 *>(&m.x.d3[s][o]),
               b = *reinterpret_cast<const float4 *>(&m.x.d3[s][o + 4]);
        float d[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 8; j++)
            acc[j][0] = fmaf(d[j], x0, acc[j][0]), acc[j][1] = fmaf(d[j], x1, acc[j][1]);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int64_t *at = sums + rank_of() * SLICE3 + (o + j) * INPUTS + lane;
        add(at, acc[j][0], refused);
        if (lane < INPUTS - 32)
            add(at + 32, acc[j][1], refused);
    }
    refused_ |= refused;
}

/* conv3's biases, fc1 and fc2: 32 numbers of this block's share of the small parameters. */
static __device__ __forceinline__ void dense_weights(memory &m, int64_t *sums, unsigned chunk, bool &refused)
{
    unsigned j = rank_of() * OWN + chunk * 32 + tid() % 32, last = rank_of() * OWN + OWN;
    if (j < AT_B3 || j >= last)
        return;
    const float *a, *b = nullptr;
    unsigned pitch, pitch_b = 0;
    if (j < AT_WF1)
        a = &m.x.d3[0][j - AT_B3], pitch = PITCH_D3;
    else if (j < AT_WF2) {
        unsigned o = (j - AT_WF1) / PITCH_FC1, k = (j - AT_WF1) % PITCH_FC1;
        if (k >= 120)
            return;
        a = &m.x.d1[0][o], pitch = 84, b = &m.x.x3[0][k], pitch_b = 120;
    } else if (j < AT_BF1)
        a = &m.x.dz[0][(j - AT_WF2) / 84], pitch = 12, b = &m.x.y1[0][(j - AT_WF2) % 84], pitch_b = 84;
    else if (j < AT_BF2)
        a = &m.x.d1[0][j - AT_BF1], pitch = 84;
    else
        a = &m.x.dz[0][j - AT_BF2], pitch = 12;
    float sum = 0;
    if (b != nullptr)
#pragma unroll
        for (int s = 0; s < SAMPLES16; s++)
            sum = fmaf(a[s * pitch], b[s * pitch_b], sum);
    else
#pragma unroll
        for (int s = 0; s < SAMPLES16; s++)
            sum += a[s * pitch];
    add(sums + SUMS_SMALL + j, sum, refused);
}

/* ----- convolutions backward ----------------------------------------------------------------------- */

/* The warp's live winners, close together, and zeros up to a multiple of four. */
static __device__ __forceinline__ unsigned compact(winner *list, winner w)
{
    unsigned lane = tid() % 32, alive = __ballot_sync(ALL, w.d != 0);
    unsigned n = (unsigned)__popc(alive), below = (unsigned)__popc(alive & ((1u << lane) - 1));
    __syncwarp(); /* the list's last readers are through */
    list[w.d != 0 ? below : n + lane - below] = w.d != 0 ? w : winner{0, 0};
    __syncwarp();
    return n;
}

static __device__ __forceinline__ void four(const winner *list, unsigned i, float *d, int *base)
{
    float4 a = *reinterpret_cast<const float4 *>(list + i), b = *reinterpret_cast<const float4 *>(list + i + 2);
    d[0] = a.x, d[1] = a.z, d[2] = b.x, d[3] = b.z;
#ifdef __CUDACC__
    base[0] = __float_as_int(a.y), base[1] = __float_as_int(a.w), base[2] = __float_as_int(b.y),
    base[3] = __float_as_int(b.w);
#else
    for (int k = 0; k < 4; k++)
        base[k] = list[i + k].base;
#endif
}

/* A warp a channel of conv2, a lane a tap; lane 25: the bias. Each sample's sums are rounded. */
static __device__ void conv2_weights(const fused &f, memory &m, unsigned round, both kept1, both kept2, int64_t *sums,
                                     bool &refused)
{
    unsigned lane = tid() % 32, warp = tid() / 32, k = warp, from = 0, to_e = EACH;
    unsigned n0 = (unsigned)__popc(kept2[0]), n1 = (unsigned)__popc(kept2[1]);
    if (n0 + n1 <= WARPS) {
        if (warp >= n0 + n1)
            return;
        from = warp >= n0, to_e = from + 1, k = m.channels2[from][from ? warp - n0 : warp];
    }
    unsigned tap = lane < 25 ? lane / 5 * PITCH1 + lane % 5 : 0;
    long long total[6] = {}, bias = 0;
    /* Free now; the dense layers' rows are in use. */
    winner *list = reinterpret_cast<winner *>(&m.x.part[0][0][0]) + warp * 32;
#pragma unroll 1
    for (unsigned e = from; e < to_e; e++) {
        if (!(kept2[e] >> k & 1))
            continue;
        winner w = {0, 0};
        float acc[6] = {};
        if (lane < 25) { /* what arrives; nobody else waits for it */
            float v;
            words<1>(f, &mail_of(f, rank_of()).dpool2[e][k / 2][k % 2 * 25 + lane], 0, round, &v);
            w = m.win2[e][k][lane];
            w.d = w.base < 0 ? 0 : v * f.scale[1];
            m.win2[e][k][lane].d = w.d;
        }
        unsigned n = compact(list, w);
#pragma unroll 1
        for (unsigned i = 0; i < n; i += 4) {
            float d[4];
            int base[4];
            four(list, i, d, base);
#pragma unroll
            for (int c = 0; c < 6; c++)
                if (kept1[e] >> c & 1)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        acc[c] = fmaf(d[j], (&m.pool1[e][c][0][0])[base[j] + (int)tap], acc[c]);
        }
#pragma unroll
        for (int c = 0; c < 6; c++)
            total[c] += fixed(acc[c], refused);
    }
    if (lane >= 25 && lane - 25 >= from && lane - 25 < to_e && kept2[lane - 25] >> k & 1) { 
        const winner *w = m.win2[lane - 25][k];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 25; i++)
            sum += w[i].d;
        bias = fixed(sum, refused);
    }
    int64_t *to = sums + SUMS_SMALL + AT_W2;
    if (lane < 25)
#pragma unroll
        for (int c = 0; c < 6; c++)
            if (total[c] != 0)
                reduce(to + (k * 6 + c) * 28 + lane, total[c]);
    if (lane >= 25 && bias != 0)
        reduce(sums + SUMS_SMALL + AT_B2 + k, bias);
}

static __device__ __forceinline__ float *block_of_window(memory &m, unsigned e, unsigned window)
{
    return &m.pool1[0][0][0][0] + (e * 25 + window) * PITCH_BLOCK;
}

/* A warp a pool window: the 6x6 numbers that it saw, of all kept channels. A lane has SLOTS of them. */
template <int SLOTS>
static __device__ __forceinline__ void input_windows(memory &m, unsigned e, unsigned kept2, unsigned n)
{
    unsigned lane = tid() % 32, warp = tid() / 32;
    int tap[SLOTS], valid[SLOTS];
#pragma unroll
    for (int r = 0; r < SLOTS; r++) {
        unsigned i = lane + 32 * r, ci = i * 57 >> 11, what = m.patch[i - ci * PATCH]; /* i / 36 */
        tap[r] = (int)(m.channels1[e][ci < n ? ci : 0] * 112 + (what >> 4));
        valid[r] = i < n * PATCH ? (int)(what & 15) : 0;
    }
    winner *list = m.list[warp];
    const char *weights = reinterpret_cast<const char *>(&m.w2[0][0][0]);
#pragma unroll 1
    for (unsigned u = (warp - 9 * e) % WARPS; u < 25; u += WARPS) { /* 9: where sample 0 ends */
        winner mine = {0, 0};
        if (lane < 16 && kept2 >> lane & 1)
            mine = m.win2[e][lane][u];
        int rest = mine.base - (int)(u / 5 * 2 * PITCH1 + u % 5 * 2), p = rest >= PITCH1 ? rest - PITCH1 + 2 : rest;
        mine.base = (int)((lane * 168 - p / 2 * 5 - p % 2) * 64 | 1u << (p & 3)); /* bytes * 16, bit of p */
        unsigned count = compact(list, mine);
        float acc[SLOTS] = {};
#pragma unroll 1
        for (unsigned i = 0; i < count; i += 4) {
            float d[4];
            int what[4];
            four(list, i, d, what);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = what[j] >> 4;
#pragma unroll
                for (int r = 0; r < SLOTS; r++) {
                    float w = *reinterpret_cast<const float *>(weights + (at + tap[r]));
                    float v = fmaf(d[j], w, acc[r]);
                    acc[r] = valid[r] & what[j] ? v : acc[r];
                }
            }
        }
        float *block = block_of_window(m, e, u);
#pragma unroll
        for (int r = 0; r < SLOTS; r++)
            if (lane + 32 * r < n * PATCH)
                block[lane + 32 * r] = acc[r];
    }
}

static __device__ void conv2_input(memory &m, both kept1, both kept2)
{
#pragma unroll 1
    for (unsigned e = 0; e < EACH; e++) {
        unsigned n = (unsigned)__popc(kept1[e]), k2 = kept2[e];
        if (n > 4)
            input_windows<7>(m, e, k2, n);
        else if (n > 3)
            input_windows<5>(m, e, k2, n);
        else if (n > 2)
            input_windows<4>(m, e, k2, n);
        else if (n > 0)
            input_windows<3>(m, e, k2, n);
    }
}

/* The windows' blocks summed: the gradient at the winners of conv1. */
static __device__ void gather(memory &m, both kept1, float scale)
{
    unsigned n0 = (unsigned)__popc(kept1.a), n1 = (unsigned)__popc(kept1.b);
#pragma unroll 1
    for (unsigned i = tid(); i < (n0 + n1) * 196; i += THREADS) {
        unsigned e = i >= n0 * 196, j = e ? i - n0 * 196 : i, ci = j / 196, at = j % 196, y = at / 14, x = at % 14;
        winner &w = m.win1[e][m.channels1[e][ci]][at];
        const float *block = block_of_window(m, e, y / 2 * 5 + x / 2) + ci * PATCH + y % 2 * 6 + x % 2;
        float sum = 0, v[3][3];
#pragma unroll
        /* Windows that saw it: up to three a direction; others' numbers are read, but not used. */
        for (int a = 2; a >= 0; a--)
#pragma unroll
            for (int b = 2; b >= 0; b--)
                v[a][b] = block[-(a * 5 + b) * PITCH_BLOCK + 12 * a + 2 * b];
#pragma unroll
        for (int a = 2; a >= 0; a--)
#pragma unroll
            for (int b = 2; b >= 0; b--)
                sum += y / 2 - (unsigned)a < 5 && x / 2 - (unsigned)b < 5 ? v[a][b] : 0;
        w.d = w.base < 0 ? 0 : sum * scale;
    }
}

/* Eight warps a sample, each 25 windows; a lane a tap of all three channels. */
static __device__ void conv1_weights(memory &m, both kept1)
{
    unsigned lane = tid() % 32, warp = tid() / 32, e = warp / 8, window = warp % 8 * 25 + lane;
    unsigned tap = lane < 25 ? lane / 5 * PITCH_IMAGE + lane % 5 : 0, ki = 0;
    const float *image = &m.image[e][0][0][tap];
    if (warp == 7) { /* the biases; as the CPU: even columns, odd columns. This warp has the fewest windows. */
        unsigned be = lane / 12 & 1, k = lane / 2 % 6, kept = kept1[be];
        const winner *w = &m.win1[be][k][lane % 2];
        float half = 0;
#pragma unroll 14
        for (int i = 0; i < 98; i++)
            half += w[2 * i].d;
        float other = __shfl_xor_sync(ALL, half, 1);
        if (lane < 24 && kept >> k & 1 && lane % 2 == 0)
            m.part[be * 8][__popc(kept & ((1u << k) - 1))][75] = half + other;
    }
#pragma unroll 1
    for (unsigned rest = kept1[e]; rest != 0; rest &= rest - 1, ki++) {
        unsigned k = (unsigned)__ffs(rest) - 1;
        winner w = {0, 0};
        if (lane < 25 && window < 196)
            w = m.win1[e][k][window];
        unsigned n = compact(m.list[warp], w);
        float a0 = 0, a1 = 0, a2 = 0;
#pragma unroll 1
        for (unsigned i = 0; i < n; i += 4) {
            float d[4];
            int base[4];
            four(m.list[warp], i, d, base);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *x = image + base[j];
                a0 = fmaf(d[j], x[0], a0), a1 = fmaf(d[j], x[PLANE], a1), a2 = fmaf(d[j], x[2 * PLANE], a2);
            }
        }
        float *to = m.part[warp][ki];
        if (lane < 25)
            to[lane] = a0, to[25 + lane] = a1, to[50 + lane] = a2;
    }
}

static __device__ void conv1_sum(memory &m, both kept1, int64_t *sums, bool &refused)
{
    unsigned t = tid(), k = t / 76, i = t % 76;
    if (k >= 6)
        return;
    long long total = 0;
    for (int e = 0; e < EACH; e++)
        if (kept1[e] >> k & 1) {
            unsigned ki = (unsigned)__popc(kept1[e] & ((1u << k) - 1));
            float sum = m.part[e * 8][ki][i];
#pragma unroll
            for (int j = 1; j < 8; j++)
                sum += i < 75 ? m.part[e * 8 + j][ki][i] : 0;
            total += fixed(sum, refused);
        }
    if (total != 0)
        reduce(sums + SUMS_SMALL + (i < 75 ? k * 84 + i / 25 * 28 + i % 25 : AT_B1 + k), total);
}

/* ----- the step ------------------------------------------------------------------------------------ */

/* The new weights of fc1 and fc2, which the group has written. */
static __device__ void copy_dense(const fused &f, memory &m)
{
    const float *small = f.small + group_of(f) * SMALL;
    for (unsigned i = tid() + AT_WF1 / 4; i < SMALL / 4; i += THREADS)
        copy16(small_place(m, 4 * i), small + 4 * i);
}
static __device__ void fetch_dense(const fused &f, memory &m, group_barrier &group)
{
    if (group.pending)
        group_await(group), copy_dense(f, m), group.pending = false;
    await_copies();
}

static __device__ void tile_gradient(const fused &f, memory &m, group_barrier &group, int64_t *sums, bool &refused)
{
    unsigned first = m.slot[2 * rank_of()], second = m.slot[2 * rank_of() + 1];
    both kept1 = {m.keep1[first], m.keep1[second]}, kept2 = {m.keep2[first], m.keep2[second]};
    wino_weights(m);
    __syncthreads();
    STAMP(3);
    conv1_forward(f, m, kept1);
    __syncthreads();
    STAMP(4);
    unsigned round = ++group.round;
    conv2_forward(f, m, round, kept1, kept2);
    STAMP(5);
    bool pending = group.pending;
    if (pending && tid() == THREADS - 1)
        poll(group.counter, group.target);
    if (tid() < 400) { /* half of them, and the other half */
        float v[2];
        words<2>(f, mail_of(f, rank_of()).pool2 + tid(), 400, round, v);
        float *to = &m.x.pool2[tid() / 50][tid() % 50];
        to[0] = v[0], to[8 * PITCH3] = v[1];
    }
    __syncthreads();
    if (pending)
        copy_dense(f, m), group.pending = false; /* while conv3 goes forward */
    STAMP(6);
    conv3_forward(f, m, round);
    await_copies();
    STAMP(7);
    STAMP(8);
    head(f, m, round, sums, refused);
    STAMP(9);
    receive_rows(f, m, round);
    STAMP(10);
    unsigned warp = tid() / 32;
    if (warp < 7)
        conv3_input(f, m, round);
    else
        conv3_weights(m, sums, (warp - 7) * 8, refused);
    STAMP(11);
    if (warp < 6)
        conv3_weights(m, sums, (9 + warp) * 8, refused);
#pragma unroll 1
    for (unsigned chunk = warp; chunk < (OWN + 31) / 32; chunk += warp < 6 ? OWN : 10)
        dense_weights(m, sums, chunk, refused);
    STAMP(12);
    STAMP(13);
    conv2_weights(f, m, round, kept1, kept2, sums, refused);
    STAMP(14);
    __syncthreads(); /* pool1 and the exchange have been read */
    conv2_input(m, kept1, kept2);
    __syncthreads();
    gather(m, kept1, f.scale[0]);
    __syncthreads();
    STAMP(15);
    conv1_weights(m, kept1);
    __syncthreads();
    conv1_sum(m, kept1, sums, refused);
    STAMP(16);
}

/* New weights from the sums of a step, and copies of the small ones for all of the group; nothing, if a number was
 * not finite. */
static __device__ void update(const fused &f, memory &m, group_barrier &group, const int64_t *sums, unsigned samples,
                              const longlong2 *small_sums, const longlong2 *sums3, unsigned round)
{
    (void)sums;
    unsigned rank = rank_of();
    double unit = EXACT_UNIT * (1 / (double)samples);
    float *small = f.small + group_of(f) * SMALL;
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        unsigned i = 2 * (tid() + r * THREADS), j = rank * OWN + i;
        if (i < OWN) {
            float2 *place = reinterpret_cast<float2 *>(small_place(m, j)), *vs = reinterpret_cast<float2 *>(&m.vs[i]),
                   v = *vs, w = *place;
            v.x = fmaf(f.momentum, v.x, mean_of(small_sums[r].x, unit)),
            v.y = fmaf(f.momentum, v.y, mean_of(small_sums[r].y, unit));
            w.x = fmaf(-f.learning_rate, v.x, w.x), w.y = fmaf(-f.learning_rate, v.y, w.y);
            *vs = v;
#if CLUSTER
            for (unsigned b = 0; b < RANKS; b++)
                send(f, b, &place->x, w.x), send(f, b, &place->y, w.y);
#else
            if (j < AT_WF1)
                send_four(&mail_of(f, 0).conv[j / 2], uint4{bits_of(w.x), round, bits_of(w.y), round});
            else
                __stcg(reinterpret_cast<float2 *>(small + j), w);
#endif
        }
    }
    group_arrive(group);
#pragma unroll
    for (unsigned r = 0; r < 6; r++) {
        unsigned i = tid() + r * THREADS;
        if (i < SLICE3 / 2) {
            float2 *place = reinterpret_cast<float2 *>(&m.w3[i / 25][i % 25 * 2]),
                   *v3 = reinterpret_cast<float2 *>(&m.v3[2 * i]), v = *v3, w = *place;
            v.x = fmaf(f.momentum, v.x, mean_of(sums3[r].x, unit)),
            v.y = fmaf(f.momentum, v.y, mean_of(sums3[r].y, unit));
            w.x = fmaf(-f.learning_rate, v.x, w.x), w.y = fmaf(-f.learning_rate, v.y, w.y);
            *v3 = v, *place = w;
        }
    }
    group.pending = true;
    const uint4 *p[4];
    uint4 v[4];
#pragma unroll
    for (unsigned k = 0; k < 4; k++)
        p[k] = mail_of(f, 0).conv + (tid() + k * THREADS < AT_WF1 / 2 ? tid() + k * THREADS : tid());
    fours<4>(f, p, round, v);
#pragma unroll
    for (unsigned k = 0; k < 4; k++) {
        unsigned i = tid() + k * THREADS;
        if (i < AT_WF1 / 2)
            *reinterpret_cast<float2 *>(small_place(m, 2 * i)) = make_float2(float_of(v[k].x), float_of(v[k].z));
    }
    __syncthreads();
}

/* The end of step number `steps` of this launch: its sums are complete. True: training is over, because somebody wished
 * it (the step counts) or because a number was not finite (it does not). */
static __device__ bool finish(const fused &f, memory &m, group_barrier &group, unsigned steps, unsigned samples)
{
    const int64_t *sums = f.sums + (steps + 2) % 3 * SUMS_COUNT;
    await(f.arrived, steps * f.groups * RANKS);
    STAMP(1);
    longlong2 small_sums[2], sums3[6]; /* all at once: one way to the L2 */
    unsigned t = tid();
#pragma unroll
    for (unsigned r = 0; r < 2; r++)
        small_sums[r] = __ldcg(reinterpret_cast<const longlong2 *>(sums + SUMS_SMALL + rank_of() * OWN) +
                               (t + r * THREADS < OWN / 2 ? t + r * THREADS : 0));
    bool refused = __ldcg((const long long *)(sums + SUMS_REFUSED)) != 0,
         stopped = __ldcg((const long long *)(sums + SUMS_STOP)) != 0;
#pragma unroll
    for (unsigned r = 0; r < 6; r++)
        sums3[r] = __ldcg(reinterpret_cast<const longlong2 *>(sums + rank_of() * SLICE3) +
                          (t + r * THREADS < SLICE3 / 2 ? t + r * THREADS : 0));
    if (block_of(f) == 0 && tid() == 0) {
        f.state->not_finite = refused;
        f.state->stopped = stopped;
        if (!refused)
            f.state->loss += (int64_t)__ldcg((const long long *)(sums + SUMS_LOSS)), f.state->applied = steps;
    }
    if (!refused)
        update(f, m, group, sums, samples, small_sums, sums3, steps);
    return refused || stopped;
}

static __device__ void load(const fused &f, memory &m)
{
    unsigned rank = rank_of();
    if (tid() == 0)
        m.trouble = f.trouble;
    for (unsigned i = tid(); i < 240; i += THREADS)
        m.w3[i / 2][INPUTS + i % 2] = 0;
    for (unsigned i = tid(); i < SLICE3; i += THREADS) {
        unsigned at = canonical3(rank, i);
        m.w3[i / INPUTS][i % INPUTS] = f.weights[at], m.v3[i] = f.velocity[at];
    }
    for (unsigned j = tid(); j < SMALL; j += THREADS)
        *small_place(m, j) = canonical_small(j) < 0 ? 0 : f.weights[canonical_small(j)];
    for (unsigned i = tid(); i < OWN; i += THREADS)
        m.vs[i] = canonical_small(rank * OWN + i) < 0 ? 0 : f.velocity[canonical_small(rank * OWN + i)];
    if (tid() < PATCH) {
        unsigned i = tid(), y = i / 6, x = i % 6, what = (y * 5 + x) * 4 << 4;
        for (unsigned p = 0; p < 4; p++)
            what |= (unsigned)(y - p / 2 < 5 && x - p % 2 < 5) << p;
        m.patch[i] = (uint16_t)what;
    }
    for (unsigned i = tid(); i < EACH * 16 * 28; i += THREADS)
        (&m.win2[0][0][0])[i] = winner{0, 0};
#ifdef STAMPS
    if (tid() < 32)
        m.clocks[tid()] = tid() == 24 ? clock64() : 0;
#endif
    __syncthreads();
}

static __device__ void store(const fused &f, memory &m)
{
    unsigned rank = rank_of();
    if (group_of(f) != 0)
        return;
    for (unsigned i = tid(); i < SLICE3; i += THREADS) {
        unsigned at = canonical3(rank, i);
        f.weights[at] = m.w3[i / INPUTS][i % INPUTS], f.velocity[at] = m.v3[i];
    }
    for (unsigned i = tid(); i < OWN; i += THREADS) {
        int at = canonical_small(rank * OWN + i);
        if (at >= 0)
            f.weights[at] = *small_place(m, rank * OWN + i), f.velocity[at] = m.vs[i];
    }
}

#if CLUSTER && defined(__CUDACC__)
extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ fused_nets nets)
#elif defined(__CUDACC__)
extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(const __grid_constant__ fused_nets nets)
#else
static void fused_train(const fused_nets &nets)
#endif
{
    memory &m = shared();
    unsigned net = 0;
    while (net + 1 < nets.count && blockIdx.x >= nets.net[net + 1].first_block)
        net++;
    const fused &f = nets.net[net];
    group_barrier group = {f.arrived + (1 + group_of(f)) * PAD, 0, 0, false};
    unsigned steps = 0, position = f.position, samples = 0, blocks = f.groups * RANKS;
    load(f, m);
#if CLUSTER && defined(__CUDACC__)
    group_arrive(group), group_await(group); /* nobody writes to a block that has not begun */
#endif
    for (;; position += samples, steps++) {
        int64_t *sums = f.sums + steps % 3 * SUMS_COUNT, *next = f.sums + (steps + 1) % 3 * SUMS_COUNT;
        unsigned now = f.last - position < f.batch ? f.last - position : f.batch,
                 tiles = (now + 15) / 16; /* 0: no more */
        bool refused = false;
        if (group_of(f) < tiles) /* while others still work on the step before */
            prepare(f, m, f.step + steps, position, group_of(f),
                    now - group_of(f) * 16 < 16 ? now - group_of(f) * 16 : 16);
        bool wish = block_of(f) == 0 && tid() == 0 && f.stop != nullptr && *f.stop; /* over PCIe: while waiting */
        STAMP(0);
        if ((steps > 0 && finish(f, m, group, steps, samples)) || now == 0)
            break;
        STAMP(2);
        samples = now;
        for (unsigned i = block_of(f) * THREADS + tid(); i < SUMS_COUNT; i += blocks * THREADS)
            next[i] = 0;
        if (wish)
            atomicAdd(reinterpret_cast<unsigned long long *>(sums + SUMS_STOP), 1ull);
        for (unsigned tile = group_of(f); tile < tiles; tile += f.groups) {
            if (tile != group_of(f)) {
                group_arrive(group), group_await(group);
                prepare(f, m, f.step + steps, position, tile, now - tile * 16 < 16 ? now - tile * 16 : 16);
            }
            tile_gradient(f, m, group, sums, refused);
        }
        if (refused)
            atomicAdd(reinterpret_cast<unsigned long long *>(sums + SUMS_REFUSED), 1ull);
        fetch_dense(f, m, group); /* of groups that had no tile */
        __syncthreads();
        if (tid() == THREADS - 1) /* its fence takes a while: the first warps go on */
            release(f.arrived);
    }
    fetch_dense(f, m, group); /* the last update's */
    store(f, m);
#ifdef STAMPS
    if (f.stamps && tid() < 32)
        f.stamps[block_of(f) * 32 + tid()] = m.clocks[tid()];
#endif
#if CLUSTER && defined(__CUDACC__)
    group_arrive(group), group_await(group); /* nobody leaves while others write to it */
#endif
}
