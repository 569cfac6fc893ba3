/* The CPU engine computes what kernels/definition says, bit for bit: gradients, losses, weights after steps. The
 * definition's exp and log are near the functions they stand for. And what a run starts from is the same everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "exact_sum.h"
#include "kernels/cpu/exp_log.h"
#include "kernels/cpu/layout.h"
#include "kernels/definition/definition.h"
#include "kernels/definition/exp_log.h"
#include "philox.h"
#include "sampler.h"
#include "src/engine/cpu.h"
#include "step.h"
#include "synthetic.h"

enum { PICTURES = 80, LARGEST = 40 };
static const float MOMENTUM = 0.9f;

struct fixture {
    struct dataset data;
    uint32_t order[PICTURES], index[LENET5_WEIGHTS];
    uint8_t records[PICTURES][RECORD_BYTES];
    struct engine *engine;
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    struct definition_sums sums;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    for (uint32_t i = 0; i < PICTURES; i++) {
        synthetic_draw(false, i, f->records[i]);
        f->order[i] = i;
    }
    f->data.train = (struct split){.count = PICTURES, .per_file = PICTURES, .files = {f->records[0]}};
    layout_index(f->index);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static void open_engine(struct fixture *f, double p_conv, double p_fc)
{
    struct engine_setup setup = {.data = &f->data,
                                 .masks = masks_make(5, p_conv, p_fc),
                                 .batch_size = LARGEST,
                                 .momentum = MOMENTUM};
    struct error error = {0};
    f->engine = engine_cpu.open(&setup, &error);
    assert_non_null(f->engine);
    engine_cpu.begin_epoch(f->engine, f->order);
    lenet5_initialise(1, f->weights);
    memset(f->velocity, 0, sizeof f->velocity);
    engine_cpu.write(f->engine, f->weights, f->velocity);
}

static void close_engine(struct fixture *f)
{
    engine_cpu.close(f->engine);
}

/* A batch by both: the engine's sums, and f->sums. */
static void add_batch(struct fixture *f, uint64_t step, size_t first, size_t count)
{
    memset(&f->sums, 0, sizeof f->sums);
    cpu_prepare(f->engine);
    for (size_t position = 0; position < count; position += TILE) {
        size_t samples = count - position < TILE ? count - position : TILE;
        const uint8_t *records[TILE];
        struct sample_mask masks[TILE];
        cpu_add_tile(f->engine, step, first, position, samples);
        for (size_t s = 0; s < samples; s++)
            records[s] = f->records[first + position + s];
        masks_draw(&f->engine->setup.masks, step, (uint32_t)position, (uint32_t)samples, masks);
        definition_tile(f->weights, (int)samples, records, masks, f->engine->setup.masks.scale, &f->sums);
    }
}

static int64_t slot(const struct fixture *f, enum sum_slot which)
{
    return f->engine->sums->terms[f->engine->n_gradient + which];
}

static void assert_equal_sums(const struct fixture *f, const char *what)
{
    for (int p = 0; p < LENET5_PARAMETERS; p++)
        for (size_t i = 0; i < lenet5_parameters[p].count; i++) {
            size_t at = lenet5_parameters[p].offset + i;
            int64_t engine = f->engine->sums->terms[f->index[at]], defined = f->sums.gradient[at];
            if (engine != defined)
                fail_msg("%s: the gradient of %s[%zu] is %a, but %a by definition", what, lenet5_parameters[p].name, i,
                         (double)engine * EXACT_UNIT, (double)defined * EXACT_UNIT);
        }
    assert_int_equal(slot(f, SLOT_LOSS), f->sums.loss);
}

static void gradients_are_equal(void **state)
{
    static const double p[][2] = {{0, 0},     {0, 0.5},   {0.5, 0}, {0.5, 0.5}, {0.3, 0.3},
                                  {0.7, 0.1}, {0.9, 0.9}, {1, 0.5}, {0.5, 1},   {1, 1}};
    static const size_t counts[] = {LARGEST, 1, 15, 17};
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof p / sizeof *p; i++) {
        open_engine(f, p[i][0], p[i][1]);
        for (size_t n = 0; n < (i < 5 ? 4 : 1); n++) { /* a full tile comes before a short one: nothing is left of it */
            char what[80];
            snprintf(what, sizeof what, "p %g and %g, %zu samples", p[i][0], p[i][1], counts[n]);
            add_batch(f, 1ull << 33 | n, 3 * n, counts[n]);
            assert_int_equal(slot(f, SLOT_REFUSED), 0);
            assert_int_equal(f->sums.refused, 0);
            assert_equal_sums(f, what);
        }
        close_engine(f);
    }
}

