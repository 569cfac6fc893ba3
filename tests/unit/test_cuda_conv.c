/* The CUDA kernels of the convolutions, run on the host (tests/support/shim), against the double-precision reference.
 * Every launch is made in three orders of blocks and threads, which must give the same bits. */
#include <stdlib.h>

#include "cuda_test.h"
#include "dataset.h"

/* Of conv1 and conv2. */
static const struct reference_conv shapes[] = {{3, 32, 6}, {6, 14, 16}};
static const size_t taps_of[] = {75, 150}, width_of[] = {CUDA_CONV1_WIDTH, CUDA_CONV2_WIDTH};
static const uint32_t counts[] = {0, 1, 3, 9};

static size_t inputs_of(enum dropout_layer layer)
{
    return shapes[layer].in_channels * shapes[layer].side * shapes[layer].side;
}

static size_t windows_of(enum dropout_layer layer)
{
    return side_of[layer] * side_of[layer] / 4;
}

/* ----- conv1, from the bytes to its pool ------------------------------------------------------------- */

enum { RECORDS = 12 };

static uint8_t *some_records(void)
{
    uint8_t *records = guarded_new(RECORDS * RECORD_BYTES, 0);
    for (size_t i = 0; i < RECORDS * RECORD_BYTES; i++)
        records[i] = (uint8_t)(i % RECORD_BYTES ? draw(1, i) : i / RECORD_BYTES);
    return records;
}

static float *some_weights(void)
{
    float *weights = guarded_floats(LENET5_WEIGHTS);
    lenet5_initialise(2, weights);
    return weights;
}

/* What conv1 leaves of a sample. */
struct passed {
    double x[3 * 32 * 32], conv[6 * 28 * 28], y[6 * 14 * 14];
    size_t from[6 * 14 * 14];
};

static void conv1_reference(const uint8_t *record, const double *factors, const float *weights, struct passed *p)
{
    double w[450], b[6];
    for (size_t i = 0; i < LENET5_PIXELS; i++)
        p->x[i] = record[1 + i] / 127.5 - 1;
    for (size_t i = 0; i < 456; i++)
        *(i < 450 ? &w[i] : &b[i - 450]) = weights[i];
    reference_conv_forward(shapes[0], p->x, w, b, p->conv);
    reference_activation_forward(6, 28 * 28, factors, p->conv);
    reference_pool_forward(6, 28, p->conv, p->y, p->from);
}

static int origin_of(const struct passed *p, size_t i)
{
    size_t row = i / 14 % 14, column = i % 14, at = p->from[i] % (28 * 28);
    return p->y[i] > 0 ? (int)((at / 28 - 2 * row) * 2 + at % 28 - 2 * column) : CUDA_NOWHERE;
}

/* want: the records that it should be. */
static void check_conv1(struct cuda_input input, const struct masks *masks, uint32_t count, const uint32_t *want,
                        bool train)
{
    struct cuda_step *step = step_new();
    float *weights = some_weights();
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *images = guarded_floats(count * LENET5_PIXELS), *y = guarded_floats(count * 1176);
        uint8_t *labels = guarded_new(count, 0), *origin = guarded_new(count * 1176, 0);
        RUN(cuda_conv1_forward(input, dropout_of(masks, step), count, weights, train ? images : NULL, labels, y,
                               train ? origin : NULL, NULL));
        for (uint32_t n = 0; n < count; n++) {
            const uint8_t *record = input.records + want[n] * RECORD_BYTES;
            static struct passed passed;
            double factors[CONV3_ELEMENTS];
            factors_of(masks, DROPOUT_CONV1, n, factors);
            conv1_reference(record, factors, weights, &passed);
            assert_int_equal(labels[n], record[0]);
            for (size_t i = 0; train && i < LENET5_PIXELS; i++)
                assert_near("image", i, images[n * LENET5_PIXELS + i], passed.x[i], 0x1p-23);
            for (size_t i = 0; i < 1176; i++) {
                assert_near("y", i, y[n * 1176 + i], passed.y[i], 2e-6 * (1 + factors[i / 196]));
                if (train)
                    assert_int_equal(origin[n * 1176 + i], origin_of(&passed, i));
            }
        }
        guarded_free(images);
        guarded_free(y);
        guarded_free(labels);
        guarded_free(origin);
    }
    guarded_free(weights);
    guarded_free(step);
}

