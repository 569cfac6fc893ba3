/* The training step's CUDA kernels, run on the host (tests/shim), against the double-precision reference.
 * Every launch is made in three orders of blocks and threads, which must give the same bits. */
#include "kernels/cuda/kernels.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "cuda_host.h"
#include "dataset.h"
#include "guarded.h"
#include "kernels/reference/reference.h"
#include "philox.h"

enum { ORDERS = 3 };

/* A pure function of (stream, i), below 2^32. */
static uint32_t draw(uint32_t stream, size_t i)
{
    struct philox_counter at = {{(uint32_t)(i / 4), stream, 0, 0}};
    return philox4x32(at, 77).c[i % 4];
}

/* -1 .. 1 in steps of 1/8: sums are exact, and equals are frequent. */
static float coarse(uint32_t stream, size_t i)
{
    return (float)((int)(draw(stream, i) % 17) - 8) / 8;
}

static float fine(uint32_t stream, size_t i)
{
    return 2 * philox_uniform(draw(stream, i)) - 1;
}

static float *filled(float (*number)(uint32_t, size_t), uint32_t stream, size_t count)
{
    float *x = guarded_floats(count);
    for (size_t i = 0; i < count; i++)
        x[i] = number(stream, i);
    return x;
}

static void assert_near(const char *what, size_t i, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s[%zu] is %.9g, not %.9g", what, i, got, want);
}

/* The layers' shapes: channels (or units), and the side of a plane where there is a pool. */
static const size_t channels_of[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS,
                                                   FC1_ELEMENTS};
static const size_t side_of[2] = {28, 10};

static const double rates[] = {0, 1e-10, 0.3, 0.5, 1};
enum { RATES = sizeof rates / sizeof *rates, FIRST = 241 };
static struct cuda_step *some_step; /* in device memory, from the first test to the last */

static int make_step(void **state)
{
    (void)state;
    const struct cuda_step step = {.step = 0x123456789abc, .position = 3};
    some_step = guarded_copy(&step, sizeof step);
    return 0;
}

static int free_step(void **state)
{
    (void)state;
    guarded_free(some_step);
    return 0;
}

static struct cuda_dropout dropout_of(const struct masks *masks)
{
    return (struct cuda_dropout){masks, some_step, FIRST};
}

/* The factors of sample n's channels: 0 or the scale; 1 without masks. */
static void factors_of(const struct masks *masks, enum dropout_layer layer, uint32_t n, double *factors)
{
    struct sample_mask mask;
    if (masks)
        masks_draw(masks, some_step->step, FIRST + n, 1, &mask);
    for (unsigned c = 0; c < channels_of[layer]; c++)
        factors[c] = !masks ? 1 : mask_keeps(&mask, layer, c) ? (double)masks->scale[layer] : 0;
}

/* ----- input --------------------------------------------------------------------------------------- */

enum { RECORDS = 9 };

static uint8_t *some_records(void)
{
    uint8_t *records = guarded_new(RECORDS * RECORD_BYTES, 0);
    for (size_t i = 0; i < RECORDS * RECORD_BYTES; i++)
        records[i] = (uint8_t)(i % RECORD_BYTES ? draw(1, i) : i / RECORD_BYTES);
    return records;
}

static void check_gather(const uint8_t *records, const uint32_t *order, const struct cuda_step *step,
                         uint32_t first, uint32_t count, const uint32_t *want)
{
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *images = guarded_floats(count * LENET5_PIXELS);
        uint8_t *labels = guarded_new(count, 0);
        RUN(cuda_gather(records, order, step, first, count, images, labels, NULL));
        for (size_t n = 0; n < count; n++) {
            const uint8_t *record = records + want[n] * RECORD_BYTES;
            assert_int_equal(labels[n], record[0]);
            for (size_t i = 0; i < LENET5_PIXELS; i++)
                assert_near("image", i, images[n * LENET5_PIXELS + i], record[1 + i] / 127.5 - 1, 0x1p-23);
        }
        guarded_free(images);
        guarded_free(labels);
    }
}

