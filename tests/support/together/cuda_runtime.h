/* cuda_runtime.h - in place of CUDA's own for kernels whose blocks run at once: what of CUDA C++ kernels/fused uses,
 * and LAUNCH_TOGETHER. See together.h. */
#ifndef DTRAIN_TOGETHER_CUDA_RUNTIME_H
#define DTRAIN_TOGETHER_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cuda_runtime_api.h> /* tests/support/shim */

#include "together.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) longlong2 {
    long long x, y;
};
struct alignas(16) ulonglong2 {
    uint64_t x, y;
};

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* --- the running thread ----------------------------------------------------------------------- */

struct together_index {
    unsigned x;
};
extern together_index together_thread, together_block;
#define threadIdx together_thread
#define blockIdx together_block

/* Gives way until all threads of the block, or all lanes of the warp, are here. */
void together_barrier();
void together_warp_barrier();
/* Gives way to others; `waiting`: because it can do nothing until they do. */
void together_yield(bool waiting);
/* Every lane of the warp hands in 8 bytes and gets those of lane `from`. */
uint64_t together_exchange(uint64_t bits, unsigned from);
unsigned together_ballot(bool yes);
void *together_shared();

/* Memory that other blocks read plainly. What a thread stores or adds is seen by others, its own block included, once
 * it has released a counter, or has passed a barrier of its block and another thread of that has released one, and
 * somebody has acquired the counter; and at the launch's end. A GPU promises no more. */
void together_store(void *to, const void *value, size_t bytes); /* at most 8 */
void together_add(int64_t *to, int64_t term);
void together_release(const uint32_t *counter);
void together_acquire(const uint32_t *counter);
/* The same where other processes may have a part: adds 1 to each of the counters; the counter's value. */
void together_release_to_peers(uint32_t *const *counters, unsigned count);
uint32_t together_acquire_of_peers(const uint32_t *counter);
/* Ends the launch, which then fails. */
[[noreturn]] void together_give_up();

/* 16 bytes, which arrive when this thread waits for its copies. */
void together_copy_later(float *to, const float *from);
void together_await_copies();

static inline void __syncthreads()
{
    together_barrier();
}

static inline void __syncwarp()
{
    together_warp_barrier();
}

template <typename T> static inline T __shfl_sync(unsigned, T value, unsigned from)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = together_exchange(bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T> static inline T __shfl_xor_sync(unsigned lanes, T value, unsigned mask)
{
    return __shfl_sync(lanes, value, threadIdx.x % 32 ^ mask);
}

static inline unsigned __ballot_sync(unsigned, bool yes)
{
    return together_ballot(yes);
}

static inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
}

static inline int __ffs(int bits)
{
    return __builtin_ffs(bits);
}

static inline long long __float2ll_rn(float x)
{
    return llrintf(x);
}

long long clock64();

template <typename T> static inline void __stcg(T *to, T value)
{
    together_store(to, &value, sizeof value);
}

/* --- devices and launches --------------------------------------------------------------------- */

enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrCooperativeLaunch,
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMpsEnabled = 133, // of CUDA, as C code asks for it, too
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device); // C code, too

static inline cudaError_t cudaFuncSetAttribute(const void *, int, int)
{
    return cudaSuccess;
}

/* Runs thread(context) for every thread of every block; or queues that, where a GPU is emulated. */
cudaError_t together_launch(unsigned blocks, unsigned threads, size_t shared_bytes, void *stream,
                            void (*thread)(const void *context), const void *context, size_t context_bytes);

template <typename Body>
static inline cudaError_t together_launch_body(unsigned blocks, unsigned threads, size_t shared_bytes, void *stream,
                                               Body body)
{
    return together_launch(
        blocks, threads, shared_bytes, stream, [](const void *context) { (*static_cast<const Body *>(context))(); },
        &body, sizeof body);
}

/* Up to two arguments, copied. */
template <typename Kernel, typename A>
static inline cudaError_t together_call(Kernel kernel, unsigned blocks, unsigned threads, size_t bytes, void *stream,
                                        A a)
{
    return together_launch_body(blocks, threads, bytes, stream, [=] { kernel(a); });
}

template <typename Kernel, typename A, typename B>
static inline cudaError_t together_call(Kernel kernel, unsigned blocks, unsigned threads, size_t bytes, void *stream,
                                        A a, B b)
{
    return together_launch_body(blocks, threads, bytes, stream, [=] { kernel(a, b); });
}

#define LAUNCH_TOGETHER together_call

#endif
