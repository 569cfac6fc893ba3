/* machine.cuh - the GPU's instructions that the step needs. tests/support/together/machine.h has the same for the
 * host.
 */
#ifndef DTRAIN_FUSED_MACHINE_CUH
#define DTRAIN_FUSED_MACHINE_CUH

#include <cuda_runtime.h>

#include "fused.h"

/* Which thread and block this is: read again wherever it is asked for, so that nothing made of it is kept over a whole
 * step. */
static __device__ __forceinline__ unsigned tid()
{
    unsigned t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

static __device__ __forceinline__ unsigned block()
{
    unsigned b;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
    return b;
}

static __device__ __forceinline__ void *shared_bytes()
{
    extern __shared__ float4 bytes[];
    return bytes;
}

/* --- memory of the GPU that several blocks use at once: past the L1 cache, each access seen whole  */

static __device__ __forceinline__ void store_word(uint64_t *to, uint64_t word)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

static __device__ __forceinline__ uint64_t load_word(const uint64_t *from)
{
    uint64_t word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}

/* 16 bytes as one number, which PTX promises to move whole, not as a vector of four. */
static __device__ __forceinline__ void store_line(ulonglong2 *to, ulonglong2 line)
{
    asm volatile("{ .reg .b128 line; mov.b128 line, {%1, %2}; st.relaxed.gpu.global.b128 [%0], line; }" ::"l"(to),
                 "l"(line.x), "l"(line.y)
                 : "memory");
}

static __device__ __forceinline__ ulonglong2 load_line(const ulonglong2 *from)
{
    ulonglong2 line;
    asm volatile("{ .reg .b128 line; ld.relaxed.gpu.global.b128 line, [%2]; mov.b128 {%0, %1}, line; }"
                 : "=l"(line.x), "=l"(line.y)
                 : "l"(from)
                 : "memory");
    return line;
}

static __device__ __forceinline__ unsigned load_acquire(const uint32_t *from)
{
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

static __device__ __forceinline__ void add_release(uint32_t *to)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
}

/* A reduction that returns nothing. (An atomicAdd whose result is not used became ATOM in places.) */
static __device__ __forceinline__ void add_sum(int64_t *to, long long term)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(term) : "memory");
}

/* --- memory of several GPUs: the same, as all of them see it ------------------------------------ */

static __device__ __forceinline__ void store_pair_of_peer(int64_t *to, longlong2 pair)
{
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(pair.x), "l"(pair.y) : "memory");
}

static __device__ __forceinline__ longlong2 load_pair_of_peer(const int64_t *from)
{
    longlong2 pair;
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(pair.x), "=l"(pair.y) : "l"(from) : "memory");
    return pair;
}

static __device__ __forceinline__ unsigned load_acquire_of_peers(const uint32_t *from)
{
    unsigned value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* Adds 1 to a counter of each of `count` GPUs. */
static __device__ __forceinline__ void add_release_to_peers(uint32_t *const *to, unsigned count)
{
    asm volatile("fence.acq_rel.sys;" ::: "memory");
#pragma unroll 1
    for (unsigned i = 0; i < count; i++)
        asm volatile("red.relaxed.sys.global.add.u32 [%0], 1;" ::"l"(to[i]) : "memory");
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* Called once a turn of a loop that waits for other blocks. All blocks are on the GPU, so one that does not answer for
 * some ten seconds is a fault: true once the loop has waited that long. */
static __device__ __forceinline__ bool waited_too_long(unsigned *turns)
{
    return ++*turns >= 1u << 24;
}

/* Ends the launch, after it has said in *trouble, if any, what was waited for: whom is FUSED_FOR_... */
static __device__ __noinline__ void give_up(fused_trouble *trouble, unsigned whom, unsigned wanted, unsigned found)
{
    if (trouble != nullptr) {
        trouble->block = blockIdx.x, trouble->wanted = wanted, trouble->found = found;
        trouble->waited = whom;
        __threadfence_system();
    }
    __trap();
}

/* --- copies and conversions ------------------------------------------------------------------- */

/* A line of 128 bytes will soon be read. */
static __device__ __forceinline__ void fetch_into_l2(const uint8_t *at)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

/* 16 bytes into shared memory, which are there after await_copies. */
static __device__ __forceinline__ void copy_later(float *to, const float *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}

/* Waits for the copies that this thread began. */
static __device__ __forceinline__ void await_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* 2p - 255 of byte i of four: 65536 + 2p is a float whose second byte is p. */
static __device__ __forceinline__ float whole_pixel(unsigned four, unsigned i)
{
    return __uint_as_float(__byte_perm(four, 0x47800000u, 0x7604u | i << 4)) - (65536.0f + 255);
}

/* The 32 bits of high:low from bit `bits` (0..31) on. */
static __device__ __forceinline__ unsigned shifted(unsigned low, unsigned high, unsigned bits)
{
    return __funnelshift_r(low, high, bits);
}

#endif