static void gather_follows_the_order(void **state)
{
    (void)state;
    const uint32_t order[RECORDS] = {4, 8, 0, 7, 1, 6, 2, 5, 3}, straight[] = {6, 7, 8};
    uint32_t *device_order = guarded_copy(order, sizeof order);
    uint8_t *records = some_records();
    check_gather(records, device_order, some_step, 2, 4, &order[some_step->position + 2]);
    check_gather(records, device_order, NULL, 7, 2, &order[7]);
    check_gather(records, NULL, NULL, 6, 3, straight);
    check_gather(records, NULL, NULL, 6, 0, straight);
    guarded_free(device_order);
    guarded_free(records);
}

/* ----- ReLU, dropout, pool ------------------------------------------------------------------------- */

/* What a pool leaves, by the reference: y and dx of sample n. */
struct pooled {
    double x[6 * 28 * 28], y[6 * 14 * 14], dx[6 * 28 * 28];
    size_t from[6 * 14 * 14];
};

static void pool_reference(enum dropout_layer layer, const double *factors, const float *x, const float *bias,
                           const float *dy, struct pooled *p)
{
    size_t side = side_of[layer], channels = channels_of[layer], outputs = channels * side * side / 4;
    double ddy[6 * 14 * 14];
    for (size_t i = 0; i < outputs * 4; i++)
        p->x[i] = (double)x[i] + (bias ? (double)bias[i / (side * side)] : 0);
    reference_activation_forward(channels, side * side, factors, p->x);
    reference_pool_forward(channels, side, p->x, p->y, p->from);
    for (size_t i = 0; i < outputs; i++)
        ddy[i] = dy[i];
    reference_pool_backward(channels, side, p->from, ddy, p->dx);
    reference_activation_backward(channels, side * side, factors, p->x, p->dx);
}

static int origin_of(const struct pooled *p, size_t side, size_t i)
{
    size_t half = side / 2, row = i / half, column = i % half, at = p->from[i];
    return p->y[i] > 0 ? (int)((at / side - 2 * row) * 2 + at % side - 2 * column) : CUDA_NOWHERE;
}

static void check_pool(enum dropout_layer layer, const struct masks *masks, uint32_t count, const float *bias)
{
    size_t channels = channels_of[layer], side = side_of[layer], inputs = channels * side * side;
    size_t outputs = inputs / 4, plane = side * side;
    float *x = filled(coarse, 2, count * inputs), *dy = filled(fine, 3, count * outputs);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *y = guarded_floats(count * outputs), *dx = guarded_floats(count * inputs);
        float *dbias = guarded_floats(count * channels);
        uint8_t *origin = guarded_new(count * outputs, 0);
        RUN(cuda_pool_forward(layer, dropout_of(masks), count, x, bias, y, origin, NULL));
        RUN(cuda_pool_backward(layer, masks, count, dy, origin, dx, dbias, NULL));
        for (uint32_t n = 0; n < count; n++) {
            struct pooled want;
            double factors[CONV3_ELEMENTS], sums[CONV3_ELEMENTS] = {0};
            factors_of(masks, layer, n, factors);
            pool_reference(layer, factors, x + n * inputs, bias, dy + n * outputs, &want);
            for (size_t i = 0; i < outputs; i++) {
                assert_near("y", i, y[n * outputs + i], want.y[i], 1e-7 * fabs(want.y[i]));
                assert_int_equal(origin[n * outputs + i], origin_of(&want, side, i));
            }
            for (size_t i = 0; i < inputs; i++) {
                assert_near("dx", i, dx[n * inputs + i], want.dx[i], 1e-7 * fabs(want.dx[i]));
                sums[i / plane] += want.dx[i];
            }
            for (size_t c = 0; c < channels; c++)
                assert_near("dbias", c, dbias[n * channels + c], sums[c], 1e-5);
        }
        guarded_free(y);
        guarded_free(dx);
        guarded_free(dbias);
        guarded_free(origin);
    }
    guarded_free(x);
    guarded_free(dy);
}

static void pools_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 3, 9};
    float *bias = filled(coarse, 4, CONV2_ELEMENTS);
    for (enum dropout_layer layer = DROPOUT_CONV1; layer <= DROPOUT_CONV2; layer++)
        for (size_t r = 0; r < RATES; r++) {
            struct masks masks = masks_make(5, rates[r], 0);
            check_pool(layer, &masks, counts[r % 4], r % 2 ? bias : NULL);
            check_pool(layer, r ? &masks : NULL, counts[(r + 1) % 4], r % 2 ? NULL : bias);
        }
    guarded_free(bias);
}

