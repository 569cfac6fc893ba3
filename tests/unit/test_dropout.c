/* The dropout family: PyTorch's own outputs, the masks' streams, sizes, places in memory, and errors. */
#include "dropout.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "describe_dropout.h"
#include "masks.h"
#include "philox.h"
#include "src/files/safetensors.h"

static void forward(const struct dropout *dropout, struct dropout_stream stream, const float *x, float *y)
{
    struct error error = {0};
    if (!dropout_forward(dropout, stream, x, y, &error))
        fail_msg("%s", error.text);
}

static void backward(const struct dropout *dropout, struct dropout_stream stream, const float *dy, float *dx)
{
    struct error error = {0};
    if (!dropout_backward(dropout, stream, dy, dx, &error))
        fail_msg("%s", error.text);
}

static const struct dropout_stream some_stream = {.seed = 1, .step = 7, .layer = 3, .position = 5};

/* Close to normal numbers (Irwin-Hall: mean 0, variance 1), a pure function of the index. */
static float normal(size_t i)
{
    float sum = -6;
    for (uint32_t b = 0; b < 3; b++) {
        struct philox_counter r = philox4x32((struct philox_counter){{(uint32_t)i, b, 0, 0}}, 99);
        for (int k = 0; k < 4; k++)
            sum += philox_uniform(r.c[k]);
    }
    return sum;
}

static float *normals(size_t count)
{
    float *x = malloc((count + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = normal(i);
    return x;
}

/* ----- PyTorch --------------------------------------------------------------------------------------- */

enum { GOLDEN_MAX = 1000 };

static void read_golden(const struct safetensors *file, const char *module, const char *what, size_t count, float *data)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", module, what);
    struct tensor want = {.name = name, .dimensions = 1, .shape = {count}, .count = count, .data = data};
    struct error error = {0};
    if (!safetensors_read(file, &want, &error))
        fail_msg("%s", error.text);
}

/* Within the roundings of a product and a sum of fp32 numbers of this size. */
static void assert_close(const char *what, const float *got, const float *want, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - want[i]) <= 2e-7 * (1 + 2 * fabs(want[i]))))
            fail_msg("%s[%zu] is %.9g, not %.9g", what, i, got[i], want[i]);
}

/* PyTorch's masks, as tests/unit/golden/generate.py read them off its modules, give PyTorch's y and dx. */
static void modules_of_pytorch(void **state)
{
    (void)state;
    const struct {
        const char *name;
        double p;
        bool feature, alpha;
        size_t dimensions, shape[5];
    } modules[] = {
        {"Dropout", 0.5, false, false, 2, {7, 13}},
        {"Dropout-line", 0.1, false, false, 1, {61}},
        {"Dropout1d", 0.2, true, false, 3, {5, 6, 9}},
        {"Dropout2d", 0.5, true, false, 4, {4, 7, 3, 5}},
        {"Dropout3d", 0.3, true, false, 5, {3, 6, 2, 3, 2}},
        {"AlphaDropout", 0.2, false, true, 2, {6, 11}},
        {"FeatureAlphaDropout", 0.4, true, true, 5, {3, 9, 2, 1, 3}},
        {"Dropout-all", 1, false, false, 2, {3, 5}},
        {"AlphaDropout-all", 1, false, true, 2, {3, 5}},
        {"AlphaDropout-none", 0, false, true, 2, {3, 5}},
    };
    struct error error = {0};
    struct safetensors *file = safetensors_open("tests/unit/golden/dropout.safetensors", &error);
    if (!file)
        fail_msg("%s", error.text);
    for (size_t m = 0; m < sizeof modules / sizeof *modules; m++) {
        const char *name = modules[m].name;
        struct dropout dropout = describe(modules[m].p, modules[m].feature, modules[m].alpha, modules[m].dimensions,
                                          modules[m].shape);
        float x[GOLDEN_MAX], y[GOLDEN_MAX], dy[GOLDEN_MAX], dx[GOLDEN_MAX], whole[GOLDEN_MAX];
        float got[GOLDEN_MAX];
        size_t count = dropout.samples * dropout.channels * dropout.inner;
        read_golden(file, name, "x", count, x);
        read_golden(file, name, "y", count, y);
        read_golden(file, name, "dy", count, dy);
        read_golden(file, name, "dx", count, dx);
        read_golden(file, name, "keep", count, whole); /* one a number, for channels too */
        uint8_t keep[GOLDEN_MAX];
        size_t elements = dropout_elements(&dropout);
        for (size_t i = 0; i < count; i++)
            keep[i * elements / count] = whole[i] != 0;
        for (size_t i = 0; i < count; i++)
            assert_int_equal(keep[i * elements / count], whole[i] != 0); /* a channel is dropped as a whole */

        dropout_forward_masked(&dropout, keep, x, got);
        assert_close(name, got, y, count);
        dropout_backward_masked(&dropout, keep, dy, got);
        assert_close(name, got, dx, count);
    }
    safetensors_close(file);
}