static void conv1_follows_the_order(void **state)
{
    (void)state;
    struct cuda_step *step = step_new();
    const uint32_t order[RECORDS] = {4, 8, 0, 7, 1, 6, 11, 2, 5, 3, 10, 9}, straight[] = {6, 7, 8};
    uint32_t *device_order = guarded_copy(order, sizeof order);
    uint8_t *records = some_records();
    check_conv1((struct cuda_input){records, device_order, step, 2}, NULL, 4, &order[some_step.position + 2], true);
    check_conv1((struct cuda_input){records, device_order, NULL, 7}, NULL, 2, &order[7], true);
    check_conv1((struct cuda_input){records, NULL, NULL, 6}, NULL, 3, straight, false);
    check_conv1((struct cuda_input){records, NULL, NULL, 6}, NULL, 0, straight, true);
    for (size_t r = 0; r < RATES; r++) {
        struct masks masks = masks_make(5, rates[r], 0);
        check_conv1((struct cuda_input){records, device_order, NULL, 0}, &masks, 7, order, r % 2 == 0);
    }
    guarded_free(device_order);
    guarded_free(records);
    guarded_free(step);
}

/* In an image of one colour all patches are equal. */
static void the_first_of_equals_wins(void **state)
{
    (void)state;
    cuda_host.order = 0;
    uint8_t *records = guarded_new(RECORD_BYTES, 0), *labels = guarded_new(1, 0), *origin = guarded_new(1176, 0);
    float *weights = some_weights(), *y = guarded_floats(1176);
    memset(records, 200, RECORD_BYTES);
    struct cuda_input input = {records, NULL, NULL, 0};
    RUN(cuda_conv1_forward(input, dropout_of(NULL, NULL), 1, weights, NULL, labels, y, origin, NULL));
    for (size_t i = 0; i < 1176; i++)
        assert_int_equal(origin[i], y[i] > 0 ? 0 : CUDA_NOWHERE);
    guarded_free(records);
    guarded_free(labels);
    guarded_free(origin);
    guarded_free(weights);
    guarded_free(y);
}

/* In a weight or a bias, unless the channel is dropped. */
static void conv1_lets_a_nan_through(void **state)
{
    (void)state;
    cuda_host.order = 0;
    struct cuda_step *step = step_new();
    struct masks all = masks_make(1, 1, 1);
    uint8_t *records = some_records(), *labels = guarded_new(1, 0), *origin = guarded_new(1176, 0);
    float *weights = some_weights(), *y = guarded_floats(1176);
    weights[2 * 75 + 74] = weights[450 + 5] = NAN;
    struct cuda_input input = {records, NULL, NULL, 0};
    RUN(cuda_conv1_forward(input, dropout_of(NULL, step), 1, weights, NULL, labels, y, origin, NULL));
    for (size_t i = 0; i < 1176; i++) {
        bool nan = i / 196 == 2 || i / 196 == 5;
        assert_true(!!isnan(y[i]) == nan && (!nan || origin[i] < 4));
    }
    RUN(cuda_conv1_forward(input, dropout_of(&all, step), 1, weights, NULL, labels, y, origin, NULL));
    for (size_t i = 0; i < 1176; i++)
        assert_true(y[i] == 0 && origin[i] == CUDA_NOWHERE);
    guarded_free(records);
    guarded_free(labels);
    guarded_free(origin);
    guarded_free(weights);
    guarded_free(y);
    guarded_free(step);
}

/* ----- gradients of the weights ---------------------------------------------------------------------- */

/* As a pool may leave it: one plane in four is dropped, of the others a window in five has no winner. */
static uint8_t *some_origins(enum dropout_layer layer, uint32_t count)
{
    size_t each = windows_of(layer), all = count * channels_of[layer] * each;
    uint8_t *origin = guarded_new(all, 0);
    for (size_t i = 0; i < all; i++) {
        uint32_t from = draw(11, i) % 5;
        origin[i] = draw(10, i / each) % 4 == 0 || from == 4 ? CUDA_NOWHERE : (uint8_t)from;
    }
    return origin;
}

/* dy of the convolution of sample n, spread out. */
static void spread(enum dropout_layer layer, double scale, const float *dy, const uint8_t *origin, uint32_t n,
                   double *wide)
{
    size_t side = side_of[layer], half = side / 2, windows = channels_of[layer] * half * half;
    memset(wide, 0, 4 * windows * sizeof *wide);
    for (size_t i = 0; i < windows; i++) {
        uint8_t from = origin[n * windows + i];
        size_t row = i / half % half * 2 + from / 2, column = i % half * 2 + from % 2;
        if (from != CUDA_NOWHERE)
            wide[(i / half / half * side + row) * side + column] = scale * dy[n * windows + i];
    }
}