static void check_activation(enum dropout_layer layer, const struct masks *masks, uint32_t count,
                             const float *bias)
{
    size_t channels = channels_of[layer];
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *y = filled(coarse, 6, count * channels), *dy = filled(fine, 7, count * channels);
        RUN(cuda_activation_forward(layer, dropout_of(masks), count, bias, y, NULL));
        RUN(cuda_activation_backward(layer, masks, count, y, dy, NULL));
        for (uint32_t n = 0; n < count; n++) {
            double factors[CONV3_ELEMENTS], want[CONV3_ELEMENTS], dwant[CONV3_ELEMENTS];
            factors_of(masks, layer, n, factors);
            for (size_t c = 0; c < channels; c++) {
                want[c] = (double)coarse(6, n * channels + c) + (bias ? (double)bias[c] : 0);
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
}

static void activations_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 5, 33};
    float *bias = filled(coarse, 8, CONV3_ELEMENTS);
    for (enum dropout_layer layer = DROPOUT_CONV3; layer <= DROPOUT_FC1; layer++)
        for (size_t r = 0; r < RATES; r++) {
            struct masks masks = masks_make(6, rates[r], rates[r]);
            check_activation(layer, &masks, counts[r % 4], r % 2 ? bias : NULL);
            check_activation(layer, r ? &masks : NULL, counts[(r + 1) % 4], r % 2 ? NULL : bias);
        }
    guarded_free(bias);
}

static float one(uint32_t stream, size_t i)
{
    (void)stream, (void)i;
    return 1;
}

/* Every element of every layer, on numbers that are all 1. */
static void masks_are_those_of_masks_draw(void **state)
{
    (void)state;
    enum { COUNT = 40, SEED = 12345 };
    cuda_host.order = 0;
    for (size_t r = 0; r <= RATES; r++)
        for (enum dropout_layer layer = 0; layer < DROPOUT_LAYERS; layer++) {
            struct philox_counter at = philox_counter(PHILOX_DROPOUT, layer, some_step->step, FIRST, 0);
            double p = r < RATES ? rates[r] : philox4x32(at, SEED).c[0] * 0x1p-32; /* the last: a tie */
            struct masks masks = masks_make(SEED, p, p);
            struct sample_mask drawn[COUNT];
            masks_draw(&masks, some_step->step, FIRST, COUNT, drawn);
            size_t channels = channels_of[layer], each = layer < 2 ? side_of[layer] * side_of[layer] / 4 : 1;
            float *x = filled(one, 0, COUNT * channels * each * 4),
                  *y = filled(one, 0, COUNT * channels * each);
            if (layer <= DROPOUT_CONV2)
                RUN(cuda_pool_forward(layer, dropout_of(&masks), COUNT, x, NULL, y, NULL, NULL));
            else
                RUN(cuda_activation_forward(layer, dropout_of(&masks), COUNT, NULL, y, NULL));
            for (size_t i = 0; i < COUNT * channels * each; i++)
                assert_int_equal(y[i] > 0, mask_keeps(&drawn[i / each / channels], layer,
                                                      (unsigned)(i / each % channels)));
            guarded_free(x);
            guarded_free(y);
        }
}

static void a_nan_is_never_swallowed_unless_dropped(void **state)
{
    (void)state;
    cuda_host.order = 0;
    struct masks all = masks_make(1, 1, 1);
    for (enum dropout_layer layer = 0; layer < DROPOUT_LAYERS; layer++)
        for (size_t place = 0; place < 4; place++) {
            size_t side = layer < 2 ? side_of[layer] : 1, count = channels_of[layer] * side * side;
            size_t at = layer < 2 ? (place / 2 + 2) * side + place % 2 + 4 : 4 + place;
            size_t out = layer < 2 ? side / 2 + 2 : at;
            float *x = filled(fine, 9, count), *y = filled(fine, 9, count);
            x[at] = y[at] = NAN;
            if (layer <= DROPOUT_CONV2) {
                RUN(cuda_pool_forward(layer, dropout_of(NULL), 1, x, NULL, y, NULL, NULL));
                assert_true(isnan(y[out]));
                RUN(cuda_pool_forward(layer, dropout_of(&all), 1, x, NULL, y, NULL, NULL));
            } else {
                RUN(cuda_activation_forward(layer, dropout_of(NULL), 1, NULL, y, NULL));
                assert_true(isnan(y[out]));
                RUN(cuda_activation_forward(layer, dropout_of(&all), 1, NULL, y, NULL));
            }
            assert_true(y[out] == 0);
            guarded_free(x);
            guarded_free(y);
        }
}