/* ----- masks ----------------------------------------------------------------------------------------- */

/* The training step's Dropout2d and Dropout (masks.h) are members of this family. */
static void masks_are_those_of_the_training_step(void **state)
{
    (void)state;
    enum { SAMPLES = 9, POSITION = 250 };
    const size_t shapes[DROPOUT_LAYERS][4] = {{SAMPLES, 6, 28, 28},
                                              {SAMPLES, 16, 10, 10},
                                              {SAMPLES, 120, 1, 1},
                                              {SAMPLES, 84}};
    const size_t elements[DROPOUT_LAYERS] = {6, 16, 120, 84};
    struct masks masks = masks_make(1, 0.3, 0.6);
    struct sample_mask drawn[SAMPLES];
    masks_draw(&masks, 77, POSITION, SAMPLES, drawn);
    for (uint32_t layer = 0; layer < DROPOUT_LAYERS; layer++) {
        bool fc = layer == DROPOUT_FC1;
        struct dropout dropout = describe(fc ? 0.6 : 0.3, !fc, false, fc ? 2 : 4, shapes[layer]);
        uint8_t keep[SAMPLES * 120];
        dropout_draw(&dropout, (struct dropout_stream){1, 77, layer, POSITION}, keep);
        for (size_t i = 0; i < SAMPLES * elements[layer]; i++)
            assert_int_equal(keep[i], mask_keeps(&drawn[i / elements[layer]], layer, (unsigned)(i % elements[layer])));
        assert_true(dropout_numbers(&dropout).scale == masks.scale[layer]);
    }
}

/* Forward and backward agree with the drawn mask, on all sizes around a block, a vector and a chunk, in
 * place and apart; what lies before and behind stays as it was. */
static void check_size(double p, bool feature, bool alpha, size_t dimensions, const size_t *shape)
{
    struct dropout dropout = describe(p, feature, alpha, dimensions, shape);
    size_t count = dropout.samples * dropout.channels * dropout.inner, bytes = count * sizeof(float);
    float *x = normals(count), *want = malloc(bytes + 1), *place = malloc(bytes + 2 * sizeof(float));
    uint8_t *keep = malloc(dropout_elements(&dropout) + 1);
    assert_true(want && place && keep);
    keep[dropout_elements(&dropout)] = 42;
    dropout_draw(&dropout, some_stream, keep);
    assert_int_equal(keep[dropout_elements(&dropout)], 42);

    for (int direction = 0; direction < 2; direction++) {
        (direction ? dropout_backward_masked : dropout_forward_masked)(&dropout, keep, x, want);
        for (int in_place = 0; in_place < 2; in_place++) {
            place[0] = place[count + 1] = 42;
            for (size_t i = 0; i < count; i++)
                place[1 + i] = in_place ? x[i] : NAN;
            (direction ? backward : forward)(&dropout, some_stream, in_place ? place + 1 : x, place + 1);
            assert_memory_equal(place + 1, want, bytes);
            assert_true(place[0] == 42 && place[count + 1] == 42);
        }
    }
    free(x);
    free(want);
    free(place);
    free(keep);
}

