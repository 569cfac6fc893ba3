/* All threads of all blocks as fibers at once, so that blocks can wait for each other. Host only. */
#ifndef HOST_SHIM_H
#define HOST_SHIM_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define __global__
#define __noinline__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
struct alignas(8) float2 { float x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct shim_index { unsigned x; };
extern shim_index shim_thread, shim_block, shim_blocks;
#define threadIdx shim_thread
#define blockIdx shim_block
#define gridDim shim_blocks
void *shim_shared(unsigned block);
enum { SHIM_WARP, SHIM_BLOCK };
void shim_wait(int scope);
void shim_yield();
uint64_t shim_exchange(uint64_t bits, unsigned from);
unsigned shim_ballot(bool yes);
static inline void __syncthreads() { shim_wait(SHIM_BLOCK); }
static inline void __syncwarp() { shim_wait(SHIM_WARP); }
static inline void __threadfence() {}
template <typename T> static inline T shim_shuffle(T v, unsigned from)
{
    uint64_t b = 0;
    memcpy(&b, &v, sizeof v);
    b = shim_exchange(b, from);
    memcpy(&v, &b, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T v, unsigned m)
{
    return shim_shuffle(v, threadIdx.x % 32 ^ m);
}
template <typename T> static inline T __shfl_sync(unsigned, T v, unsigned from) { return shim_shuffle(v, from); }
static inline unsigned __ballot_sync(unsigned, bool yes) { return shim_ballot(yes); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
template <typename T> static inline T atomicAdd(T *p, T x) { T b = *p; *p += x; return b; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }
static inline long long __float2ll_rn(float x) { return llrintf(x); }
void shim_run(unsigned blocks, unsigned threads, size_t shared, unsigned order, void (*thread)(void *), void *context);
#endif