/* ----- loss ---------------------------------------------------------------------------------------- */

static float wide(uint32_t stream, size_t i)
{
    return fine(stream, i) *
           (float)(i / 10 % 4 * i / 10 % 4 * 12); /* rows from equal logits to far apart ones */
}

static uint8_t *some_labels(size_t count)
{
    uint8_t *labels = guarded_new(count, 0);
    for (size_t n = 0; n < count; n++)
        labels[n] = (uint8_t)(draw(10, n) % 10);
    return labels;
}

static void check_loss(uint32_t count, const float *bias, bool in_place)
{
    uint8_t *labels = some_labels(count);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *logits = filled(wide, 11, count * 10), *losses = guarded_floats(count);
        float *dlogits = in_place ? logits : guarded_floats(count * 10), *sums = guarded_floats(CUDA_SUMS);
        RUN(cuda_loss(count, logits, bias, labels, losses, dlogits, sums, NULL));
        assert_true(sums[CUDA_SUMS_REFUSED] == 0 && isnan(sums[CUDA_SUMS_STOP]));
        for (size_t n = 0; n < count; n++) {
            double z[10], dz[10];
            for (size_t k = 0; k < 10; k++)
                z[k] = wide(11, n * 10 + k) + (bias ? bias[k] : 0);
            double loss = reference_softmax_loss(10, z, labels[n], dz);
            assert_near("loss", n, losses[n], loss, 5e-7 * (1 + loss));
            for (size_t k = 0; k < 10; k++)
                assert_near("dlogits", n * 10 + k, dlogits[n * 10 + k], dz[k], 3e-7);
        }
        guarded_free(logits);
        guarded_free(losses);
        guarded_free(in_place ? NULL : dlogits);
        guarded_free(sums);
    }
    guarded_free(labels);
}

static void losses_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 63, 64, 65, 200};
    float *bias = filled(coarse, 12, 10);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        check_loss(counts[i], NULL, i % 2);
        check_loss(counts[i], bias, i % 2 == 0);
    }
    guarded_free(bias);
}

/* ----- the head ------------------------------------------------------------------------------------ */

/* The dense layers of one sample in double, by the reference. */
struct dense {
    double w1[10080], b1[84], w2[840], b2[10], unused[10080], db[84];
    double x[120], y[84], z[10], dz[10], dy[84], dx[120], loss;
};

static void widen(const float *weights, int tensor, double *wide)
{
    for (size_t i = 0; i < lenet5_parameters[tensor].count; i++)
        wide[i] = weights[lenet5_parameters[tensor].offset + i];
}

static void dense_reference(struct dense *d, const double *factors3, const double *factors1, uint8_t label)
{
    reference_activation_forward(120, 1, factors3, d->x);
    reference_dense_forward(120, 84, d->x, d->w1, d->b1, d->y);
    reference_activation_forward(84, 1, factors1, d->y);
    reference_dense_forward(84, 10, d->y, d->w2, d->b2, d->z);
    d->loss = reference_softmax_loss(10, d->z, label, d->dz);
    reference_dense_backward(84, 10, d->y, d->w2, d->dz, d->dy, d->unused, d->db);
    reference_activation_backward(84, 1, factors1, d->y, d->dy);
    reference_dense_backward(120, 84, d->x, d->w1, d->dy, d->dx, d->unused, d->db);
    reference_activation_backward(120, 1, factors3, d->x, d->dx);
}

static void assert_row(const char *what, size_t count, const float *got, const double *want)
{
    for (size_t i = 0; i < count; i++)
        assert_near(what, i, got[i], want[i], 1e-6 * (1 + fabs(want[i])));
}

