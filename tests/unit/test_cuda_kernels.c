/* conv2's pool and the activations of the dense layers by their CUDA kernels, run on the host (tests/support/shim),
 * against the double-precision reference. Every launch is made in three orders of blocks and threads, which must
 * give the same bits. */
#include "cuda_test.h"

/* ----- ReLU, dropout, pool ------------------------------------------------------------------------- */

/* What the pool leaves, by the reference. */
struct pooled {
    double x[16 * 10 * 10], y[16 * 5 * 5];
    size_t from[16 * 5 * 5];
};

static void pool_reference(const double *factors, const float *x, const float *bias, struct pooled *p)
{
    size_t side = side_of[DROPOUT_CONV2], channels = CONV2_ELEMENTS;
    for (size_t i = 0; i < channels * side * side; i++)
        p->x[i] = (double)x[i] + (double)bias[i / (side * side)];
    reference_activation_forward(channels, side * side, factors, p->x);
    reference_pool_forward(channels, side, p->x, p->y, p->from);
}

static int origin_of(const struct pooled *p, size_t i)
{
    size_t side = side_of[DROPOUT_CONV2], half = side / 2, row = i / half, column = i % half, at = p->from[i];
    return p->y[i] > 0 ? (int)((at / side - 2 * row) * 2 + at % side - 2 * column) : CUDA_NOWHERE;
}

static void check_pool(const struct masks *masks, uint32_t count, const float *bias)
{
    struct cuda_step *step = step_new();
    size_t side = side_of[DROPOUT_CONV2], inputs = CONV2_ELEMENTS * side * side, outputs = inputs / 4;
    float *x = filled(coarse, 2, count * inputs);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *y = guarded_floats(count * outputs);
        uint8_t *origin = guarded_new(count * outputs, 0);
        RUN(cuda_pool_forward(dropout_of(masks, step), count, x, bias, y, origin, NULL));
        for (uint32_t n = 0; n < count; n++) {
            struct pooled want;
            double factors[CONV3_ELEMENTS];
            factors_of(masks, DROPOUT_CONV2, n, factors);
            pool_reference(factors, x + n * inputs, bias, &want);
            for (size_t i = 0; i < outputs; i++) {
                assert_near("y", i, y[n * outputs + i], want.y[i], 1e-7 * fabs(want.y[i]));
                assert_int_equal(origin[n * outputs + i], origin_of(&want, i));
            }
        }
        guarded_free(y);
        guarded_free(origin);
    }
    guarded_free(x);
    guarded_free(step);
}

static void the_pool_is_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 3, 9};
    float *bias = filled(coarse, 4, CONV2_ELEMENTS);
    for (size_t r = 0; r < RATES; r++) {
        struct masks masks = masks_make(5, rates[r], 0);
        check_pool(&masks, counts[r % 4], bias);
        check_pool(r ? &masks : NULL, counts[(r + 1) % 4], bias);
    }
    guarded_free(bias);
}

static void check_activation(enum dropout_layer layer, const struct masks *masks, uint32_t count, const float *bias)
{
    struct cuda_step *step = step_new();
    size_t channels = channels_of[layer];
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *y = filled(coarse, 6, count * channels), *dy = filled(fine, 7, count * channels);
        RUN(cuda_activation_forward(layer, dropout_of(masks, step), count, bias, y, NULL));
        RUN(cuda_activation_backward(layer, masks, count, y, dy, NULL));
        for (uint32_t n = 0; n < count; n++) {
            double factors[CONV3_ELEMENTS], want[CONV3_ELEMENTS], dwant[CONV3_ELEMENTS];
            factors_of(masks, layer, n, factors);
            for (size_t c = 0; c < channels; c++) {
                want[c] = (double)coarse(6, n * channels + c) + (double)bias[c];
                dwant[c] = fine(7, n * channels + c);
            }
            reference_activation_forward(channels, 1, factors, want);
            reference_activation_backward(channels, 1, factors, want, dwant);
            for (size_t c = 0; c < channels; c++) {
                assert_near("y", c, y[n * channels + c], want[c], 1e-7 * want[c]);
                assert_near("dy", c, dy[n * channels + c], dwant[c], 1e-7 * fabs(dwant[c]));
            }
        }
        guarded_free(y);
        guarded_free(dy);
    }
    guarded_free(step);
}

