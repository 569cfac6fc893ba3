/* The CPU engine against the double-precision reference, and its promise that sums do not depend on
 * which rank computes which tile. Data, weights and masks are fixed; no MPI is needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exact_sum.h"
#include "kernels/cpu/kernels.h"
#include "kernels/reference/reference.h"
#include "philox.h"
#include "sampler.h"
#include "src/engine/cpu.h"

enum { IMAGES = 400, PER_FILE = IMAGES / TRAINING_FILES };
static const float MOMENTUM = 0.9f;
static const double MARGIN = 2e-6; /* what samples compared with the reference must have (reference.h) */

struct fixture {
    struct dataset data;
    uint32_t order[IMAGES];
    uint8_t bytes[IMAGES][RECORD_BYTES];
};

/* Blobs of colour with noise, some saturated: closer to photographs than noise alone. */
static void draw_image(uint32_t image, uint8_t *record)
{
    struct philox_counter r = philox4x32(philox_counter(PHILOX_SYNTHETIC, 9, 0, image, 0), 1);
    record[0] = (uint8_t)(r.c[0] % LENET5_CLASSES);
    for (uint32_t i = 0; i < LENET5_PIXELS; i++) {
        uint32_t x = i % 32, y = i / 32 % 32, c = i / 1024;
        uint32_t noise = philox4x32(philox_counter(PHILOX_SYNTHETIC, 10, 0, image, i), 1).c[0] % 64;
        double wave = sin(0.3 * x + r.c[1] % 7) * cos(0.2 * y + r.c[2] % 5) + 0.4 * cos(c + r.c[3] % 3);
        double value = 128 + 110 * wave + noise - 32;
        record[1 + i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    for (uint32_t i = 0; i < IMAGES; i++)
        draw_image(i, f->bytes[i]);
    f->data.train = (struct split){.count = IMAGES, .per_file = PER_FILE};
    for (int i = 0; i < TRAINING_FILES; i++)
        f->data.train.files[i] = f->bytes[i * PER_FILE];
    f->data.test = (struct split){.count = 50, .per_file = 50, .files = {f->bytes[0]}};
    sampler_shuffle(2, 0, IMAGES, f->order);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static struct engine *open_engine(struct fixture *f, double p_conv, double p_fc, float *weights)
{
    struct engine_setup engine_setup = {.data = &f->data,
                                        .masks = masks_make(4, p_conv, p_fc),
                                        .batch_size = 256,
                                        .momentum = MOMENTUM};
    struct error error = {0};
    struct engine *engine = engine_cpu.open(&engine_setup, &error);
    assert_non_null(engine);
    engine_cpu.begin_epoch(engine, f->order);
    lenet5_initialise(6, weights);
    engine_cpu.write(engine, weights, NULL);
    return engine;
}

/* The sums over positions [position, last) of the batch at `first`. */
static void add_share(struct engine *engine, uint64_t step, size_t first, size_t position, size_t last)
{
    cpu_prepare(engine);
    for (; position < last; position += TILE)
        cpu_add_tile(engine, step, first, position, last - position < TILE ? last - position : TILE);
}

static int64_t slot(const struct engine *engine, enum sum_slot which)
{
    return engine->sums->terms[engine->n_gradient + which];
}

static double relative_error(const double *expected, const float *actual, size_t count)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += (expected[i] - actual[i]) * (expected[i] - actual[i]);
        norm += expected[i] * expected[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* Puts samples with enough margin at [first, first + samples) of the order; the others go to the end. */
static void choose_samples(struct fixture *f, const double *weights, const struct masks *masks, size_t first,
                           size_t samples, const struct sample_mask *drawn)
{
    size_t spare = first + samples;
    for (size_t i = 0; i < samples; i++)
        while (reference_margin(weights, masks, split_record(&f->data.train, f->order[first + i]), &drawn[i]) <
               MARGIN) {
            assert_true(spare < IMAGES);
            uint32_t other = f->order[spare];
            f->order[spare++] = f->order[first + i];
            f->order[first + i] = other;
        }
}

static void check_gradient(struct fixture *f, double p_conv, double p_fc, size_t samples)
{
    static const size_t first = 32;
    static const uint64_t step = 1ull << 33 | 5; /* both words of the step matter */
    float weights[LENET5_WEIGHTS], *actual = malloc(LENET5_WEIGHTS * sizeof *actual);
    double *expected = calloc(LENET5_WEIGHTS, sizeof *expected), *w = malloc(LENET5_WEIGHTS * sizeof *w);
    const uint8_t **records = malloc(samples * sizeof(*records));
    struct sample_mask *masks = malloc(samples * sizeof *masks);
    struct engine *engine = open_engine(f, p_conv, p_fc, weights);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        w[i] = weights[i];
    masks_draw(&engine->setup.masks, step, 0, (uint32_t)samples, masks);
    choose_samples(f, w, &engine->setup.masks, first, samples, masks);

    add_share(engine, step, first, 0, samples);
    engine_read_gradient(engine, samples, actual);

    for (size_t i = 0; i < samples; i++)
        records[i] = split_record(&f->data.train, f->order[first + i]);
    double loss = reference_gradient(w, &engine->setup.masks, samples, records, masks, expected);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        expected[i] /= (double)samples;

    assert_int_equal(slot(engine, SLOT_REFUSED), 0);
    double error = fabs((double)slot(engine, SLOT_LOSS) * EXACT_UNIT / loss - 1);
    if (!(error < 1e-6))
        fail_msg("p %g, %g, %zu samples: loss off by %g", p_conv, p_fc, samples, error);
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        const struct parameter *parameter = &lenet5_parameters[p];
        error = relative_error(expected + parameter->offset, actual + parameter->offset, parameter->count);
        if (!(error < 1e-5))
            fail_msg("p %g, %g, %zu samples: %s off by %g", p_conv, p_fc, samples, parameter->name, error);
    }
    engine_cpu.close(engine);
    free(masks);
    free(records);
    free(w);
    free(expected);
    free(actual);
}

static void gradient_matches_the_reference(void **state)
{
#ifdef __SANITIZE_ADDRESS__ /* the reference takes long then; the engine has its large batches below */
    static const size_t sizes[] = {1, 15, 16, 17, 33};
#else
    static const size_t sizes[] = {1, 15, 16, 17, 80, 256};
#endif
    for (int n = 0; n < NETS; n++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_gradient(*state, lenet5_nets[n].p_conv, lenet5_nets[n].p_fc, sizes[i]);
}

static void gradient_matches_the_reference_at_other_probabilities(void **state)
{
    static const double p[][2] = {{0.1, 0.9}, {0.8, 0.2}, {1, 0.5}, {0.5, 1}, {1, 1}};
    for (size_t i = 0; i < sizeof p / sizeof *p; i++)
        check_gradient(*state, p[i][0], p[i][1], 33);
}

static void sums_do_not_depend_on_the_number_of_ranks(void **state)
{
    static const int sizes[] = {2, 3, 4, 8, 20};
    static const size_t counts[] = {256, 80, 77};
    struct fixture *f = *state;
    float weights[LENET5_WEIGHTS];
    struct engine *engine = open_engine(f, 0.5, 0.5, weights);
    size_t bytes = (engine->n_gradient + SUM_SLOTS) * sizeof(int64_t);
    int64_t *alone = malloc(bytes), *together = malloc(bytes);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        add_share(engine, 7, 16, 0, counts[c]);
        memcpy(alone, engine->sums->terms, bytes);
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            memset(together, 0, bytes);
            for (int rank = sizes[n] - 1; rank >= 0; rank--) {
                size_t first, last;
                sampler_share(counts[c], rank, sizes[n], &first, &last);
                add_share(engine, 7, 16, first, last);
                for (size_t i = 0; i < bytes / sizeof(int64_t); i++)
                    together[i] += engine->sums->terms[i];
            }
            assert_memory_equal(alone, together, bytes);
        }
    }
    free(together);
    free(alone);
    engine_cpu.close(engine);
}

static void state_survives_writing_and_reading(void **state)
{
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS], w[LENET5_WEIGHTS], m[LENET5_WEIGHTS];
    struct engine *engine = open_engine(*state, 0, 0, weights);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        velocity[i] = (float)i;
    engine_cpu.write(engine, NULL, velocity);
    engine_cpu.read(engine, w, m);
    assert_memory_equal(w, weights, sizeof w);
    assert_memory_equal(m, velocity, sizeof m);
    engine_cpu.close(engine);
}

/* Every number of the sums is that of a weight or padding, and padding has no gradient: else the
 * padding of the weights would not stay 0. */
static void padding_has_no_gradient(void **state)
{
    float weights[LENET5_WEIGHTS];
    uint32_t index[LENET5_WEIGHTS];
    struct engine *engine = open_engine(*state, 0.5, 0.5, weights);
    assert_int_equal(engine->n_gradient, LAYOUT_COUNT);
    add_share(engine, 0, 0, 0, 40);
    layout_index(index);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        assert_true(index[i] < LAYOUT_COUNT);
        engine->sums->terms[index[i]] = 0;
    }
    for (size_t i = 0; i < LAYOUT_COUNT; i++)
        assert_int_equal(engine->sums->terms[i], 0);
    engine_cpu.close(engine);
}