static void check_heads(const struct masks *masks, uint32_t count, const struct cuda_head *head,
                        const float *conv3)
{
    static struct dense d;
    double factors3[CONV3_ELEMENTS], factors1[FC1_ELEMENTS];
    widen(head->weights, 6, d.w1);
    widen(head->weights, 7, d.b1);
    widen(head->weights, 8, d.w2);
    widen(head->weights, 9, d.b2);
    for (uint32_t n = 0; n < count; n++) {
        for (size_t k = 0; k < 120; k++)
            d.x[k] = (double)conv3[n * 120 + k] + head->weights[lenet5_parameters[5].offset + k];
        factors_of(masks, DROPOUT_CONV3, n, factors3);
        factors_of(masks, DROPOUT_FC1, n, factors1);
        dense_reference(&d, factors3, factors1, head->labels[n]);
        assert_row("conv3", 120, head->conv3 + n * 120, d.x);
        assert_row("fc1", 84, head->fc1 + n * 84, d.y);
        assert_row("loss", 1, head->losses + n, &d.loss);
        assert_row("dlogits", 10, head->dlogits + n * 10, d.dz);
        assert_row("dfc1", 84, head->dfc1 + n * 84, d.dy);
        assert_row("dconv3", 120, head->dconv3 + n * 120, d.dx);
    }
}

static void heads_are_the_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 2, 7, 12};
    float *weights = guarded_floats(LENET5_WEIGHTS), *sums = guarded_floats(CUDA_SUMS);
    lenet5_initialise(1, weights);
    for (size_t r = 0; r <= RATES; r++) {
        uint32_t count = counts[r % 5];
        struct masks masks = masks_make(4, rates[r % RATES], rates[(r + 3) % RATES]);
        float *conv3 = filled(fine, 14, count * 120), *first = NULL;
        for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
            struct cuda_head head = {weights,
                                     some_labels(count),
                                     guarded_copy(conv3, count * 480),
                                     guarded_floats(count * 84),
                                     guarded_floats(count),
                                     guarded_floats(count * 10),
                                     guarded_floats(count * 84),
                                     guarded_floats(count * 120)};
            RUN(cuda_head(dropout_of(r < RATES ? &masks : NULL), count, head, sums, NULL));
            check_heads(r < RATES ? &masks : NULL, count, &head, conv3);
            assert_true(sums[CUDA_SUMS_REFUSED] == 0 && isnan(sums[CUDA_SUMS_STOP]));
            if (cuda_host.order == 0)
                first = guarded_copy(head.dconv3, count * 480);
            assert_memory_equal(head.dconv3, first, count * 480);
            void *buffers[] = {(void *)head.labels, head.conv3, head.fc1,   head.losses,
                               head.dlogits,        head.dfc1,  head.dconv3};
            for (size_t i = 0; i < 7; i++)
                guarded_free(buffers[i]);
        }
        guarded_free(conv3);
        guarded_free(first);
    }
    guarded_free(weights);
    guarded_free(sums);
}

/* ----- evaluation ---------------------------------------------------------------------------------- */

static void evaluation_counts_and_sums(void **state)
{
    (void)state;
    enum { COUNT = 333 };
    float *logits = filled(coarse, 13, COUNT * 10); /* equals are frequent: the first of them counts */
    uint8_t *labels = some_labels(COUNT);
    double loss = 0;
    int64_t correct = 0;
    for (size_t n = 0; n < COUNT; n++) {
        double z[10], dz[10];
        size_t best = 0;
        for (size_t k = 0; k < 10; k++) {
            z[k] = logits[n * 10 + k];
            best = z[k] > z[best] ? k : best;
        }
        correct += best == labels[n];
        loss += reference_softmax_loss(10, z, labels[n], dz);
    }
    struct cuda_evaluation *sum = guarded_new(sizeof *sum, 0), first = {0};
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        *sum = (struct cuda_evaluation){.correct = 1000};
        RUN(cuda_evaluate(100, logits, NULL, labels, sum, NULL));
        RUN(cuda_evaluate(0, NULL, NULL, NULL, sum, NULL));
        RUN(cuda_evaluate(COUNT - 100, logits + 1000, NULL, labels + 100, sum, NULL));
        assert_int_equal(sum->correct, 1000 + correct);
        assert_near("loss", 0, (double)sum->loss * 0x1p-36, loss, 1e-6 * loss);
        if (cuda_host.order == 0)
            first = *sum;
        assert_memory_equal(sum, &first, sizeof first);
    }
    *sum = (struct cuda_evaluation){0};
    logits[5] = NAN;
    RUN(cuda_evaluate(1, logits, NULL, labels, sum, NULL));
    assert_true(sum->loss == (int64_t)1 << 51);
    guarded_free(sum);
    guarded_free(logits);
    guarded_free(labels);
}

