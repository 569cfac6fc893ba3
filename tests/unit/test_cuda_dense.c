/* The gradients of the dense layers' weights by their CUDA kernel, run on the host (tests/support/shim), against the
 * double-precision reference. Every launch is made in three orders of blocks and threads, which must give the
 * same bits. */
#include "cuda_test.h"

enum { LAYERS = 3 };
static const size_t ins[LAYERS] = {400, 120, 84}, outs[LAYERS] = {120, 84, 10};

struct tables {
    float *x[LAYERS], *dy[LAYERS];
};

static struct tables tables_new(uint32_t count)
{
    struct tables tables;
    for (uint32_t k = 0; k < LAYERS; k++) {
        tables.x[k] = filled(fine, 50 + k, count * ins[k]);
        tables.dy[k] = filled(fine, 60 + k, count * outs[k]);
    }
    return tables;
}

static void tables_free(struct tables *tables)
{
    for (int k = 0; k < LAYERS; k++) {
        guarded_free(tables->x[k]);
        guarded_free(tables->dy[k]);
    }
}

static struct cuda_dense dense_of(const struct tables *t)
{
    return (struct cuda_dense){t->x[0], t->x[1], t->x[2], t->dy[0], t->dy[1], t->dy[2]};
}

static void check_layer(const struct tables *tables, int k, uint32_t count, const float *gradient)
{
    static double dw[48000], db[120], dx[400], x[400], dy[120], w[48000];
    memset(dw, 0, sizeof dw);
    for (uint32_t n = 0; n < count; n++) {
        for (size_t i = 0; i < ins[k]; i++)
            x[i] = tables->x[k][n * ins[k] + i];
        for (size_t o = 0; o < outs[k]; o++)
            dy[o] = tables->dy[k][n * outs[k] + o];
        reference_dense_backward(ins[k], outs[k], x, w, dy, dx, dw, db);
    }
    for (size_t i = 0; i < ins[k] * outs[k]; i++) {
        double sum = 0;
        for (uint32_t split = 0; split < cuda_splits(count); split++)
            sum += gradient[split * LENET5_WEIGHTS + lenet5_parameters[4 + 2 * k].offset + i];
        assert_near("sum", i, sum, dw[i], 1e-7 * (1 + count));
    }
}

/* Beside the weights nothing is written. */
static void check_rest(uint32_t count, const float *gradient)
{
    for (size_t i = 0; i < (size_t)cuda_splits(count) * LENET5_WEIGHTS; i++) {
        bool weight = false;
        for (int k = 0; k < LAYERS; k++)
            weight |= i % LENET5_WEIGHTS - lenet5_parameters[4 + 2 * k].offset < lenet5_parameters[4 + 2 * k].count;
        assert_true(weight || isnan(gradient[i]));
    }
}

static void weights_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 31, 33, 256, 290};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        uint32_t count = counts[c];
        size_t bytes = (size_t)cuda_splits(count) * LENET5_WEIGHTS * sizeof(float);
        struct tables tables = tables_new(count);
        float *first = NULL;
        for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
            float *gradient = guarded_new(bytes, 0);
            RUN(cuda_dense_weight_gradient(dense_of(&tables), count, gradient, NULL));
            for (int k = 0; k < LAYERS && cuda_host.order == 0; k++)
                check_layer(&tables, k, count, gradient);
            check_rest(count, gradient);
            if (first == NULL)
                first = guarded_copy(gradient, bytes);
            assert_memory_equal(gradient, first, bytes);
            guarded_free(gradient);
        }
        guarded_free(first);
        tables_free(&tables);
    }
}

static void a_nan_reaches_the_weights(void **state)
{
    (void)state;
    cuda_host.order = 0;
    struct tables tables = tables_new(2);
    float *gradient = guarded_floats(LENET5_WEIGHTS);
    for (int k = 0; k < LAYERS; k++)
        tables.x[k][2 * ins[k] - 1] = tables.dy[k][outs[k] - 1] = NAN;
    RUN(cuda_dense_weight_gradient(dense_of(&tables), 2, gradient, NULL));
    for (int k = 0; k < LAYERS; k++)
        for (size_t o = 0; o < outs[k]; o++)
            for (size_t i = 0; i < ins[k]; i++)
                assert_true(!!isnan(gradient[lenet5_parameters[4 + 2 * k].offset + o * ins[k] + i]) ==
                            (o == outs[k] - 1 || i == ins[k] - 1));
    guarded_free(gradient);
    tables_free(&tables);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_the_reference),
        cmocka_unit_test(a_nan_reaches_the_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
