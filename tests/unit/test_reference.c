/* The double-precision reference against finite differences, and its corner cases against hand-made
 * answers. Everything else is tested against the reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gradient.h"
#include "kernels/reference/reference.h"
#include "philox.h"

#ifdef __SANITIZE_ADDRESS__ /* each takes the same way, and fifteen times as long */
enum { SAMPLES = 2, PROBES = 3 };
#else
enum { SAMPLES = 2, PROBES = 24 }; /* weights tried in each tensor */
#endif

struct batch {
    uint8_t bytes[SAMPLES][1 + LENET5_PIXELS];
    const uint8_t *records[SAMPLES];
    struct masks masks;
    struct sample_mask drawn[SAMPLES];
    double weights[LENET5_WEIGHTS], gradient[LENET5_WEIGHTS];
};

static void batch_make(struct batch *batch, const struct net *net)
{
    for (uint32_t s = 0; s < SAMPLES; s++) {
        batch->records[s] = batch->bytes[s];
        for (uint32_t i = 0; i <= LENET5_PIXELS; i++)
            batch->bytes[s][i] = (uint8_t)philox4x32(philox_counter(0, 0, 0, s, i), 7).c[0];
        batch->bytes[s][0] %= LENET5_CLASSES;
    }
    batch->masks = masks_make(3, net->p_conv, net->p_fc);
    masks_draw(&batch->masks, 11, 0, SAMPLES, batch->drawn);
    float weights[LENET5_WEIGHTS];
    lenet5_initialise(5, weights);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        batch->weights[i] = weights[i];
    memset(batch->gradient, 0, sizeof batch->gradient);
}

static double batch_loss(struct batch *batch, double *gradient)
{
    return reference_gradient(batch->weights, &batch->masks, SAMPLES, batch->records, batch->drawn, gradient);
}

/* (loss(w + h) - loss(w - h)) / 2h is the derivative up to h^2; in double with h = 1e-5 that leaves about
 * nine digits. A kink between w - h and w + h would show as a gross difference. */
static void gradient_matches_finite_differences(void **state)
{
    struct batch *batch = malloc(sizeof *batch);
    (void)state;
    for (int n = 0; n < NETS; n++) {
        batch_make(batch, &lenet5_nets[n]);
        batch_loss(batch, batch->gradient);
        for (int p = 0; p < LENET5_PARAMETERS; p++) {
            const struct parameter *parameter = &lenet5_parameters[p];
            double norm = 0;
            for (size_t i = 0; i < parameter->count; i++)
                norm = fmax(norm, fabs(batch->gradient[parameter->offset + i]));
            assert_true(norm > 0);
            for (size_t k = 0; k < PROBES && k < parameter->count; k++) {
                size_t i = parameter->offset + k * 7919 % parameter->count;
                double w = batch->weights[i], h = 1e-5, difference;
                batch->weights[i] = w + h;
                difference = batch_loss(batch, NULL);
                batch->weights[i] = w - h;
                difference -= batch_loss(batch, NULL);
                batch->weights[i] = w;
                if (fabs(difference / (2 * h) - batch->gradient[i]) > 1e-7 * norm)
                    fail_msg("net %c %s[%zu]: %.12g, by differences %.12g", lenet5_nets[n].name, parameter->name,
                             i - parameter->offset, batch->gradient[i], difference / (2 * h));
            }
        }
    }
    free(batch);
}

static void pool_sends_the_gradient_to_the_first_of_equals(void **state)
{
    const double x[16] = {1, 1, 0, 2, 1, 1, 2, 2, 0, 3, 4, 0, 3, 0, 0, 4}, dy[4] = {10, 20, 30, 40};
    const double expected[16] = {10, 0, 0, 20, 0, 0, 0, 0, 0, 30, 40, 0, 0, 0, 0, 0};
    double y[4], dx[16];
    size_t from[4];
    (void)state;
    reference_pool_forward(1, 4, x, y, from);
    reference_pool_backward(1, 4, from, dy, dx);
    assert_memory_equal(dx, expected, sizeof dx);
}

static void activation_passes_nothing_at_zero(void **state)
{
    const double factor[2] = {2, 0};
    double y[6] = {0, -1, 3, 0, -1, 3}, dy[6] = {1, 1, 1, 1, 1, 1};
    const double expected_y[6] = {0, 0, 6, 0, 0, 0}, expected_dy[6] = {0, 0, 2, 0, 0, 0};
    (void)state;
    reference_activation_forward(2, 3, factor, y);
    reference_activation_backward(2, 3, factor, y, dy);
    assert_memory_equal(y, expected_y, sizeof y);
    assert_memory_equal(dy, expected_dy, sizeof dy);
}

static void loss_of_equal_logits_is_log_of_the_classes(void **state)
{
    const double z[4] = {1000, 1000, 1000, 1000};
    double dz[4];
    (void)state;
    assert_true(fabs(reference_softmax_loss(4, z, 2, dz) - log(4)) < 1e-12);
    assert_true(fabs(dz[0] - 0.25) < 1e-15 && fabs(dz[2] + 0.75) < 1e-15);
}

/* bench/gradient.h, by which a benchmark is VALID or not. */
static void benchmarks_know_a_wrong_gradient(void **state)
{
    struct batch *batch = malloc(sizeof *batch);
    float *actual = malloc(LENET5_WEIGHTS * sizeof *actual);
    (void)state;
    batch_make(batch, &lenet5_nets[NETS - 1]);
    batch_loss(batch, batch->gradient);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        actual[i] = (float)(batch->gradient[i] / SAMPLES);
    assert_true(gradient_error(actual, batch->gradient, SAMPLES) < GRADIENT_TOLERANCE / 10);
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        const struct parameter *parameter = &lenet5_parameters[p];
        double norm = 0;
        for (size_t i = 0; i < parameter->count; i++)
            norm = hypot(norm, actual[parameter->offset + i]);
        float *last = &actual[parameter->offset + parameter->count - 1], kept = *last;
        *last += (float)(1.5 * GRADIENT_TOLERANCE * norm);
        double error = gradient_error(actual, batch->gradient, SAMPLES);
        assert_true(error > GRADIENT_TOLERANCE && error < 2 * GRADIENT_TOLERANCE);
        *last = NAN;
        assert_true(gradient_error(actual, batch->gradient, SAMPLES) == DBL_MAX);
        *last = kept;
    }
    free(actual);

    /* Where all weights are 0 no picture is far enough from a kink: the set is used up, and begins anew. */
    struct split split = {.count = SAMPLES, .per_file = SAMPLES, .files = {batch->bytes[0]}};
    uint32_t order[SAMPLES];
    const uint8_t *records[SAMPLES];
    gradient_pick(&split, batch->weights, &batch->masks, batch->drawn, SAMPLES, order, records);
    assert_true(order[0] == 0 && order[1] == 1 && records[1] == batch->records[1]);
    memset(batch->weights, 0, sizeof batch->weights);
    gradient_pick(&split, batch->weights, &batch->masks, batch->drawn, SAMPLES, order, records);
    assert_true(order[0] == 1 && order[1] == 0 && records[0] == batch->records[1]);
    free(batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_matches_finite_differences),
        cmocka_unit_test(pool_sends_the_gradient_to_the_first_of_equals),
        cmocka_unit_test(activation_passes_nothing_at_zero),
        cmocka_unit_test(loss_of_equal_logits_is_log_of_the_classes),
        cmocka_unit_test(benchmarks_know_a_wrong_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