/* ----- gradient and update ------------------------------------------------------------------------- */

enum { TABLES = 6 };
static const size_t widths[TABLES] = {6, 16, 120, 84, 10, 1};

/* Where table t's sums go. */
static size_t into(int t)
{
    return t == 5 ? (size_t)CUDA_SUMS_LOSS : lenet5_parameters[2 * t + 1].offset;
}

static struct cuda_rows rows_of(float *const *tables)
{
    return (struct cuda_rows){tables[0], tables[1], tables[2], tables[3], tables[4], tables[5]};
}

static bool is_sum(size_t i)
{
    bool yes = i >= CUDA_SUMS_LOSS;
    for (int t = 0; t < 5; t++)
        yes |= i >= into(t) && i < into(t) + widths[t];
    return yes;
}

static void check_finish(uint32_t count)
{
    float *tables[TABLES];
    int32_t *wish = guarded_new(sizeof *wish, 0);
    *wish = 3;
    for (int t = 0; t < TABLES; t++)
        tables[t] = filled(fine, 20 + (uint32_t)t, count * widths[t]);
    float *first = NULL;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        float *sums = filled(fine, 30, CUDA_SUMS);
        sums[CUDA_SUMS_REFUSED] = 0;
        RUN(cuda_finish_gradient(rows_of(tables), count, count % 2 ? wish : NULL, sums, NULL));
        for (int t = 0; t < TABLES; t++)
            for (size_t c = 0; c < widths[t]; c++) {
                double want = 0;
                for (size_t n = 0; n < count; n++)
                    want += tables[t][n * widths[t] + c];
                assert_near("sum", into(t) + c, sums[into(t) + c], want, 1e-7 * (1 + count));
            }
        for (size_t i = 0; i < CUDA_SUMS; i++)
            assert_true(is_sum(i) || sums[i] == fine(30, i));
        assert_true(sums[CUDA_SUMS_REFUSED] == 0 && sums[CUDA_SUMS_STOP] == (float)(count % 2));
        if (cuda_host.order == 0)
            first = guarded_copy(sums, CUDA_SUMS * sizeof *sums);
        assert_memory_equal(sums, first, CUDA_SUMS * sizeof *sums);
        guarded_free(sums);
    }
    guarded_free(first);
    guarded_free(wish);
    for (int t = 0; t < TABLES; t++)
        guarded_free(tables[t]);
}

static void biases_and_loss_are_sums_over_samples(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 31, 32, 33, 255, 256, 300};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_finish(counts[i]);
}

/* Whether a gradient with this number at one place of the weights, or else at the end of one table, is
 * refused. */
static bool refused(size_t place, int table, float number)
{
    enum { COUNT = 33 };
    cuda_host.order = 0;
    float *tables[TABLES], *sums = filled(fine, 30, CUDA_SUMS);
    for (int t = 0; t < TABLES; t++)
        tables[t] = filled(fine, 31, COUNT * widths[t]);
    *(table < TABLES ? &tables[table][COUNT * widths[table] - 1] : &sums[place]) = number;
    sums[CUDA_SUMS_REFUSED] = 0;
    RUN(cuda_finish_gradient(rows_of(tables), COUNT, NULL, sums, NULL));
    float slot = sums[CUDA_SUMS_REFUSED];
    for (int t = 0; t < TABLES; t++)
        guarded_free(tables[t]);
    guarded_free(sums);
    assert_true(slot == 0 || slot == 1);
    return slot != 0;
}

static void what_is_not_finite_is_refused(void **state)
{
    (void)state;
    const float numbers[] = {NAN, INFINITY, -INFINITY, 0x1.000002p100f, -FLT_MAX, 0x1p100f, -0x1p100f};
    const size_t places[] = {0,     449,   456,   2855, 2872,
                             50871, 61071, 61156, 61995}; /* weights, at their ends */
    for (size_t i = 0; i < 7; i++)
        assert_true(refused(places[i], TABLES, numbers[i]) == (i < 5));
    for (size_t i = 0; i < 9; i++)
        assert_true(refused(places[i], TABLES, NAN));
    for (int t = 0; t < TABLES; t++)
        assert_true(refused(0, t, INFINITY));
}