/* Steps large enough that after a few of them ReLUs have closed, logits are far apart and gradients large. */
static void weights_stay_equal(void **state)
{
    static float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    struct fixture *f = *state;
    for (int net = 0; net < NETS; net++) {
        open_engine(f, lenet5_nets[net].p_conv, lenet5_nets[net].p_fc);
        for (uint64_t step = 0; step < 6; step++) {
            static const size_t counts[] = {32, 23, 31, 9, 33, 16};
            const float learning_rate = 0.15f;
            char what[40];
            snprintf(what, sizeof what, "net %c, step %d", lenet5_nets[net].name, (int)step);
            add_batch(f, step, step * 7, counts[step]);
            assert_equal_sums(f, what);
            engine_cpu.update(f->engine, learning_rate, counts[step]);
            definition_update(&f->sums, counts[step], learning_rate, MOMENTUM, f->velocity, f->weights);
            engine_cpu.read(f->engine, weights, velocity);
            assert_memory_equal(velocity, f->velocity, sizeof velocity);
            assert_memory_equal(weights, f->weights, sizeof weights);
        }
        close_engine(f);
    }
}

static void evaluation_is_equal(void **state)
{
    struct fixture *f = *state;
    struct evaluation sum = {0};
    int64_t correct = 0;
    open_engine(f, 0.5, 0.5);
    memset(&f->sums, 0, sizeof f->sums);
    engine_cpu.evaluate(f->engine, &f->data.train, 0, 41, &sum);
    for (size_t i = 0; i < 41; i++)
        definition_evaluate(f->weights, f->records[i], &f->sums, &correct);
    assert_int_equal(sum.loss, f->sums.loss);
    assert_int_equal(sum.correct, correct);
    close_engine(f);
}

/* A weight that is infinite, NaN, or so large that what it makes is: both refuse the step, or both get the same. */
static void what_is_refused_is_refused_by_both(void **state)
{
    static const float broken[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e20f, -1e20f, 3000, -3000};
    struct fixture *f = *state;
    size_t refused = 0, most = sizeof broken / sizeof *broken;
    for (size_t k = 0; k < most; k++)
        for (int p = 0; p < LENET5_PARAMETERS; p++) {
            open_engine(f, 0.5, 0.5);
            f->weights[lenet5_parameters[p].offset + lenet5_parameters[p].count / 2] = broken[k];
            engine_cpu.write(f->engine, f->weights, NULL);
            add_batch(f, k, 0, 5);
            assert_int_equal(slot(f, SLOT_REFUSED) != 0, f->sums.refused != 0);
            refused += f->sums.refused != 0;
            if (f->sums.refused == 0)
                assert_equal_sums(f, lenet5_parameters[p].name);
            close_engine(f);
        }
    assert_in_range(refused, most, LENET5_PARAMETERS * most - 1); /* both cases have been met */
}

static const struct parameter *parameter(const char *name)
{
    const struct parameter *p = lenet5_parameters;
    while (strcmp(p->name, name) != 0)
        p++;
    return p;
}

/* Infinite activations of a short tile, whose padding no full one writes. */
/* Without dropout, and with channels that are left as the refused step had them. */
static void a_refused_step_leaves_nothing_behind(void **state)
{
    struct fixture *f = *state;
    for (int drops = 0; drops < 2; drops++) {
        open_engine(f, 0.5 * drops, 0.5 * drops);
        for (int p = 0; p < LENET5_PARAMETERS; p++) {
            float *weight = &f->weights[lenet5_parameters[p].offset], sound = *weight;
            *weight = INFINITY;
            engine_cpu.write(f->engine, f->weights, NULL);
            add_batch(f, 0, 0, 1);
            *weight = sound;
            engine_cpu.write(f->engine, f->weights, NULL);
            add_batch(f, 1, 0, TILE);
            assert_int_equal(slot(f, SLOT_REFUSED), 0);
            assert_equal_sums(f, lenet5_parameters[p].name);
        }
        close_engine(f);
    }
}