static void every_size_and_place(void **state)
{
    (void)state;
    const size_t lengths[] = {0, 1, 2, 3, 4, 5, 7, 8, 31, 33, 4095, 4096, 4097, 8195};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int alpha = 0; alpha < 2; alpha++) {
            size_t n = lengths[l];
            check_size(0.3, false, alpha, 1, (size_t[]){n});
            check_size(0.3, false, alpha, 3, (size_t[]){3, n, 2});
            check_size(0.3, true, alpha, 2, (size_t[]){3, n});
            check_size(0.3, true, alpha, 4, (size_t[]){2, n, 1, 3});
            check_size(0.3, true, alpha, 5, (size_t[]){2, 3, 1, n, 1});
            check_size(0.3, true, alpha, 3, (size_t[]){n, 3, 2});
        }
    check_size(0.5, false, false, 0, NULL); /* a scalar */
    check_size(0.5, true, false, 3, (size_t[]){4, 0, 5});
}

/* A batch in parts, each at its own position, is the batch as a whole: what ranks rely on. */
static void parts_of_a_batch_are_the_batch(void **state)
{
    (void)state;
    enum { SAMPLES = 11, NUMBERS = 7 * 3 };
    float *x = normals(SAMPLES * NUMBERS), whole[SAMPLES * NUMBERS], part[SAMPLES * NUMBERS];
    for (int feature = 0; feature < 2; feature++)
        for (size_t cut = 0; cut <= SAMPLES; cut++) {
            struct dropout all = describe(0.5, feature, true, 3, (size_t[]){SAMPLES, 7, 3});
            struct dropout head = describe(0.5, feature, true, 3, (size_t[]){cut, 7, 3});
            struct dropout tail = describe(0.5, feature, true, 3, (size_t[]){SAMPLES - cut, 7, 3});
            struct dropout_stream later = some_stream;
            later.position += (uint32_t)cut;
            forward(&all, some_stream, x, whole);
            forward(&head, some_stream, x, part);
            forward(&tail, later, x + cut * NUMBERS, part + cut * NUMBERS);
            assert_memory_equal(part, whole, sizeof whole);
        }
    free(x);
}

/* ----- numbers --------------------------------------------------------------------------------------- */

static const float odd_numbers[8] = {0.0f, -0.0f, 1.5f, -2.5f, INFINITY, -INFINITY, NAN, 1e-42f};

static void p_zero_copies_every_bit(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct dropout dropout = describe(0, kind & 1, kind & 2, 2, (size_t[]){2, 4});
        float y[8] = {0}, in_place[8];
        forward(&dropout, some_stream, odd_numbers, y);
        assert_memory_equal(y, odd_numbers, sizeof y);
        memset(y, 0, sizeof y);
        backward(&dropout, some_stream, odd_numbers, y);
        assert_memory_equal(y, odd_numbers, sizeof y);
        memcpy(in_place, odd_numbers, sizeof in_place);
        forward(&dropout, some_stream, in_place, in_place);
        assert_memory_equal(in_place, odd_numbers, sizeof y);
    }
}