/* The state of an update: all that cuda_sgd reads and writes. */
struct replica {
    float *sums, *velocity, *weights;
    struct cuda_step *step;
};

static struct replica replica_new(struct cuda_step step)
{
    struct replica r = {filled(fine, 40, CUDA_SUMS), filled(fine, 41, LENET5_WEIGHTS),
                        filled(fine, 42, LENET5_WEIGHTS), guarded_copy(&step, sizeof step)};
    r.sums[CUDA_SUMS_LOSS] = 590.25f;
    r.sums[CUDA_SUMS_STOP] = r.sums[CUDA_SUMS_REFUSED] = 0;
    return r;
}

static void replica_free(struct replica *r)
{
    guarded_free(r->sums);
    guarded_free(r->velocity);
    guarded_free(r->weights);
    guarded_free(r->step);
}

/* Whether the update was applied, and to the right numbers. */
static bool updated(const struct replica *r, float momentum, uint32_t samples, float learning_rate)
{
    if (r->weights[0] == fine(42, 0)) {
        for (size_t i = 0; i < LENET5_WEIGHTS; i++)
            assert_true(r->weights[i] == fine(42, i) && r->velocity[i] == fine(41, i));
        return false;
    }
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        double v = (double)momentum * fine(41, i) + fine(40, i) / (double)samples;
        assert_near("velocity", i, r->velocity[i], v, 2e-7);
        assert_near("weight", i, r->weights[i], fine(42, i) - (double)learning_rate * v, 2e-7);
    }
    return true;
}

static const struct cuda_step before = {
    .step = 0xffffffff, .position = 512, .learning_rate = 0.01f, .loss = 100, .applied = 4};

static void an_update_moves_the_step_on(void **state)
{
    (void)state;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        struct replica r = replica_new(before);
        RUN(cuda_sgd(0.9f, 80, r.sums, r.velocity, r.weights, r.step, NULL));
        assert_true(updated(&r, 0.9f, 80, 0.01f));
        const struct cuda_step after = {
            .step = 0x100000000, .position = 592, .learning_rate = 0.01f, .loss = 690.25, .applied = 5};
        assert_memory_equal(r.step, &after, sizeof after);
        replica_free(&r);
    }
}

static void the_step_that_says_stop_is_the_last(void **state)
{
    (void)state;
    cuda_host.order = 0;
    struct replica r = replica_new(before);
    r.sums[CUDA_SUMS_STOP] = 2;
    RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
    assert_true(updated(&r, 0.9f, 256, 0.01f));
    struct cuda_step after = *r.step;
    assert_true(after.stopped == 1 && after.applied == 5);
    r.sums[CUDA_SUMS_STOP] = 0;
    RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
    assert_true(updated(&r, 0.9f, 256, 0.01f));
    assert_memory_equal(r.step, &after, sizeof after);
    replica_free(&r);
}

static void a_refused_step_is_not_applied_nor_any_after(void **state)
{
    (void)state;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        struct replica r = replica_new(before);
        struct cuda_step after = before;
        after.not_finite = 1;
        for (int again = 0; again < 2; again++) {
            r.sums[CUDA_SUMS_REFUSED] = again ? 0 : 1;
            RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
            assert_false(updated(&r, 0.9f, 256, 0.01f));
            assert_memory_equal(r.step, &after, sizeof after);
        }
        replica_free(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gather_follows_the_order),
        cmocka_unit_test(pools_are_the_reference),
        cmocka_unit_test(activations_are_the_reference),
        cmocka_unit_test(masks_are_those_of_masks_draw),
        cmocka_unit_test(a_nan_is_never_swallowed_unless_dropped),
        cmocka_unit_test(losses_are_the_reference),
        cmocka_unit_test(heads_are_the_reference),
        cmocka_unit_test(evaluation_counts_and_sums),
        cmocka_unit_test(biases_and_loss_are_sums_over_samples),
        cmocka_unit_test(what_is_not_finite_is_refused),
        cmocka_unit_test(an_update_moves_the_step_on),
        cmocka_unit_test(the_step_that_says_stop_is_the_last),
        cmocka_unit_test(a_refused_step_is_not_applied_nor_any_after),
    };
    return cmocka_run_group_tests(tests, make_step, free_step);
}
