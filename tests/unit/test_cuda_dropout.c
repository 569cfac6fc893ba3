/* The dropout family's CUDA kernels, run on the host (tests/support/shim), against the CPU's masks and formulas. */
#include "dropout_cuda.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_host.h"
#include "describe_dropout.h"
#include "guarded.h"
#include "philox.h"

static const struct dropout_stream some_stream = {.seed = 0x123456789abcdef,
                                                  .step = 0xbeef00000007,
                                                  .layer = 200,
                                                  .position = 5};

static void apply(const struct dropout *dropout, bool backward, struct dropout_stream stream, const float *from,
                  float *to)
{
    struct error error = {0};
    if (!(backward ? dropout_cuda_backward : dropout_cuda_forward)(dropout, stream, from, to, NULL, &error))
        fail_msg("%s", error.text);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

/* No two floats alike in a row. */
static float number(size_t i)
{
    return (float)((int)(i * 2654435761u >> 8 & 0xffff) - 32768) / 4096;
}

/* ----- all of it, on many shapes ------------------------------------------------------------------- */

/* The float a tensor must hold where x is `x`: exact where it is dropped, else within the roundings of a
 * product and a sum. */
static void assert_result(const struct dropout_numbers *f, bool kept, float x, float got, size_t i)
{
    double want = kept ? (double)f->scale * x + f->shift : f->dropped;
    double room = kept ? 1.2e-7 * (fabs((double)f->scale * x) + fabs(f->shift)) : 0;
    if (!(fabs(got - want) <= room))
        fail_msg("number %zu (%s) is %.9g, not %.9g", i, kept ? "kept" : "dropped", got, want);
}

enum place { IN_PLACE, ALIGNED, FROM_UNALIGNED, TO_UNALIGNED, UNALIGNED, PLACES };

static void check(const struct dropout *dropout, bool backward, enum place place, const uint8_t *keep)
{
    size_t count = dropout->samples * dropout->channels * dropout->inner, bytes = count * sizeof(float);
    size_t each = dropout->feature ? dropout->inner : 1;
    struct dropout_numbers f = backward ? dropout_backward_numbers(dropout) : dropout_numbers(dropout);
    float *first = NULL;
    for (uint32_t order = 0; order < 3; order++) {
        cuda_host.order = order;
        float *x = guarded_new(bytes, place == FROM_UNALIGNED || place == UNALIGNED ? 4 : 0);
        float *y = place == IN_PLACE ? x : guarded_new(bytes, place >= TO_UNALIGNED ? 8 : 16);
        for (size_t i = 0; i < count; i++)
            x[i] = number(i);
        apply(dropout, backward, some_stream, x, y);
        for (size_t i = 0; i < count; i++) {
            assert_result(&f, keep[i / each], number(i), y[i], i);
            assert_true(place == IN_PLACE || x[i] == number(i));
        }
        if (order == 0) {
            first = guarded_copy(y, bytes);
        } else {
            assert_memory_equal(first, y, bytes);
        }
        if (y != x)
            guarded_free(y);
        guarded_free(x);
    }
    guarded_free(first);
}

static void every_shape_mode_and_place(void **state)
{
    (void)state;
    const struct {
        size_t dimensions, shape[5];
    } shapes[] = {
        {0, {0}},          {1, {1}},          {1, {3}},
        {1, {1023}},       {1, {1024}},       {1, {1025}},
        {1, {4099}},       {2, {3, 5}},       {2, {7, 4}},
        {2, {33, 84}},     {2, {65, 3}},      {2, {70, 1}},
        {3, {2, 3, 7}},    {3, {4, 8, 2}},    {3, {3, 9, 3}},
        {4, {3, 6, 5, 5}}, {4, {2, 5, 8, 8}}, {4, {2, 4, 33, 31}},
        {3, {1, 1, 5000}}, {3, {2, 7, 700}},  {5, {2, 3, 2, 3, 16}},
        {2, {0, 3}},       {3, {3, 0, 2}},    {3, {3, 2, 0}},
    };
    const double rates[] = {0, 1e-12, 0.1, 0.5, 0.999, 1};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int mode = 0; mode < 4; mode++)
            for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
                bool feature = mode & 1, alpha = mode & 2;
                if (feature && shapes[s].dimensions < 2)
                    continue;
                struct dropout dropout = describe(rates[r], feature, alpha, shapes[s].dimensions, shapes[s].shape);
                uint8_t *keep = guarded_new(dropout_elements(&dropout), 0);
                dropout_draw(&dropout, some_stream, keep);
                enum place place = (s + (size_t)mode + r) % PLACES; /* each shape meets each place */
                check(&dropout, r & 1, place, keep);
                check(&dropout, !(r & 1), (place + 1) % PLACES, keep);
                guarded_free(keep);
            }
}

