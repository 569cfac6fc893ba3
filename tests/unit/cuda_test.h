/* cuda_test.h - what the tests of the CUDA kernels share: numbers, comparisons, a step and its masks. */
#ifndef DTRAIN_CUDA_TEST_H
#define DTRAIN_CUDA_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_host.h"
#include "exact_sum.h"
#include "guarded.h"
#include "kernels/cuda/kernels.h"
#include "kernels/reference/reference.h"
#include "philox.h"

enum { ORDERS = 3 };

/* A pure function of (stream, i), below 2^32. */
static inline uint32_t draw(uint32_t stream, size_t i)
{
    struct philox_counter at = {{(uint32_t)(i / 4), stream, 0, 0}};
    return philox4x32(at, 77).c[i % 4];
}

/* -1 .. 1 in steps of 1/8: sums are exact, and equals are frequent. */
static inline float coarse(uint32_t stream, size_t i)
{
    return (float)((int)(draw(stream, i) % 17) - 8) / 8;
}

static inline float fine(uint32_t stream, size_t i)
{
    return 2 * philox_uniform(draw(stream, i)) - 1;
}

static inline float zero(uint32_t stream, size_t i)
{
    (void)stream, (void)i;
    return 0;
}

static inline float *filled(float (*number)(uint32_t, size_t), uint32_t stream, size_t count)
{
    float *x = guarded_floats(count);
    for (size_t i = 0; i < count; i++)
        x[i] = number(stream, i);
    return x;
}

/* What the ranks sum, unwritten. */
static inline int64_t *sums_new(void)
{
    return guarded_new(CUDA_SUMS * sizeof(int64_t), 0);
}

/* A number in EXACT_UNITs, rounded as the kernels must. */
static inline int64_t units(double number)
{
    return llrint(number / EXACT_UNIT);
}

static inline void assert_near(const char *what, size_t i, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s[%zu] is %.9g, not %.9g", what, i, got, want);
}

/* The layers' shapes: channels (or units), and the side of a plane where there is a pool. */
static const size_t channels_of[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS, FC1_ELEMENTS};
static const size_t side_of[2] = {28, 10};

static const double rates[] = {0, 1e-10, 0.3, 0.5, 1};
enum { RATES = sizeof rates / sizeof *rates, FIRST = 241 };
static const struct cuda_step some_step = {.step = 0x123456789abc, .position = 3};

static inline struct cuda_step *step_new(void)
{
    return guarded_copy(&some_step, sizeof some_step);
}

static inline struct cuda_dropout dropout_of(const struct masks *masks, const struct cuda_step *step)
{
    return (struct cuda_dropout){masks, step, FIRST};
}

/* The factors of sample n's channels: 0 or the scale; 1 without masks. */
static inline void factors_of(const struct masks *masks, enum dropout_layer layer, uint32_t n, double *factors)
{
    struct sample_mask mask;
    if (masks)
        masks_draw(masks, some_step.step, FIRST + n, 1, &mask);
    for (unsigned c = 0; c < channels_of[layer]; c++)
        factors[c] = !masks ? 1 : mask_keeps(&mask, layer, c) ? (double)masks->scale[layer] : 0;
}

#endif
