/* philox.h - Philox4x32-10, the counter-based generator behind every random number of dtrain.
 *
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
 * A number is a pure function of (seed, purpose, layer, step, position, element): nothing is stored,
 * nothing is shared, and any rank or device can draw any number. This header is plain C and CUDA C.
 */
#ifndef DTRAIN_PHILOX_H
#define DTRAIN_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_INLINE __host__ __device__ __forceinline__
#else
#define PHILOX_INLINE static inline
#endif

/* What a number is drawn for: streams of different purposes never meet. */
enum philox_purpose {
    PHILOX_DROPOUT = 1,   /* layer: enum dropout_layer; position in the global batch; step */
    PHILOX_WEIGHTS = 2,   /* layer: index in lenet5_parameters; element of the tensor */
    PHILOX_SHUFFLE = 3,   /* step: the epoch, from 0; element: place in the permutation */
    PHILOX_SYNTHETIC = 4, /* position: the picture; step 0 training set, 1 test set */
};

struct philox_counter {
    uint32_t c[4];
};

/* The counter of a block of four elements:
 *   c0 = block (element / 4)   c1 = position of the sample in the GLOBAL batch
 *   c2 = step, bits 0..31      c3 = purpose:8 | layer:8 | step, bits 32..47 */
PHILOX_INLINE struct philox_counter philox_counter(enum philox_purpose purpose, uint32_t layer, uint64_t step,
                                                   uint32_t position, uint32_t block)
{
    struct philox_counter counter = {
        {block, position, (uint32_t)step,
         (uint32_t)purpose << 24 | (layer & 0xffu) << 16 | ((uint32_t)(step >> 32) & 0xffffu)}};
    return counter;
}

/* Of a round: two multipliers, and what the two halves of the key grow by. */
#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_KEY_STEP_0 0x9E3779B9u
#define PHILOX_KEY_STEP_1 0xBB67AE85u

/* Both halves of a * b. On a GPU the 64-bit product would cost a needless addition: a fifth of all. */
PHILOX_INLINE void philox_multiply(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low)
{
#ifdef __CUDA_ARCH__
    *high = __umulhi(a, b);
    *low = a * b;
#else
    uint64_t product = (uint64_t)a * b;
    *high = (uint32_t)(product >> 32);
    *low = (uint32_t)product;
#endif
}

/* The four 32-bit numbers of a counter under a 64-bit seed; number i belongs to element 4*block + i. */
PHILOX_INLINE struct philox_counter philox4x32(struct philox_counter x, uint64_t seed)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint32_t high0, low0, high1, low1;
        philox_multiply(PHILOX_MULTIPLIER_0, x.c[0], &high0, &low0);
        philox_multiply(PHILOX_MULTIPLIER_1, x.c[2], &high1, &low1);
        x.c[0] = high1 ^ x.c[1] ^ k0;
        x.c[1] = low1;
        x.c[2] = high0 ^ x.c[3] ^ k1;
        x.c[3] = low0;
        k0 += PHILOX_KEY_STEP_0;
        k1 += PHILOX_KEY_STEP_1;
    }
    return x;
}

/* [0, 1) in steps of 2^-24: every value is exact in fp32. */
PHILOX_INLINE float philox_uniform(uint32_t number)
{
    return (float)(number >> 8) * 0x1p-24f;
}

/* Dropout keeps an element when its number >= this. 64 bits: p = 1 gives 2^32, which no number reaches. */
PHILOX_INLINE uint64_t philox_threshold(double p)
{
    return (uint64_t)(p * 4294967296.0);
}

#endif