/* An element whose number is the threshold itself is kept. */
static void the_threshold_is_kept(void **state)
{
    (void)state;
    struct philox_counter at = philox_counter(PHILOX_DROPOUT, some_stream.layer, some_stream.step, some_stream.position,
                                              0);
    double p = philox4x32(at, some_stream.seed).c[0] * 0x1p-32;
    for (int feature = 0; feature < 2; feature++) {
        struct dropout dropout = describe(p, feature, false, 3, (size_t[]){1, 4, 4});
        float *x = guarded_floats(16);
        for (size_t i = 0; i < 16; i++)
            x[i] = 1;
        apply(&dropout, false, some_stream, x, x);
        assert_true(x[0] == dropout_numbers(&dropout).scale);
        guarded_free(x);
    }
}

static void no_rate_copies_every_bit(void **state)
{
    (void)state;
    const uint32_t bits[5] = {0x80000000u, 0x7fc12345u, 0xff800000u, 1, 0x3f800000u};
    float *x = guarded_copy(bits, sizeof bits), *y = guarded_floats(5);
    struct dropout dropout = describe(0, false, true, 1, (size_t[]){5});
    apply(&dropout, false, some_stream, x, y);
    assert_memory_equal(y, bits, sizeof bits);
    apply(&dropout, true, some_stream, x, x);
    assert_memory_equal(x, bits, sizeof bits);
    guarded_free(x);
    guarded_free(y);
}

static void what_is_dropped_leaves_no_trace(void **state)
{
    (void)state;
    enum { COUNT = 4000 };
    for (int mode = 0; mode < 4; mode++) {
        struct dropout dropout = describe(0.5, mode & 1, mode & 2, 3, (size_t[]){4, 10, 100});
        size_t each = mode & 1 ? 100 : 1;
        uint8_t keep[COUNT];
        float *x = guarded_floats(COUNT), *y = guarded_floats(COUNT);
        dropout_draw(&dropout, some_stream, keep);
        for (size_t i = 0; i < COUNT; i++)
            x[i] = keep[i / each] ? 1 : NAN;
        apply(&dropout, false, some_stream, x, y);
        for (size_t i = 0; i < COUNT; i++)
            assert_true(y[i] == y[i]); /* no NaN */
        guarded_free(x);
        guarded_free(y);
    }
}

/* ----- errors -------------------------------------------------------------------------------------- */

static void errors_are_those_of_the_cpu(void **state)
{
    (void)state;
    struct dropout dropout = describe(0.5, false, false, 1, (size_t[]){4}), empty = dropout;
    empty.channels = 0;
    float x[4] = {1, 1, 1, 1};
    const struct {
        const struct dropout *dropout;
        struct dropout_stream stream;
        const float *from;
        float *to;
    } wrong[] = {
        {NULL, some_stream, x, x},        {&dropout, some_stream, NULL, x},
        {&dropout, some_stream, x, NULL}, {&dropout, {.step = (uint64_t)1 << 48}, x, x},
        {&dropout, {.layer = 256}, x, x},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct error cpu = {0}, cuda = {0};
        assert_false(dropout_forward(wrong[i].dropout, wrong[i].stream, wrong[i].from, wrong[i].to, &cpu));
        assert_false(dropout_cuda_forward(wrong[i].dropout, wrong[i].stream, wrong[i].from, wrong[i].to, NULL, &cuda));
        assert_int_equal(cuda.code, EXIT_USAGE);
        assert_string_equal(cuda.text, cpu.text);
    }
    struct error error = {0};
    assert_true(dropout_cuda_forward(&empty, some_stream, NULL, NULL, NULL, &error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_mode_and_place),  cmocka_unit_test(the_threshold_is_kept),
        cmocka_unit_test(no_rate_copies_every_bit),    cmocka_unit_test(what_is_dropped_leaves_no_trace),
        cmocka_unit_test(errors_are_those_of_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