/* The gradients of weights and input by the reference; dx (count, ...), or NULL. */
static void convolve_back(enum dropout_layer layer, double scale, uint32_t count, const float *x, const float *w,
                          const float *dy, const uint8_t *origin, double *dx, double *dw, double *db)
{
    size_t inputs = inputs_of(layer), weights = channels_of[layer] * taps_of[layer];
    static double wide_x[3 * 32 * 32], wide_w[2400], wide_dy[6 * 28 * 28], one_dx[3 * 32 * 32];
    memset(dw, 0, weights * sizeof *dw);
    memset(db, 0, channels_of[layer] * sizeof *db);
    for (size_t i = 0; i < weights; i++)
        wide_w[i] = w ? (double)w[i] : 0;
    for (uint32_t n = 0; n < count; n++) {
        for (size_t i = 0; i < inputs; i++)
            wide_x[i] = x ? (double)x[n * inputs + i] : 0;
        spread(layer, scale, dy, origin, n, wide_dy);
        reference_conv_backward(shapes[layer], wide_x, wide_w, wide_dy, one_dx, dw, db);
        for (size_t i = 0; dx != NULL && i < inputs; i++)
            dx[n * inputs + i] = one_dx[i];
    }
}

static double sum_of_rows(const float *parts, uint32_t rows, size_t width, size_t column)
{
    double sum = 0;
    for (uint32_t row = 0; row < rows; row++)
        sum += parts[row * width + column];
    return sum;
}

static void check_weights(enum dropout_layer layer, const struct masks *masks, uint32_t count)
{
    double scale = masks ? (double)masks->scale[layer] : 1, dw[2400], db[CONV2_ELEMENTS];
    size_t width = width_of[layer], weights = channels_of[layer] * taps_of[layer];
    size_t outputs = count * channels_of[layer] * windows_of(layer), bytes = cuda_parts(count) * width * sizeof(float);
    float *x = filled(fine, 12, count * inputs_of(layer)), *dy = filled(fine, 13, outputs), *first = NULL;
    uint8_t *origin = some_origins(layer, count);
    convolve_back(layer, scale, count, x, NULL, dy, origin, NULL, dw, db);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *parts = guarded_new(bytes, 0);
        RUN(cuda_conv_weight_gradient(layer, masks, count, x, dy, origin, parts, NULL));
        for (size_t i = 0; i < width; i++)
            assert_near("sum", i, sum_of_rows(parts, cuda_parts(count), width, i),
                        i < weights ? dw[i] : db[i - weights], 1e-5 * (1 + count) * scale);
        if (first == NULL)
            first = guarded_copy(parts, bytes);
        assert_memory_equal(parts, first, bytes);
        guarded_free(parts);
    }
    guarded_free(first);
    guarded_free(origin);
    guarded_free(dy);
    guarded_free(x);
}

static void weights_are_the_reference(void **state)
{
    (void)state;
    struct masks masks = masks_make(5, 0.3, 0);
    for (enum dropout_layer layer = DROPOUT_CONV1; layer <= DROPOUT_CONV2; layer++) {
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            check_weights(layer, i % 2 ? &masks : NULL, counts[i]);
        check_weights(layer, &masks, CUDA_PARTS + 2); /* some blocks have two */
    }
}

