/* An engine against PyTorch: the same weights, batches and masks give the same losses, gradients and
 * weights. The references are in double precision, made by tests/unit/golden/generate.py; it computes
 * everything random independently, so this also tests the streams, the order and the initial weights. It
 * takes seeds under which no ReLU and no pool decides by less than a rounding error, so that the
 * comparison holds for every engine: see there.
 *
 * Tolerances are those of fp32 arithmetic, measured by PyTorch's own float32 run against its double one
 * (in the files' metadata): gradients up to 3.5e-6 of a tensor's norm, losses 1.9e-7, updates 2.0e-5 -
 * these last because float32 weights near 0.05 move by some 2e-4 in 20 steps and are rounded in each.
 */
#include "engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "exact_sum.h"
#include "philox.h"
#include "sampler.h"
#include "src/files/safetensors.h"
#include "step.h"

static const double GRADIENT_TOLERANCE = 1e-5, LOSS_TOLERANCE = 1e-6, UPDATE_TOLERANCE = 4e-5;

enum {
    BATCH = 256,
    TAIL = 80, /* the batch of step 5 */
    TAIL_STEP = 5,
    TRAIN = TAIL_STEP * BATCH + TAIL,
    SGD_BATCH = 32,
    SGD_EPOCH = 8 * SGD_BATCH + 20, /* the first samples of an epoch's order, the rest left out */
    SGD_STEPS = 20,
    DATA_SEED = 1,
};

/* ----- the data set ---------------------------------------------------------------------------------- */

/* Number `element` of a stream of the purpose that generate.py uses for its data set. */
static uint32_t number(uint32_t layer, uint32_t position, uint32_t element)
{
    return philox4x32(philox_counter((enum philox_purpose)200, layer, 0, position, element / 4), DATA_SEED)
        .c[element % 4];
}

static void draw_record(uint32_t sample, uint8_t record[RECORD_BYTES])
{
    uint32_t label = (uint32_t)((uint64_t)number(1, sample, 0) * 10 >> 32);
    *record++ = (uint8_t)label;
    for (uint32_t i = 0; i < LENET5_PIXELS; i++) {
        uint32_t channel = i / 1024, y = i / 32 % 32, x = i % 32;
        uint32_t pattern = number(2, label, channel * 16 + y / 8 * 4 + x / 8) >> 24;
        record[i] = (uint8_t)(((number(0, sample, i) >> 24) + pattern) / 2);
    }
}

static void write_records(const char *directory, const char *name, uint32_t first, uint32_t count)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (uint32_t i = first; i < first + count; i++) {
        uint8_t record[RECORD_BYTES];
        draw_record(i, record);
        assert_int_equal(fwrite(record, sizeof record, 1, file), 1);
    }
    assert_int_equal(fclose(file), 0);
}

static const struct engine_ops *ops; /* the one under test */
static const char *named;            /* as it was asked for */

struct fixture {
    struct dataset data;
    struct comm *world, *comm;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    char directory[] = "/tmp/dtrain-golden-XXXXXX", path[4096];
    const char *const names[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                 "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
    assert_non_null(mkdtemp(directory));
    for (uint32_t f = 0; f < TRAINING_FILES; f++)
        write_records(directory, names[f], f * TRAIN / TRAINING_FILES, TRAIN / TRAINING_FILES);
    write_records(directory, names[TRAINING_FILES], 0, 1);

    struct error error = {0};
    if (!dataset_open(&fixture.data, directory, &error))
        fail_msg("%s", error.text);
    for (int f = 0; f <= TRAINING_FILES; f++) { /* mapped: the names are no longer needed */
        snprintf(path, sizeof path, "%s/%s", directory, names[f]);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(directory), 0);
    fixture.world = comm_open_world(60);
    fixture.comm = comm_split(fixture.world, 0, "auto", engine_comm_use(ops), &error);
    assert_non_null(fixture.comm);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    comm_close(fixture->comm);
    comm_close(fixture->world);
    dataset_close(&fixture->data);
    return 0;
}

/* ----- one net: the engine at its initial weights, and PyTorch's file --------------------------------- */

struct run {
    struct engine *engine;
    struct safetensors *golden;
    uint64_t seed;
    float initial[LENET5_WEIGHTS];
    uint32_t order[TRAIN];
};

/* seed_key: the metadata entry of the file that holds the seed. */
static struct run *run_open(struct fixture *fixture, char name, const char *seed_key, size_t batch_size)
{
    struct run *run = calloc(1, sizeof *run);
    assert_non_null(run);
    char path[64];
    snprintf(path, sizeof path, "tests/unit/golden/lenet5-%c.safetensors", name);
    struct error error = {0};
    run->golden = safetensors_open(path, &error);
    if (!run->golden)
        fail_msg("%s", error.text);
    const char *seed = safetensors_metadata(run->golden, seed_key);
    assert_non_null(seed);
    run->seed = strtoull(seed, NULL, 10);