static void update_follows_the_formula(void **state)
{
    static const size_t samples = 80;
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS], gradient[LENET5_WEIGHTS];
    float new_weights[LENET5_WEIGHTS], new_velocity[LENET5_WEIGHTS];
    const float learning_rate = 0.01f;
    struct engine *engine = open_engine(*state, 0, 0, weights);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        velocity[i] = (float)i / LENET5_WEIGHTS - 0.5f;
    engine_cpu.write(engine, NULL, velocity);
    add_share(engine, 0, 0, 0, samples);
    engine_read_gradient(engine, samples, gradient);
    engine_cpu.update(engine, learning_rate, samples);
    engine_cpu.read(engine, new_weights, new_velocity);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) { /* up to the rounding of each of the operations */
        double v = (double)MOMENTUM * velocity[i] + gradient[i];
        double w = weights[i] - (double)learning_rate * v;
        assert_true(fabs(new_velocity[i] - v) <= 1.2e-7 * (fabs(v) + fabs(velocity[i])));
        assert_true(fabs(new_weights[i] - w) <= 1.2e-7 * (fabs(w) + learning_rate * fabs(velocity[i])));
    }
    engine_cpu.close(engine);
}

static void evaluation_matches_the_reference(void **state)
{
    struct fixture *f = *state;
    float weights[LENET5_WEIGHTS];
    double w[LENET5_WEIGHTS], loss = 0, logits[LENET5_CLASSES], gradient[LENET5_CLASSES];
    struct engine *engine = open_engine(f, 0.5, 0.5, weights); /* predict mode drops nothing */
    struct evaluation sum = {0};
    int64_t correct = 0;
    engine_cpu.evaluate(engine, &f->data.test, 0, 32, &sum);
    engine_cpu.evaluate(engine, &f->data.test, 32, 50, &sum);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        w[i] = weights[i];
    for (size_t i = 0; i < 50; i++) {
        size_t best = 0;
        const uint8_t *record = split_record(&f->data.test, i);
        reference_predict(w, record, logits);
        for (size_t k = 1; k < LENET5_CLASSES; k++)
            best = logits[k] > logits[best] ? k : best;
        correct += best == record[0];
        loss += reference_softmax_loss(LENET5_CLASSES, logits, record[0], gradient);
    }
    assert_int_equal(sum.correct, correct);
    assert_true(fabs((double)sum.loss * EXACT_UNIT / loss - 1) < 1e-6);
    engine_cpu.close(engine);
}