static void activations_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 5, 33};
    float *bias = filled(coarse, 8, CONV3_ELEMENTS);
    for (enum dropout_layer layer = DROPOUT_CONV3; layer <= DROPOUT_FC1; layer++)
        for (size_t r = 0; r < RATES; r++) {
            struct masks masks = masks_make(6, rates[r], rates[r]);
            check_activation(layer, &masks, counts[r % 4], bias);
            check_activation(layer, r ? &masks : NULL, counts[(r + 1) % 4], bias);
        }
    guarded_free(bias);
}

static float one(uint32_t stream, size_t i)
{
    (void)stream, (void)i;
    return 1;
}

/* Every element of every layer, on numbers that are all 1; conv1's are its own kernel's: test_cuda_conv. */
static void masks_are_those_of_masks_draw(void **state)
{
    (void)state;
    struct cuda_step *step = step_new();
    enum { COUNT = 40, SEED = 12345 };
    float *no_bias = filled(zero, 0, CONV3_ELEMENTS);
    cuda_host.order = 0;
    for (size_t r = 0; r <= RATES; r++)
        for (enum dropout_layer layer = DROPOUT_CONV2; layer < DROPOUT_LAYERS; layer++) {
            struct philox_counter at = philox_counter(PHILOX_DROPOUT, layer, some_step.step, FIRST, 0);
            double p = r < RATES ? rates[r] : philox4x32(at, SEED).c[0] * 0x1p-32; /* the last: a tie */
            struct masks masks = masks_make(SEED, p, p);
            struct sample_mask drawn[COUNT];
            masks_draw(&masks, some_step.step, FIRST, COUNT, drawn);
            size_t channels = channels_of[layer], each = layer < 2 ? side_of[layer] * side_of[layer] / 4 : 1;
            float *x = filled(one, 0, COUNT * channels * each * 4), *y = filled(one, 0, COUNT * channels * each);
            if (layer == DROPOUT_CONV2)
                RUN(cuda_pool_forward(dropout_of(&masks, step), COUNT, x, no_bias, y, NULL, NULL));
            else
                RUN(cuda_activation_forward(layer, dropout_of(&masks, step), COUNT, no_bias, y, NULL));
            for (size_t i = 0; i < COUNT * channels * each; i++)
                assert_int_equal(y[i] > 0,
                                 mask_keeps(&drawn[i / each / channels], layer, (unsigned)(i / each % channels)));
            guarded_free(x);
            guarded_free(y);
        }
    guarded_free(no_bias);
    guarded_free(step);
}

static void a_nan_is_never_swallowed_unless_dropped(void **state)
{
    (void)state;
    struct cuda_step *step = step_new();
    float *no_bias = filled(zero, 0, CONV3_ELEMENTS);
    cuda_host.order = 0;
    struct masks all = masks_make(1, 1, 1);
    for (enum dropout_layer layer = DROPOUT_CONV2; layer < DROPOUT_LAYERS; layer++)
        for (size_t place = 0; place < 4; place++) {
            size_t side = layer < 2 ? side_of[layer] : 1, count = channels_of[layer] * side * side;
            size_t at = layer < 2 ? (place / 2 + 2) * side + place % 2 + 4 : 4 + place;
            size_t out = layer < 2 ? side / 2 + 2 : at;
            float *x = filled(fine, 9, count), *y = filled(fine, 9, count);
            x[at] = y[at] = NAN;
            if (layer == DROPOUT_CONV2) {
                RUN(cuda_pool_forward(dropout_of(NULL, step), 1, x, no_bias, y, NULL, NULL));
                assert_true(isnan(y[out]));
                RUN(cuda_pool_forward(dropout_of(&all, step), 1, x, no_bias, y, NULL, NULL));
            } else {
                RUN(cuda_activation_forward(layer, dropout_of(NULL, step), 1, no_bias, y, NULL));
                assert_true(isnan(y[out]));
                RUN(cuda_activation_forward(layer, dropout_of(&all, step), 1, no_bias, y, NULL));
            }
            assert_true(y[out] == 0);
            guarded_free(x);
            guarded_free(y);
        }
    guarded_free(no_bias);
    guarded_free(step);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_pool_is_the_reference),
        cmocka_unit_test(activations_are_the_reference),
        cmocka_unit_test(masks_are_those_of_masks_draw),
        cmocka_unit_test(a_nan_is_never_swallowed_unless_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
