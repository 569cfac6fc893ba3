/* exp_log.h - kernels/definition/exp_log.h for vectors: the same bits. */
#ifndef DTRAIN_CPU_EXP_LOG_H
#define DTRAIN_CPU_EXP_LOG_H

#include "vector.h"

/* e^x for x <= 0, to 8e-8 relative; below -87 as at -87. NaN stays NaN. */
KERNEL vec vec_exp(vec x)
{
    const float round = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    x = vec_select(x < -87.0f, vec_all(-87.0f), x);
    vec shifted = vec_fma(x, vec_all(1.44269504f), vec_all(round));
    vec n = shifted - round;
    vec r = vec_fma(-n, vec_all(0.693145752f), x); /* ln 2 in two parts: |r| <= ln 2 / 2 */
    r = vec_fma(-n, vec_all(1.42860677e-6f), r);
    vec p = vec_fma(r, vec_all(1 / 5040.0f), vec_all(1 / 720.0f));
    p = vec_fma(p, r, vec_all(1 / 120.0f));
    p = vec_fma(p, r, vec_all(1 / 24.0f));
    p = vec_fma(p, r, vec_all(1 / 6.0f));
    p = vec_fma(p, r, vec_all(0.5f));
    p = vec_fma(p, r, vec_all(1.0f));
    p = vec_fma(p, r, vec_all(1.0f));
    ivec power = ((ivec)shifted - (ivec)vec_all(round) + 127) << 23;
    return p * (vec)power;
}

/* ln x for finite x >= 1, below 10 to 1.7e-7 absolute. NaN stays NaN. */
KERNEL vec vec_log(vec x)
{
    ivec exponent = ((ivec)x - 0x3f3504f3) >> 23; /* so that x / 2^exponent is in sqrt(1/2) .. sqrt(2) */
    vec m = x * (vec)((127 - exponent) << 23);
    vec s = (m - 1.0f) / (m + 1.0f), q = s * s; /* ln m = 2 (s + s^3/3 + s^5/5 + ...) */
    vec series = vec_fma(q, vec_all(1 / 9.0f), vec_all(1 / 7.0f));
    series = vec_fma(series, q, vec_all(1 / 5.0f));
    series = vec_fma(series, q, vec_all(1 / 3.0f));
    series = vec_fma(series, q, vec_all(1.0f));
    return vec_fma(__builtin_convertvector(exponent, vec), vec_all(0.693147181f), 2.0f * s * series);
}

#endif
