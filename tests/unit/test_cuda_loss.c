/* The CUDA kernels of the dense layers, the loss and accuracy checks, run on the host (tests/support/shim), against
 * the double-precision reference. Every launch is made in three orders of blocks and threads, which must give
 * the same bits. */
#include "cuda_test.h"

/* ----- loss ---------------------------------------------------------------------------------------- */

/* Rows of ten from equal logits to far apart ones. */
static float wide(uint32_t stream, size_t i)
{
    return fine(stream, i) * (float)(i / 10 % 4 * 12);
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
        float *dlogits = in_place ? logits : guarded_floats(count * 10);
        int64_t *sums = sums_new();
        RUN(cuda_loss(count, logits, bias, labels, losses, dlogits, sums, NULL));
        assert_true(sums[CUDA_SUMS_REFUSED] == 0 && sums[CUDA_SUMS_STOP] == -1);
        for (size_t n = 0; n < count; n++) {
            double z[10], dz[10];
            for (size_t k = 0; k < 10; k++)
                z[k] = wide(11, n * 10 + k) + bias[k];
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
        check_loss(counts[i], bias, i % 2);
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

static void check_heads(const struct masks *masks, uint32_t count, const struct cuda_head *head, const float *conv3)
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
    struct cuda_step *step = step_new();
    const uint32_t counts[] = {0, 1, 2, 7, 12};
    float *weights = guarded_floats(LENET5_WEIGHTS);
    int64_t *sums = sums_new();
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
            RUN(cuda_head(dropout_of(r < RATES ? &masks : NULL, step), count, head, sums, NULL));
            check_heads(r < RATES ? &masks : NULL, count, &head, conv3);
            assert_true(sums[CUDA_SUMS_REFUSED] == 0 && sums[CUDA_SUMS_STOP] == -1);
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
    guarded_free(step);
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
    struct evaluation *sum = guarded_new(sizeof *sum, 0), first = {0};
    float *no_bias = filled(zero, 0, 10);
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        *sum = (struct evaluation){.correct = 1000};
        RUN(cuda_evaluate(100, logits, no_bias, labels, sum, NULL));
        RUN(cuda_evaluate(0, NULL, no_bias, NULL, sum, NULL));
        RUN(cuda_evaluate(COUNT - 100, logits + 1000, no_bias, labels + 100, sum, NULL));
        assert_int_equal(sum->correct, 1000 + correct);
        assert_near("loss", 0, (double)sum->loss * 0x1p-36, loss, 1e-6 * loss);
        if (cuda_host.order == 0)
            first = *sum;
        assert_memory_equal(sum, &first, sizeof first);
    }
    *sum = (struct evaluation){0};
    logits[5] = NAN;
    RUN(cuda_evaluate(1, logits, no_bias, labels, sum, NULL));
    assert_true(sum->loss == 0 && sum->refused == 1);
    for (int k = 0; k < 10; k++)
        logits[k] = 0;
    for (int large = 2000; large <= 2100; large += 100) { /* on either side of EXACT_LIMIT */
        *sum = (struct evaluation){0};
        logits[(labels[0] + 1) % 10] = (float)large;
        RUN(cuda_evaluate(1, logits, no_bias, labels, sum, NULL));
        assert_int_equal(sum->refused, large > 2048);
        assert_true(sum->loss == (large > 2048 ? 0 : (int64_t)large << 36));
    }
    guarded_free(sum);
    guarded_free(no_bias);
    guarded_free(logits);
    guarded_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_the_reference),
        cmocka_unit_test(heads_are_the_reference),
        cmocka_unit_test(evaluation_counts_and_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