/* Whatever layer a broken number first appears in. */
static void broken_numbers_are_refused(void **state)
{
    static const float broken[] = {NAN, INFINITY};
    float weights[LENET5_WEIGHTS];
    struct engine *engine = open_engine(*state, 0, 0, weights);
    for (int p = 0; p < LENET5_PARAMETERS; p++)
        for (int k = 0; k < 2; k++) {
            float *weight = &weights[lenet5_parameters[p].offset], good = *weight;
            *weight = broken[k];
            engine_cpu.write(engine, weights, NULL);
            add_share(engine, 0, 0, 0, 17);
            *weight = good;
            if (slot(engine, SLOT_REFUSED) == 0)
                fail_msg("%s = %g went unnoticed", lenet5_parameters[p].name, (double)broken[k]);
        }
    engine_cpu.write(engine, weights, NULL);
    add_share(engine, 0, 0, 0, 17);
    assert_int_equal(slot(engine, SLOT_REFUSED), 0);
    engine_cpu.close(engine);
}

/* Were it lost in the max-pool, or in the sums that neighbours share, only a worse loss would tell. It may also break
 * those neighbours: windows 0 and 1, 2 and 3, 3 and 4 of a row share sums. */
static void see_an_infinite_number(unsigned kept)
{
    static struct layout weights;
    static struct conv2_packed packed;
    static struct features features;
    static float pool2[25][16];
    for (int out = 0; out < 16; out++)
        for (int k = 0; k < 5 * 5 * 6; k++)
            weights.conv2[out][k / 30][k % 30] = 0.01f * (float)(1 + (out + k) % 7);
    conv2_pack(&weights, &packed);
    for (int y = 0; y < 14; y++)
        for (int x = 0; x < 14; x++) {
            features.pool1[3][POOL1_PLACE(y, x)] = INFINITY;
            conv2_forward(&weights, &packed, 63, kept, 1, pool2, &features);
            features.pool1[3][POOL1_PLACE(y, x)] = 0;
            for (int k = 0; k < 25 * 16; k++) {
                int top = k / 16 / 5 * 2, left = k / 16 % 5 * 2;
                int shared = left == 8 ? 6 : left / 4 * 4, rows = y >= top && y < top + 6;
                bool finite = isfinite(pool2[k / 16][k % 16]);
                if ((kept >> k % 16 & 1) == 0)
                    assert_true(pool2[k / 16][k % 16] == 0);
                else if (rows && x >= left && x < left + 6)
                    assert_false(finite);
                else if (!rows || x < shared || x >= shared + 8)
                    assert_true(finite);
            }
        }
}

static void an_infinite_number_breaks_what_sees_it(void **state)
{
    (void)state;
    see_an_infinite_number(0xffff);
    see_an_infinite_number(0x5a21); /* few channels are computed otherwise */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_matches_the_reference),
        cmocka_unit_test(gradient_matches_the_reference_at_other_probabilities),
        cmocka_unit_test(sums_do_not_depend_on_the_number_of_ranks),
        cmocka_unit_test(state_survives_writing_and_reading),
        cmocka_unit_test(padding_has_no_gradient),
        cmocka_unit_test(update_follows_the_formula),
        cmocka_unit_test(evaluation_matches_the_reference),
        cmocka_unit_test(broken_numbers_are_refused),
        cmocka_unit_test(an_infinite_number_breaks_what_sees_it),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