/* Of a window that passes its gradient; where none passes nothing is read. */
static void a_nan_reaches_the_weights(void **state)
{
    (void)state;
    cuda_host.order = 0;
    for (enum dropout_layer layer = DROPOUT_CONV1; layer <= DROPOUT_CONV2; layer++) {
        size_t windows = channels_of[layer] * windows_of(layer), width = width_of[layer];
        float *x = filled(fine, 12, inputs_of(layer)), *dy = filled(fine, 13, windows);
        float *parts = guarded_floats(width);
        uint8_t *origin = some_origins(layer, 1);
        memset(origin, CUDA_NOWHERE, windows);
        dy[0] = dy[windows - 1] = NAN;
        RUN(cuda_conv_weight_gradient(layer, NULL, 1, x, dy, origin, parts, NULL));
        for (size_t i = 0; i < width; i++)
            assert_true(parts[i] == 0);
        origin[windows - 1] = 3;
        RUN(cuda_conv_weight_gradient(layer, NULL, 1, x, dy, origin, parts, NULL));
        size_t last = channels_of[layer] * taps_of[layer];
        assert_true(isnan(parts[width - 1]) && isnan(parts[last - 1]) && isnan(parts[last - taps_of[layer]]));
        assert_true(parts[0] == 0 && parts[last] == 0);
        dy[windows - 1] = 1;
        x[inputs_of(layer) - 1] = NAN;
        RUN(cuda_conv_weight_gradient(layer, NULL, 1, x, dy, origin, parts, NULL));
        assert_true(isnan(parts[last - 1]) && parts[last - 2] == x[inputs_of(layer) - 2] && parts[width - 1] == 1);
        guarded_free(origin);
        guarded_free(parts);
        guarded_free(dy);
        guarded_free(x);
    }
}

/* ----- the gradient of conv2's input ------------------------------------------------------------------ */

static void check_input(const struct masks *masks, uint32_t count)
{
    double scale = masks ? (double)masks->scale[DROPOUT_CONV2] : 1, dw[2400], db[CONV2_ELEMENTS];
    size_t inputs = inputs_of(DROPOUT_CONV2), outputs = count * CONV2_ELEMENTS * windows_of(DROPOUT_CONV2);
    float *weights = some_weights(), *dy = filled(fine, 13, outputs), *first = NULL;
    uint8_t *origin = some_origins(DROPOUT_CONV2, count);
    double *want = calloc(count * inputs + 1, sizeof *want);
    convolve_back(DROPOUT_CONV2, scale, count, NULL, weights + 456, dy, origin, want, dw, db);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *dx = guarded_floats(count * inputs);
        RUN(cuda_conv2_input_gradient(masks, count, weights, dy, origin, dx, NULL));
        for (size_t i = 0; i < count * inputs; i++)
            assert_near("dx", i, dx[i], want[i], 2e-6 * scale);
        if (first == NULL)
            first = guarded_copy(dx, count * inputs * sizeof *dx);
        assert_memory_equal(dx, first, count * inputs * sizeof *dx);
        guarded_free(dx);
    }
    guarded_free(first);
    guarded_free(origin);
    guarded_free(dy);
    guarded_free(weights);
    free(want);
}

static void the_input_is_the_reference(void **state)
{
    (void)state;
    struct masks masks = masks_make(5, 0.3, 0);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_input(i % 2 ? &masks : NULL, counts[i]);
}

/* Where nothing passes no gradient is read, and no weight. */
static void a_nan_reaches_the_input(void **state)
{
    (void)state;
    cuda_host.order = 0;
    enum { NUMBERS = 6 * 196, WINDOWS = 16 * 25 };
    float *weights = some_weights(), *dy = filled(fine, 13, WINDOWS), *dx = guarded_floats(NUMBERS);
    uint8_t *origin = guarded_new(WINDOWS, 0); /* CUDA_NOWHERE */
    dy[0] = weights[456] = NAN;
    RUN(cuda_conv2_input_gradient(NULL, 1, weights, dy, origin, dx, NULL));
    for (size_t i = 0; i < NUMBERS; i++)
        assert_true(dx[i] == 0);
    origin[0] = 3; /* the patch at (1, 1) */
    RUN(cuda_conv2_input_gradient(NULL, 1, weights, dy, origin, dx, NULL));
    for (size_t c = 0; c < 6; c++)
        assert_true(isnan(dx[c * 196 + 14 + 1]) && isnan(dx[c * 196 + 5 * 14 + 5]));
    dy[0] = 1;
    RUN(cuda_conv2_input_gradient(NULL, 1, weights, dy, origin, dx, NULL));
    assert_true(isnan(dx[14 + 1]) && dx[196 + 14 + 1] == weights[456 + 25]);
    guarded_free(origin);
    guarded_free(dx);
    guarded_free(dy);
    guarded_free(weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv1_follows_the_order),   cmocka_unit_test(the_first_of_equals_wins),
        cmocka_unit_test(conv1_lets_a_nan_through),  cmocka_unit_test(weights_are_the_reference),
        cmocka_unit_test(a_nan_reaches_the_weights), cmocka_unit_test(the_input_is_the_reference),
        cmocka_unit_test(a_nan_reaches_the_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