/* One sample alone or a whole tile, as engine and definition see it; both refuse it or have the same sums. Whether
 * refused. */
static bool refuse_alike(struct fixture *f, uint64_t step, size_t samples, const char *what)
{
    engine_cpu.write(f->engine, f->weights, NULL);
    add_batch(f, step, 0, samples);
    bool refused = f->sums.refused != 0;
    if ((slot(f, SLOT_REFUSED) != 0) != refused)
        fail_msg("%s: refused by %s alone", what, refused ? "the definition" : "the engine");
    if (!refused)
        assert_equal_sums(f, what);
    return refused;
}

/* A weight of minus infinity closes a ReLU: the loss is finite, but zero times the weight is not. */
static void zeros_times_infinite_weights_are_refused_by_both(void **state)
{
    enum { TRIED = 20 };
    static const char *const layers[] = {"conv3.weight", "fc1.weight"};
    struct fixture *f = *state;
    for (int l = 0; l < 2; l++) {
        const struct parameter *p = parameter(layers[l]);
        for (size_t i = 0; i < TRIED; i++) {
            double rate = i % 2 == 0 ? 0 : 0.5;
            open_engine(f, rate, rate);
            f->weights[p->offset + p->count / TRIED * i + i] = -INFINITY;
            refuse_alike(f, i, i % 4 < 2 ? 1 : TILE, layers[l]);
            close_engine(f);
        }
    }
}

/* And so does an infinite number before it, if all weights that it meets are negative. */
static void zeros_times_infinite_activations_are_refused_by_both(void **state)
{
    static const struct {
        const char *bias, *weight;
        size_t outputs, inputs, cells;
    } layers[] = {{"conv2.bias", "conv3.weight", 120, 16, 25}, {"conv3.bias", "fc1.weight", 84, 120, 1}};
    struct fixture *f = *state;
    for (int l = 0; l < 2; l++) {
        open_engine(f, 0, 0);
        f->weights[parameter(layers[l].bias)->offset] = INFINITY; /* of input 0 */
        for (size_t o = 0; o < layers[l].outputs; o++)
            for (size_t c = 0; c < layers[l].cells; c++)
                f->weights[parameter(layers[l].weight)->offset + o * layers[l].inputs * layers[l].cells + c] = -1;
        assert_true(refuse_alike(f, 0, 1, layers[l].weight));
        assert_true(refuse_alike(f, 0, TILE, layers[l].weight));
        close_engine(f);
    }
}

/* --- exp and log ---------------------------------------------------------------------------------------- */

#ifdef __SANITIZE_ADDRESS__ /* the same instructions for fewer numbers: all of them take it most of a minute */
static const uint32_t SPARSE = 61 * 64, LOG_SPARSE = 64;
static const uint64_t EXP_DIGEST = 0x1101a78264677f0u, LOG_DIGEST = 0xc8379ebb6987b6ccu;
#else
static const uint32_t SPARSE = 61, LOG_SPARSE = 1; /* of the 1.1 thousand million arguments of exp */
static const uint64_t EXP_DIGEST = 0x26c5091e55749ac2u, LOG_DIGEST = 0x3e87a1bb5eed50bau;
#endif

/* Arguments in every build's vectors. */
enum { TOGETHER = 16 };

/* As the engine's vectors have it, as it is defined, and as it is. */
struct function {
    vec (*vectors)(vec);
    float (*defined)(float);
    double (*real)(double);
    bool relative; /* of which kind its error is */
};

/* At TOGETHER arguments, `step` floats apart from the one of these bits on: vectors and definition agree. Puts the
 * results into y. */