    const struct net *net = &lenet5_nets[name - 'A'];
    struct engine_setup setup = {
        .data = &fixture->data,
        .comm = fixture->comm,
        .masks = masks_make(run->seed, net->p_conv, net->p_fc),
        .batch_size = batch_size,
        .momentum = 0.9f,
    };
    run->engine = ops->open(&setup, &error);
    if (!run->engine)
        fail_msg("%s", error.text);

    static const float no_velocity[LENET5_WEIGHTS];
    lenet5_initialise(run->seed, run->initial);
    run->engine->ops->write(run->engine, run->initial, no_velocity);
    sampler_shuffle(run->seed, 0, TRAIN, run->order);
    run->engine->ops->begin_epoch(run->engine, run->order);
    return run;
}

static void run_close(struct run *run)
{
    run->engine->ops->close(run->engine);
    safetensors_close(run->golden);
    free(run);
}

static void read_golden(const struct run *run, const char *prefix, const struct tensor *shape, float *data)
{
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, shape->name);
    struct tensor want = *shape;
    want.name = name;
    want.data = data;
    struct error error = {0};
    if (!safetensors_read(run->golden, &want, &error))
        fail_msg("%s", error.text);
}

static void read_row(const struct run *run, const char *name, size_t count, float *data)
{
    struct tensor row = {.name = name, .dimensions = 1, .shape = {count}, .count = count};
    read_golden(run, "", &row, data);
}

/* PyTorch's value of parameter p, whole, or thinned as generate.py does: every stride-th number of the
 * large tensors. Returns how many numbers there are. */
static size_t read_parameter(const struct run *run, const char *prefix, size_t p, size_t *stride, float *data)
{
    const struct parameter *parameter = &lenet5_parameters[p];
    struct tensor tensor = {.name = parameter->name, .dimensions = parameter->dimensions, .count = parameter->count};
    memcpy(tensor.shape, parameter->shape, sizeof tensor.shape);
    if (stride) {
        *stride = parameter->count > 1000 ? 16 : 1;
        tensor.count = (parameter->count + *stride - 1) / *stride;
        tensor.dimensions = 1;
        memcpy(tensor.shape, (size_t[4]){tensor.count}, sizeof tensor.shape);
    }
    read_golden(run, prefix, &tensor, data);
    return tensor.count;
}

/* ----- comparing ------------------------------------------------------------------------------------- */

/* |got - want| / |want| of a tensor, both taken from `origin` on if there is one. */
static double distance(const float *got, size_t stride, const float *want, size_t count, const float *origin)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        double from = origin ? origin[i * stride] : 0;
        difference += pow((double)got[i * stride] - want[i], 2);
        norm += pow(want[i] - from, 2);
    }
    return sqrt(difference / norm);
}

/* The largest distance over the parameters; a NaN anywhere makes it infinite. */
static double worst(const struct run *run, const char *prefix, bool thinned, const float *got, const float *origin)
{
    static float want[LENET5_WEIGHTS];
    double worst_distance = 0;
    for (size_t p = 0; p < LENET5_PARAMETERS; p++) {
        size_t stride = 1, offset = lenet5_parameters[p].offset;
        size_t count = read_parameter(run, prefix, p, thinned ? &stride : NULL, want);
        double d = distance(got + offset, stride, want, count, origin ? origin + offset : NULL);
        if (!(d <= worst_distance))
            worst_distance = isnan(d) ? INFINITY : d;
    }
    return worst_distance;
}

static void assert_within(const char *what, double difference, double tolerance)
{
    if (!(difference <= tolerance))
        fail_msg("%s: off by %.2e, more than %.0e", what, difference, tolerance);
}

static void assert_loss(const char *what, int64_t sum, size_t samples, float want)
{
    double mean = (double)sum * EXACT_UNIT / (double)samples;
    assert_within(what, fabs(mean / want - 1), LOSS_TOLERANCE);
}

/* ----- tests ------------------------------------------------------------------------------------------ */

static void check_gradient(struct run *run, bool tail)
{
    uint64_t step = tail ? TAIL_STEP : 0;
    size_t first = step * BATCH, samples = tail ? TAIL : BATCH;
    static float gradient[LENET5_WEIGHTS];
    float losses[2];
    read_row(run, "losses", 2, losses);
    struct engine *engine = run->engine;
    run->engine->ops->gradient(engine, step, first, first + samples);
    const int64_t *slots = engine->sums->totals + engine->n_gradient;
    assert_int_equal(slots[SLOT_REFUSED], 0);
    assert_loss(tail ? "loss of the tail" : "loss", slots[SLOT_LOSS], samples, losses[tail]);
    engine_read_gradient(engine, samples, gradient);
    assert_within(tail ? "gradient of the tail" : "gradient",
                  worst(run, tail ? "tail." : "gradient.", tail, gradient, NULL), GRADIENT_TOLERANCE);
}

