/* vector.h - one vector type for all CPU kernels, in the compiler's vector extension.
 *
 * Its width is chosen when compiling: 512 bits with AVX-512, 256 with AVX, else 128. The kernels are
 * written once, for any LANES that divides 16; loops over a constant count of vectors are unrolled, so
 * that their arrays become registers.
 */
#ifndef DTRAIN_CPU_VECTOR_H
#define DTRAIN_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && !defined(__FMA__)
#error "-mavx512f without -mfma: no processor has the one and not the other, so give both, or -march"
#endif
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
typedef uint16_t words __attribute__((vector_size(2 * LANES)));

/* A kernel's inner part: inlined where its sizes are constants. */
#define KERNEL static inline __attribute__((always_inline))

/* A part that is a function of its own: inlined, GCC would keep its constants in registers that the sums of its caller
 * need. */
#define APART static __attribute__((noinline))

/* UNROLL: a loop that becomes straight code. ROLLED: one that must stay a loop; unrolled, its sums would spill, or it
 * would not be turned into vectors. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define ROLLED _Pragma("GCC unroll 1")
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

/* a * b + c, rounded once. Products are never joined to sums otherwise (-ffp-contract=off): that would leave the bits
 * to the compiler. */
#if defined(__AVX512F__)
KERNEL vec vec_fma(vec a, vec b, vec c)
{
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(__FMA__) && defined(__AVX__)
KERNEL vec vec_fma(vec a, vec b, vec c)
{
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#elif defined(__aarch64__)
KERNEL vec vec_fma(vec a, vec b, vec c)
{
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
/* For processors without the instruction, some twenty times as slow. In double the product is exact and the sum rounded
 * to nearest; where it is not exact, its last bit is made odd, so that rounding it again to float goes the way of the
 * exact sum (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008). */
KERNEL vec vec_fma(vec a, vec b, vec c)
{
    typedef double doubles __attribute__((vector_size(8 * LANES)));
    typedef int64_t longs __attribute__((vector_size(8 * LANES)));
    doubles product = __builtin_convertvector(a, doubles) * __builtin_convertvector(b, doubles);
    doubles addend = __builtin_convertvector(c, doubles), sum = product + addend;
    doubles rest = sum - product, lost = (product - (sum - rest)) + (addend - rest); /* sum + lost is exact */
    longs inexact = (lost < 0) | (lost > 0), even = ((longs)sum & 1) - 1;
    longs outwards = (lost > 0) ^ (sum < 0); /* 0 or -1: which neighbour is on the exact sum's side */
    sum = (doubles)((longs)sum + (inexact & even & (-1 - 2 * outwards)));
    return __builtin_convertvector(sum, vec);
}
#endif

/* One more term of a chain: *sum = a * b + *sum. */
KERNEL void add_product(vec a, float b, vec *sum)
{
    *sum = vec_fma(a, vec_all(b), *sum);
}

/* Forces v into a register here. Otherwise the compiler may load a vector anew for each of its uses. */
KERNEL vec vec_keep(vec v)
{
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

/* Writes v to memory: the compiler may not keep it in a register that other sums need. */
KERNEL void vec_spill(vec *to, vec v)
{
    *to = v;
    __asm__("" : "+m"(*to));
}

/* The same pointer, hidden from the compiler. GCC otherwise sees that two pointers of a loop read the same numbers one
 * iteration apart, keeps those vectors in registers for the next iteration, and spills sums to make room. */
KERNEL const float *separate_address(const float *p)
{
    __asm__("" : "+r"(p));
    return p;
}

/* A vector of numbers picked from two of eight, of which the second's are 8 to 15. */
typedef float eight __attribute__((vector_size(8 * sizeof(float))));
typedef int32_t eight_ints __attribute__((vector_size(8 * sizeof(int32_t))));
#ifdef __clang__
#define PICK_EIGHT(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK_EIGHT(a, b, ...) __builtin_shuffle(a, b, (eight_ints){__VA_ARGS__})
#endif

/* Passed by address: builds for narrower vectors have no calling convention for eight floats. No alignment is asked. */
KERNEL void eight_load(const float *from, eight *to)
{
    typedef float unaligned __attribute__((vector_size(8 * sizeof(float)), aligned(4), may_alias));
    *to = *(const unaligned *)from;
}

KERNEL void eight_store(float *to, const eight *v)
{
    typedef float unaligned __attribute__((vector_size(8 * sizeof(float)), aligned(4), may_alias));
    *(unaligned *)to = *v;
}

/* Adds v to eight numbers. */
KERNEL void eight_add(float *to, const eight *v)
{
    eight sum;
    eight_load(to, &sum);
    sum += *v;
    eight_store(to, &sum);
}

/* *sum += factor * *a, rounded once. */
KERNEL void eight_fma(float factor, const eight *a, eight *sum)
{
#if defined(__FMA__) && defined(__AVX__)
    *sum = (eight)_mm256_fmadd_ps((__m256)*a, _mm256_set1_ps(factor), (__m256)*sum);
#else
    vec parts[8 / LANES], factors[8 / LANES];
    memcpy(parts, sum, sizeof *sum);
    memcpy(factors, a, sizeof *a);
    UNROLL for (int k = 0; k < 8 / LANES; k++)
        add_product(factors[k], factor, &parts[k]);
    memcpy(sum, parts, sizeof *sum);
#endif
}

/* As add_product, of eight numbers at a. */
KERNEL void eight_add_product(const float *a, float b, eight *sum)
{
    eight numbers;
    eight_load(a, &numbers);
    eight_fma(b, &numbers, sum);
}

/* A vec, but of eight numbers at least. Passed by address, as eights are. */
typedef float wide __attribute__((vector_size((LANES > 8 ? LANES : 8) * sizeof(float))));
typedef int32_t wide_ints __attribute__((vector_size(sizeof(wide))));

/* A wide, or wide_ints: its lower half from one place, its upper one from another. No alignment is asked. */
KERNEL void wide_pair(const void *low, const void *high, void *to)
{
#if defined(__AVX512F__)
    __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256(low));
    both = _mm512_inserti64x4(both, _mm256_loadu_si256(high), 1);
    memcpy(to, &both, sizeof both);
#elif defined(__AVX__)
    __m256 both = _mm256_castps128_ps256(_mm_loadu_ps(low));
    both = _mm256_insertf128_ps(both, _mm_loadu_ps(high), 1);
    memcpy(to, &both, sizeof both);
#else
    memcpy(to, low, sizeof(wide) / 2);
    memcpy((char *)to + sizeof(wide) / 2, high, sizeof(wide) / 2);
#endif
}

KERNEL void wide_store(float *to, const wide *v)
{
    typedef float unaligned __attribute__((vector_size(sizeof(wide)), aligned(4), may_alias));
    *(unaligned *)to = *v;
}

/* Lane i: lane i + 1 of v. The last has no meaning. */
KERNEL void wide_next(const wide *v, wide *to)
{
#if defined(__AVX512F__)
    *to = (wide)_mm512_alignr_epi32((__m512i)*v, (__m512i)*v, 1);
#else
    *to = PICK_EIGHT(*v, *v, 1, 2, 3, 4, 5, 6, 7, 7);
#endif
}

/* *sum += factor * *a, rounded once. */
KERNEL void wide_fma(float factor, const wide *a, wide *sum)
{
#if defined(__AVX512F__)
    add_product(*a, factor, sum);
#else
    eight_fma(factor, a, sum);
#endif
}

/* Sixteen numbers: even[0], odd[0], even[1] and so on. */
KERNEL void vec_interleave(const float even[8], const float odd[8], vec to[16 / LANES])
{
#if defined(__AVX512F__)
    const ivec places = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    __m512 evens = _mm512_castps256_ps512(_mm256_loadu_ps(even));
    __m512 odds = _mm512_castps256_ps512(_mm256_loadu_ps(odd));
    to[0] = (vec)_mm512_permutex2var_ps(evens, (__m512i)places, odds);
#else
    eight e, o, halves[2];
    eight_load(even, &e);
    eight_load(odd, &o);
    halves[0] = PICK_EIGHT(e, o, 0, 8, 1, 9, 2, 10, 3, 11);
    halves[1] = PICK_EIGHT(e, o, 4, 12, 5, 13, 6, 14, 7, 15);
    memcpy(to, halves, sizeof halves);
#endif
}

/* even[i] = from[2i], odd[i] = from[2i + 1], of 16 numbers each. */
KERNEL void vec_separate(const float from[32], float even[16], float odd[16])
{
#if defined(__AVX512F__)
    const ivec evens = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
    vec_store(even, (vec)_mm512_permutex2var_ps(low, (__m512i)evens, high));
    vec_store(odd, (vec)_mm512_permutex2var_ps(low, (__m512i)(evens + 1), high));
#else
    for (int i = 0; i < 16; i++) {
        even[i] = from[2 * i];
        odd[i] = from[2 * i + 1];
    }
#endif
}

#if defined(__AVX512F__)
/* Lanes of *v where `where` is -1, not 0: of the numbers of a and b the one whose number, b's being 16 to 31, the lane
 * holds. */
KERNEL void vec_pick(vec a, vec b, ivec where, ivec *v)
{
    __mmask16 lanes = _mm512_test_epi32_mask((__m512i)where, (__m512i)where);
    *v = (ivec)_mm512_mask2_permutex2var_ps((__m512)a, (__m512i)*v, lanes, (__m512)b);
}
#endif

/* Each number's low 16 bits. */
KERNEL void eight_store_words(uint16_t *to, const eight_ints *v)
{
    typedef uint16_t unaligned __attribute__((vector_size(16), aligned(2), may_alias));
    *(unaligned *)to = __builtin_convertvector(*v, unaligned);
}

/* Lane i: from lane places[i]. */
KERNEL vec vec_permute(vec v, ivec places)
{
#if defined(__AVX512F__)
    return (vec)_mm512_permutexvar_ps((__m512i)places, (__m512)v);
#elif defined(__AVX2__)
    return (vec)_mm256_permutevar8x32_ps((__m256)v, (__m256i)places);
#else
    vec permuted;
    UNROLL for (int i = 0; i < LANES; i++)
        permuted[i] = v[places[i]];
    return permuted;
#endif
}

/* rows[i][k] becomes rows[k][i]. */
KERNEL void transpose_eight(eight rows[8])
{
    eight pairs[8], fours[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        pairs[i] = PICK_EIGHT(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = PICK_EIGHT(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int k = 0; k < 2; k++) {
            fours[i + 2 * k] = PICK_EIGHT(pairs[i + k], pairs[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            fours[i + 2 * k + 1] = PICK_EIGHT(pairs[i + k], pairs[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    UNROLL for (int k = 0; k < 4; k++) {
        rows[k] = PICK_EIGHT(fours[k], fours[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        rows[k + 4] = PICK_EIGHT(fours[k], fours[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Lane by lane: where ? a : b; the lanes of `where` are 0 or -1, as comparisons give. */
KERNEL vec vec_select(ivec where, vec a, vec b)
{
    return (vec)((where & (ivec)a) | (~where & (ivec)b));
}

/* Bit i: whether lane i is live: not zero. NaN is. */
KERNEL unsigned vec_live(vec v)
{
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)v, _mm512_set1_epi32(INT32_MAX)); /* all but the sign */
#elif defined(__AVX__)
    return (unsigned)_mm256_movemask_ps((__m256)(v != 0));
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps((__m128)(v != 0));
#else
    unsigned bits = 0;
    UNROLL for (int i = 0; i < LANES; i++)
        bits |= (unsigned)(v[i] != 0) << i;
    return bits;
#endif
}

/* Lane i: whether bit i is set: 0 or -1. */
KERNEL ivec vec_from_bits(unsigned bits)
{
#if defined(__AVX512DQ__)
    return (ivec)_mm512_movm_epi32((__mmask16)bits);
#else
    ivec lanes;
    UNROLL for (int i = 0; i < LANES; i++)
        lanes[i] = 1 << i;
    return ((int32_t)bits & lanes) != 0;
#endif
}

/* Lane i: the next number of v if bit i is set, else 0. places[i] says which number that is, -1 if none; where
 * VEC_EXPANDS nobody asks. */
#if defined(__AVX512F__)
enum { VEC_EXPANDS = 1 };
KERNEL vec vec_expand(vec v, unsigned bits, ivec places)
{
    (void)places;
    return (vec)_mm512_maskz_expand_ps((__mmask16)bits, (__m512)v);
}
#else
enum { VEC_EXPANDS = 0 };
KERNEL vec vec_expand(vec v, unsigned bits, ivec places)
{
    (void)bits;
    return vec_select(places < 0, (vec){0}, vec_permute(v, places & (LANES - 1)));
}
#endif

/* As vec_load and vec_store. */
KERNEL words words_load(const uint16_t *from)
{
    typedef uint16_t unaligned __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    return *(const unaligned *)from;
}

KERNEL void words_store(uint16_t *to, words v)
{
    typedef uint16_t unaligned __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    *(unaligned *)to = v;
}

/* Each lane's low 16 bits. */
KERNEL void vec_store_words(uint16_t *to, ivec v)
{
    words_store(to, __builtin_convertvector(v, words));
}

/* max(v, 0) that keeps NaN, so that a broken number reaches the loss. */
KERNEL vec vec_relu(vec v)
{
    return vec_select(v < 0, (vec){0}, v);
}

/* Max-pool 2x2, lane by lane. The first of equals wins; `winner` is how far from the first number it stands, `right`
 * for the next column and `below` for the next row. NaN comes through: a broken number reaches the loss. */
KERNEL vec vec_pool(const vec window[4], int right, int below, ivec *winner)
{
    vec best = window[0];
    *winner = (ivec){0};
    UNROLL for (int k = 1; k < 4; k++) {
        int to_here = k / 2 * below + k % 2 * right;
#if defined(__AVX512F__)
        __mmask16 number = _mm512_cmp_ps_mask((__m512)best, (__m512)best, _CMP_ORD_Q); /* not NaN */
        __mmask16 better = _mm512_mask_cmp_ps_mask(number, (__m512)window[k], (__m512)best, _CMP_NLE_UQ);
        best = (vec)_mm512_mask_mov_ps((__m512)best, better, (__m512)window[k]);
        *winner = (ivec)_mm512_mask_mov_epi32((__m512i)*winner, better, _mm512_set1_epi32(to_here));
#else
        ivec number = best == best; /* not NaN. NOLINT(misc-redundant-expression) */
        ivec better = ~(window[k] <= best) & number;
        best = vec_select(better, window[k], best);
        *winner = (better & to_here) | (~better & *winner);
#endif
    }
    return best;
}

#endif