static inline void check_together(struct function f, uint32_t bits, uint32_t step, float *y, double *worst)
{
    float x[TOGETHER];
    for (uint32_t i = 0; i < TOGETHER; i++)
        x[i] = float_of_bits((int32_t)(bits + i * step));
    for (int i = 0; i < TOGETHER; i += LANES)
        vec_store(y + i, f.vectors(vec_load(x + i)));
    for (int i = 0; i < TOGETHER; i++) {
        assert_true(y[i] == f.defined(x[i]));
        double real = f.real((double)x[i]), error = fabs(f.relative ? y[i] / real - 1 : y[i] - real);
        *worst = x[i] >= -87 && error > *worst ? error : *worst; /* below, e^x is that of -87 */
    }
}

/* Returns the digest of all results. */
static inline uint64_t check_from_to(struct function f, uint32_t from, uint32_t to, uint32_t step, double *worst)
{
    uint64_t digest = 0;
    for (uint32_t bits = from; bits < to; bits += TOGETHER * step) {
        float y[TOGETHER];
        check_together(f, bits, step, y, worst);
        digest = XXH64(y, sizeof y, digest);
    }
    return digest;
}

/* exp from 0 down to past its end, every 61st float; log of a sum of ten of those, from 1 to 10, every float. All
 * builds come to the same bits. Of every float exp has been checked once, with SPARSE 1: off by 7.9e-8 at most. */
static void exp_and_log_are_defined(void **state)
{
    const struct function exponential = {vec_exp, defined_exp, exp, true};
    const struct function logarithm = {vec_log, defined_log, log, false};
    double worst_exp = 0, worst_log = 0;
    (void)state;
    uint64_t exp_digest = check_from_to(exponential, 0x80000000, 0xc2c80000, SPARSE, &worst_exp);
    uint64_t log_digest = check_from_to(logarithm, 0x3f800000, 0x41200001, LOG_SPARSE, &worst_log);
    print_message("# e^x off by %.2g of itself, ln x by %.2g\n", worst_exp, worst_log);
    assert_true(worst_exp < 8e-8 && worst_log < 1.7e-7);
    assert_int_equal(exp_digest, EXP_DIGEST);
    assert_int_equal(log_digest, LOG_DIGEST);
    assert_true(defined_exp(0) == 1 && defined_log(1) == 0);
    assert_true(isnan(defined_exp(NAN)) && isnan(defined_log(NAN)) && defined_exp(-INFINITY) == defined_exp(-87));
}

/* --- what a run starts from (the drawn pictures: test_synthetic.c) ---------------------------------------- */

static void the_start_of_a_run_is_known(void **state)
{
    enum { COUNT = 50000 };
    struct fixture *f = *state;
    uint32_t *order = malloc(COUNT * sizeof *order);
    lenet5_initialise(1, f->weights);
    sampler_shuffle(1, 3, COUNT, order);
    assert_int_equal(lenet5_digest(f->weights), 0xc29fd041025d8b4au);
    assert_int_equal(XXH64(order, COUNT * sizeof *order, 0), 0xded516288a160290u);
    free(order);
}

/* By multiplications in the order that step.h gives; the numbers are of the same ones in Python. */
static void the_learning_rate_is_known(void **state)
{
    (void)state;
    assert_true(step_learning_rate(0.01, 0.3, 0) == 0.01);
    assert_true(step_learning_rate(0.01, 0.5, 6) == 0x1.47ae147ae147bp-13);
    assert_true(step_learning_rate(0.01, 0.1, 7) == 0x1.12e0be826d698p-30);
    assert_true(step_learning_rate(0.05, 0.9, 1000) == 0x1.98b900fe23676p-157);
    assert_true(step_learning_rate(0.01, 1 / 3.0, 13) == 0x1.af06ac2092715p-28);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_equal),
        cmocka_unit_test(weights_stay_equal),
        cmocka_unit_test(evaluation_is_equal),
        cmocka_unit_test(what_is_refused_is_refused_by_both),
        cmocka_unit_test(a_refused_step_leaves_nothing_behind),
        cmocka_unit_test(zeros_times_infinite_weights_are_refused_by_both),
        cmocka_unit_test(zeros_times_infinite_activations_are_refused_by_both),
        cmocka_unit_test(exp_and_log_are_defined),
        cmocka_unit_test(the_start_of_a_run_is_known),
        cmocka_unit_test(the_learning_rate_is_known),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