static void p_one_gives_zeros(void **state)
{
    (void)state;
    const float zeros[8] = {0};
    for (int kind = 0; kind < 4; kind++) {
        struct dropout dropout = describe(1, kind & 1, kind & 2, 2, (size_t[]){2, 4});
        float y[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        forward(&dropout, some_stream, odd_numbers, y); /* infinities and NaN leave no trace */
        assert_memory_equal(y, zeros, sizeof y);
        y[0] = 1;
        backward(&dropout, some_stream, odd_numbers, y);
        assert_memory_equal(y, zeros, sizeof y);
    }
}

/* Signed zeros survive plain dropout, and a NaN that is kept stays one. */
static void kept_numbers_are_scaled(void **state)
{
    (void)state;
    struct dropout dropout = describe(0.5, false, false, 1, (size_t[]){8});
    const uint8_t all[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    float y[8];
    dropout_forward_masked(&dropout, all, odd_numbers, y);
    assert_true(y[0] == 0 && !signbit(y[0]) && y[1] == 0 && signbit(y[1]));
    assert_true(y[2] == 3 && y[3] == -5 && y[4] == INFINITY && y[5] == -INFINITY && isnan(y[6]));
    assert_true(y[7] == 2 * odd_numbers[7]);
}

/* Mean and second moment over n elements of x ~ (0, 1), within 4.5 deviations of their estimates: plain
 * dropout keeps the mean, alpha dropout the mean and the variance. */
static void check_moments(double p, bool feature, bool alpha)
{
    enum { SAMPLES = 256, CHANNELS = 256 };
    struct dropout dropout = describe(p, feature, alpha, 2, (size_t[]){SAMPLES, CHANNELS});
    size_t n = SAMPLES * CHANNELS;
    float *x = normals(n), *y = malloc(n * sizeof *y);
    forward(&dropout, some_stream, x, y);
    double sum = 0, squares = 0, fourths = 0, dropped = 0;
    float nothing = dropout_numbers(&dropout).dropped;
    for (size_t i = 0; i < n; i++) {
        double square = (double)y[i] * y[i];
        sum += y[i];
        squares += square;
        fourths += square * square;
        dropped += y[i] == nothing;
    }
    double second = squares / (double)n, expected = alpha ? 1 : 1 / (1 - p);
    assert_true(fabs(sum / (double)n) < 4.5 * sqrt(second / (double)n));
    assert_true(fabs(second - expected) < 4.5 * sqrt((fourths / (double)n - second * second) / (double)n));
    assert_true(fabs(dropped - (double)n * p) < 4.5 * sqrt((double)n * p * (1 - p)));
    free(x);
    free(y);
}

static void mean_and_variance_are_kept(void **state)
{
    (void)state;
    const double rates[] = {0.05, 0.3, 0.5, 0.9};
    for (size_t r = 0; r < 4; r++)
        for (int kind = 0; kind < 4; kind++)
            check_moments(rates[r], kind & 1, kind & 2);
}

/* ----- sizes over 2^31 and 2^32 ---------------------------------------------------------------------- */

static void map_at(char *place, size_t bytes, int flags, int file)
{
    assert_ptr_equal(mmap(place, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_POPULATE, file, 0), place);
}

/* Zeros in little memory: every 2 MiB of the tensor are the same 2 MiB, but the last are its own. */
static float *map_huge(size_t bytes)
{
    const size_t window = (size_t)2 << 20;
    size_t shared = (bytes / window - 1) * window;
    int file = memfd_create("window", 0);
    assert_true(file >= 0 && ftruncate(file, (off_t)window) == 0);
    char *base = mmap(NULL, shared + 2 * window, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(base != MAP_FAILED);
    for (size_t at = 0; at < shared; at += window)
        map_at(base + at, window, MAP_SHARED, file);
    map_at(base + shared, 2 * window, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    close(file);
    return (float *)base;
}

/* In place, the last thousand numbers: of the last channel of the last sample. */
static void check_huge(bool feature, size_t dimensions, const size_t *shape)
{
#ifdef __SANITIZE_ADDRESS__
    print_message("# takes half a minute under AddressSanitizer; runs in the ordinary build\n");
    skip();
#endif
    struct dropout dropout = describe(0.5, feature, true, dimensions, shape);
    struct dropout_numbers f = dropout_numbers(&dropout);
    size_t sample = dropout.channels * dropout.inner, count = dropout.samples * sample;
    float *x = map_huge(count * sizeof *x);
    forward(&dropout, some_stream, x, x);
    for (size_t i = count - 1000; i < count; i++) {
        size_t element = feature ? dropout.channels - 1 : i % sample;
        uint32_t position = some_stream.position + (uint32_t)dropout.samples - 1;
        struct philox_counter at = philox_counter(PHILOX_DROPOUT, some_stream.layer, some_stream.step, position,
                                                  (uint32_t)(element / 4));
        bool keep = philox4x32(at, some_stream.seed).c[element % 4] >= f.threshold;
        assert_true(x[i] == (keep ? f.shift : f.dropped));
    }
    munmap(x, count * sizeof *x);
}

static void elements_over_two_to_the_31(void **state)
{
    (void)state;
    check_huge(false, 1, (size_t[]){((size_t)1 << 31) + 11});
}

static void channels_over_two_to_the_32(void **state)
{
    (void)state;
    check_huge(true, 3, (size_t[]){3, 2, ((size_t)1 << 30) + 5}); /* the last sample begins past 2^32 */
}

/* ----- errors ---------------------------------------------------------------------------------------- */

static void assert_refused(bool accepted, const struct error *error, const char *what)
{
    assert_false(accepted);
    assert_int_equal(error->code, EXIT_USAGE);
    if (!strstr(error->text, what) || strchr(error->text, '\n'))
        fail_msg("'%s' does not say '%s' in one line", error->text, what);
}

static void bad_descriptions_are_refused(void **state)
{
    (void)state;
    struct dropout dropout;
    const size_t shape[] = {4, 3, 2};
    const double rates[] = {-0.1, 1.0000001, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        struct error error = {0};
        assert_refused(dropout_make(rates[i], false, false, 3, shape, &dropout, &error), &error,
                       "a probability is from 0 to 1");
    }
    for (size_t dimensions = 0; dimensions < 2; dimensions++)
        for (int alpha = 0; alpha < 2; alpha++) {
            struct error error = {0};
            assert_refused(dropout_make(0.5, true, alpha, dimensions, shape, &dropout, &error), &error,
                           "at least 2 dimensions");
        }
    struct error no_shape = {0}, no_dropout = {0}, overflow = {0}, stream = {0};
    assert_refused(dropout_make(0.5, false, false, 3, NULL, &dropout, &no_shape), &no_shape, "null pointer");
    assert_refused(dropout_make(0.5, false, false, 3, shape, NULL, &no_dropout), &no_dropout, "null pointer");
    const size_t huge[] = {(size_t)1 << 31, (size_t)1 << 31};
    assert_refused(dropout_make(0.5, false, false, 2, huge, &dropout, &overflow), &overflow, "memory");
    const size_t line = ((size_t)1 << 34) + 1;
    assert_refused(dropout_make(0.5, false, false, 1, &line, &dropout, &stream), &stream, "2^34");
}

static void bad_calls_are_refused(void **state)
{
    (void)state;
    float x[24] = {0}, y[24];
    struct dropout dropout = describe(0.5, false, false, 3, (size_t[]){4, 3, 2});
    struct dropout empty = describe(0.5, false, false, 3, (size_t[]){4, 0, 2});
    struct error descriptor = {0}, input = {0}, output = {0}, gradient = {0};
    assert_refused(dropout_forward(NULL, some_stream, x, y, &descriptor), &descriptor, "descriptor");
    assert_refused(dropout_forward(&dropout, some_stream, NULL, y, &input), &input, "input");
    assert_refused(dropout_forward(&dropout, some_stream, x, NULL, &output), &output, "output");
    assert_refused(dropout_backward(&dropout, some_stream, NULL, y, &gradient), &gradient, "null pointer");
    forward(&empty, some_stream, NULL, NULL); /* an empty tensor may have no memory */

    struct dropout_stream streams[3] = {some_stream, some_stream, some_stream};
    streams[0].step = (uint64_t)1 << 48;
    streams[1].layer = 256;
    streams[2].position = UINT32_MAX - 2;
    for (int i = 0; i < 3; i++) {
        struct error error = {0};
        assert_refused(dropout_forward(&dropout, streams[i], x, y, &error), &error, "out of range");
    }
    streams[2].position--; /* the last sample at the last position */
    forward(&dropout, streams[2], x, y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modules_of_pytorch),           cmocka_unit_test(masks_are_those_of_the_training_step),
        cmocka_unit_test(every_size_and_place),         cmocka_unit_test(parts_of_a_batch_are_the_batch),
        cmocka_unit_test(p_zero_copies_every_bit),      cmocka_unit_test(p_one_gives_zeros),
        cmocka_unit_test(kept_numbers_are_scaled),      cmocka_unit_test(mean_and_variance_are_kept),
        cmocka_unit_test(elements_over_two_to_the_31),  cmocka_unit_test(channels_over_two_to_the_32),
        cmocka_unit_test(bad_descriptions_are_refused), cmocka_unit_test(bad_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