static void loss_and_gradient(void **state)
{
    for (const char *net = "AD"; *net; net++) {
        struct run *run = run_open(*state, *net, "seed", BATCH);
        check_gradient(run, false);
        check_gradient(run, true);
        check_gradient(run, false); /* nothing is left over from the batch before */
        run_close(run);
    }
}

/* The negative control: the same batch under the masks of another step is far off. */
static void other_masks_are_noticed(void **state)
{
    static float gradient[LENET5_WEIGHTS];
    struct run *run = run_open(*state, 'D', "seed", BATCH);
    run->engine->ops->gradient(run->engine, 1, 0, BATCH);
    engine_read_gradient(run->engine, BATCH, gradient);
    assert_true(worst(run, "gradient.", false, gradient, NULL) > 1000 * GRADIENT_TOLERANCE);
    run_close(run);
}

/* Evaluation drops nothing. */
static void check_prediction(struct run *run, const struct split *split, const char *name)
{
    float predict[2]; /* mean loss, correct samples */
    read_row(run, name, 2, predict);
    struct evaluation sum = {0};
    run->engine->ops->evaluate(run->engine, split, 0, 640, &sum); /* adds up over calls */
    run->engine->ops->evaluate(run->engine, split, 640, TRAIN, &sum);
    assert_loss(name, sum.loss, TRAIN, predict[0]);
    assert_int_equal(sum.correct, (int)predict[1]);
}

static void predict_mode(void **state)
{
    struct fixture *fixture = *state;
    for (const char *net = "AD"; *net; net++) {
        struct run *run = run_open(fixture, *net, "seed", BATCH);
        check_prediction(run, &fixture->data.train, "predict");
        run_close(run);
    }
}

/* One step at a time, so that each loss can be seen: three epochs' orders, two tails. */
static void train(struct run *run, const float *losses)
{
    const volatile sig_atomic_t stop = 0;
    size_t first = 0;
    for (uint64_t step = 0, epoch = 0; step < SGD_STEPS; step++) {
        if (first == 0) {
            sampler_shuffle(run->seed, epoch++, TRAIN, run->order);
            run->engine->ops->begin_epoch(run->engine, run->order);
        }
        size_t last = first + SGD_BATCH < SGD_EPOCH ? first + SGD_BATCH : SGD_EPOCH;
        struct span span = {.step = step, .first = first, .end = last, .learning_rate = 0.01f, .stop = &stop};
        struct train_report report = {0};
        step_train(run->engine, &span, &report);
        assert_int_equal(report.steps, 1);
        assert_int_equal(report.samples, last - first);
        char what[32];
        snprintf(what, sizeof what, "loss of step %d", (int)step);
        assert_loss(what, report.loss, report.samples, losses[step]);
        first = last % SGD_EPOCH;
    }
}

static void twenty_steps_of_sgd(void **state)
{
    struct fixture *fixture = *state;
    static float weights[LENET5_WEIGHTS];
    for (const char *net = "AD"; *net; net++) {
        struct run *run = run_open(fixture, *net, "sgd.seed", SGD_BATCH);
        float losses[SGD_STEPS];
        read_row(run, "sgd.losses", SGD_STEPS, losses);
        train(run, losses);
        run->engine->ops->read(run->engine, weights, NULL);
        assert_within("weights after 20 steps", worst(run, "sgd.", true, weights, run->initial), UPDATE_TOLERANCE);
        check_prediction(run, &fixture->data.train, "sgd.predict");
        run_close(run);
    }
}

/* The list of engines has names of its own, as it loads the GPU part only when it must. */
static void has_its_name_of_the_list(void **state)
{
    (void)state;
    assert_string_equal(ops->name, named);
}

/* For the sanitized build: Open MPI keeps no frame pointers, and only a full unwinding finds that the memory
 * it never frees is its own (tests/support/open_mpi.supp). */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "fast_unwind_on_malloc=0";
}

/* test_golden [ENGINE [TEST]]: cpu, and all tests, if not given. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_its_name_of_the_list), cmocka_unit_test(loss_and_gradient),
        cmocka_unit_test(other_masks_are_noticed),  cmocka_unit_test(predict_mode),
        cmocka_unit_test(twenty_steps_of_sgd),
    };
    char why[400];
    struct error error = {0};
    named = argc > 1 ? argv[1] : "cpu";
    ops = engine_choose(named, NULL, why, sizeof why, &error);
    if (ops == NULL) {
        fprintf(stderr, "test_golden: %s\n", error.text);
        return error.code;
    }
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
