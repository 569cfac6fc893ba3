/* vector.h - one vector type for all CPU kernels, in the compiler's vector extension.
 *
 * Its width is chosen when compiling: 512 bits with AVX-512, 256 with AVX, else 128. The kernels are
 * written once, for any LANES that divides 16; loops over a constant count of vectors are unrolled, so
 * that their arrays become registers.
 */
#ifndef DTRAIN_CPU_VECTOR_H
#define DTRAIN_CPU_VECTOR_H

#include <stdint.h>

#if defined(__AVX512F__)
enum { LANES = 16, VECTOR_REGISTERS = 32 };
#elif defined(__AVX__)
enum { LANES = 8, VECTOR_REGISTERS = 16 };
#elif defined(__aarch64__)
enum { LANES = 4, VECTOR_REGISTERS = 32 };
#else
enum { LANES = 4, VECTOR_REGISTERS = 16 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

/* A kernel's inner part: inlined where its sizes are constants. */
#define KERNEL static inline __attribute__((always_inline))

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

/* No alignment is asked. */
KERNEL vec vec_load(const float *from)
{
    typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    return *(const unaligned *)from;
}

KERNEL void vec_store(float *to, vec v)
{
    typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    *(unaligned *)to = v;
}

KERNEL vec vec_all(float x)
{
    return x - (vec){0};
}

/* Lane by lane: where ? a : b; the lanes of `where` are 0 or -1, as comparisons give. */
KERNEL vec vec_select(ivec where, vec a, vec b)
{
    return (vec)((where & (ivec)a) | (~where & (ivec)b));
}

/* max(v, 0) that keeps NaN, so that a broken number reaches the loss. */
KERNEL vec vec_relu(vec v)
{
    return vec_select(v < 0, (vec){0}, v);
}

#endif
