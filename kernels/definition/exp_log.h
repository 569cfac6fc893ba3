/* exp_log.h - e^x and ln x in fp32, the same bits on every processor and device, where libraries' differ.
 *
 * Plain C and CUDA C. kernels/cpu/exp_log.h has the same for vectors; a test holds both to each other over every float
 * that can occur, and to the functions they stand for.
 */
#ifndef DTRAIN_DEFINITION_EXP_LOG_H
#define DTRAIN_DEFINITION_EXP_LOG_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define EXP_LOG_INLINE static __host__ __device__ __forceinline__
#else
#define EXP_LOG_INLINE static inline
#endif

EXP_LOG_INLINE float float_of_bits(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

EXP_LOG_INLINE int32_t bits_of_float(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* e^x for x <= 0, to 8e-8 relative; below -87 as at -87. NaN stays NaN. */
EXP_LOG_INLINE float defined_exp(float x)
{
    const float round = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    x = x < -87.0f ? -87.0f : x;
    float shifted = fmaf(x, 1.44269504f, round);
    float n = shifted - round;
    float r = fmaf(-n, 0.693145752f, x); /* ln 2 in two parts: |r| <= ln 2 / 2 */
    r = fmaf(-n, 1.42860677e-6f, r);
    float p = fmaf(r, 1 / 5040.0f, 1 / 720.0f);
    p = fmaf(p, r, 1 / 120.0f);
    p = fmaf(p, r, 1 / 24.0f);
    p = fmaf(p, r, 1 / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    uint32_t power = ((uint32_t)bits_of_float(shifted) - (uint32_t)bits_of_float(round) + 127) << 23;
    return p * float_of_bits((int32_t)power); /* exact */
}

/* ln x for finite x >= 1, below 10 to 1.7e-7 absolute. NaN stays NaN. x is m 2^exponent, ln m = 2 (s +
 * s^3/3 + s^5/5 + ...). */
EXP_LOG_INLINE float defined_log(float x)
{
    int32_t exponent = (bits_of_float(x) - 0x3f3504f3) >> 23; /* so that x / 2^exponent is in sqrt(1/2) .. sqrt(2) */
    float m = x * float_of_bits((int32_t)((uint32_t)(127 - exponent) << 23)); /* exact */
    float s = (m - 1.0f) / (m + 1.0f), q = s * s;
    float series = fmaf(q, 1 / 9.0f, 1 / 7.0f);
    series = fmaf(series, q, 1 / 5.0f);
    series = fmaf(series, q, 1 / 3.0f);
    series = fmaf(series, q, 1.0f);
    return fmaf((float)exponent, 0.693147181f, 2.0f * s * series);
}

#endif
