/* Exact sums: the same bits in any order and any split, the right bits, and no silent overflow. */
#include "exact_sum.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "philox.h"

/* The fixed-point value by another road: long double holds 64 bits, rintl rounds ties to even. */
static int64_t fixed(float term)
{
    return (int64_t)rintl((long double)term / EXACT_UNIT);
}

static int64_t fixed_by_exact_sum(float term)
{
    int64_t sum = 0;
    assert_int_equal(exact_sum_add(1, &term, &sum), 0);
    return sum;
}

/* Terms of both signs and of magnitudes from 2^-60 to 2^11, as Philox draws them. */
static void draw_terms(uint32_t row, size_t count, float *terms)
{
    for (size_t i = 0; i < count; i++) {
        struct philox_counter r = philox4x32((struct philox_counter){{(uint32_t)i, row, 0, 0}}, 7);
        float magnitude = ldexpf(1 + philox_uniform(r.c[0]), (int)(r.c[1] % 71) - 60);
        terms[i] = r.c[2] & 1 ? magnitude : -magnitude;
    }
}

enum { ROWS = 96, COLUMNS = 37 };

static void sums_agree_with_long_double(void **state)
{
    (void)state;
    float terms[ROWS][COLUMNS];
    int64_t sums[COLUMNS] = {0};
    long double rounded[COLUMNS] = {0}, plain[COLUMNS] = {0};
    for (uint32_t row = 0; row < ROWS; row++) {
        draw_terms(row, COLUMNS, terms[row]);
        assert_int_equal(exact_sum_add(COLUMNS, terms[row], sums), 0);
        for (int i = 0; i < COLUMNS; i++) {
            rounded[i] += rintl((long double)terms[row][i] / EXACT_UNIT);
            plain[i] += terms[row][i];
        }
    }
    for (int i = 0; i < COLUMNS; i++) {
        assert_true((long double)sums[i] == rounded[i]);
        assert_true(fabsl(sums[i] * (long double)EXACT_UNIT - plain[i]) <= ROWS * EXACT_UNIT / 2);
    }
}

/* Rows backwards, by stride, and split among 1 to 16 ranks whose partial sums are then added. */
static void order_and_split_do_not_matter(void **state)
{
    (void)state;
    float terms[ROWS][COLUMNS];
    int64_t forwards[COLUMNS] = {0}, other[COLUMNS];
    for (uint32_t row = 0; row < ROWS; row++) {
        draw_terms(row, COLUMNS, terms[row]);
        exact_sum_add(COLUMNS, terms[row], forwards);
    }
    for (int stride = 1; stride < ROWS; stride += 2) { /* those without 3 visit every row */
        if (stride % 3 == 0)
            continue;
        memset(other, 0, sizeof other);
        for (int row = ROWS - 1; row >= 0; row--)
            exact_sum_add(COLUMNS, terms[row * stride % ROWS], other);
        assert_memory_equal(other, forwards, sizeof other);
    }
    for (int ranks = 1; ranks <= 16; ranks++) {
        memset(other, 0, sizeof other);
        for (int rank = 0; rank < ranks; rank++) {
            int64_t part[COLUMNS] = {0};
            for (int row = rank; row < ROWS; row += ranks)
                exact_sum_add(COLUMNS, terms[row], part);
            for (int i = 0; i < COLUMNS; i++)
                other[i] += part[i];
        }
        assert_memory_equal(other, forwards, sizeof other);
    }
}

static void ties_go_to_even(void **state)
{
    (void)state;
    const int64_t even[][2] = {{1, 0}, {3, 2}, {5, 2}, {7, 4}, {9, 4}, {11, 6}}; /* halves, units */
    for (size_t i = 0; i < sizeof even / sizeof *even; i++) {
        float half = (float)even[i][0] * (float)(EXACT_UNIT / 2);
        assert_true(fixed_by_exact_sum(half) == even[i][1]);
        assert_true(fixed_by_exact_sum(-half) == -even[i][1]);
        assert_true(fixed_by_exact_sum(nextafterf(half, 1)) == (even[i][0] + 1) / 2);
        assert_true(fixed_by_exact_sum(nextafterf(half, 0)) == even[i][0] / 2);
    }
}

static void zeros_and_subnormals_add_nothing(void **state)
{
    (void)state;
    const float none[] = {0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 0x1p-126f, (float)EXACT_UNIT / 2};
    int64_t sums[6] = {1, -1, 2, -2, 3, 4};
    const int64_t unchanged[6] = {1, -1, 2, -2, 3, 4};
    assert_int_equal(exact_sum_add(6, none, sums), 0);
    assert_memory_equal(sums, unchanged, sizeof sums);
}

static void terms_over_the_limit_are_refused(void **state)
{
    (void)state;
    const float below = nextafterf(EXACT_LIMIT, 0);
    assert_true(fixed_by_exact_sum(below) == fixed(below));
    assert_true(fixed_by_exact_sum(-below) == fixed(-below));

    const float bad[] = {EXACT_LIMIT, -EXACT_LIMIT, INFINITY, -INFINITY, NAN, -NAN, 3.4e38f, -3.4e38f};
    enum { BAD = sizeof bad / sizeof *bad };
    for (size_t i = 0; i < BAD; i++)
        assert_int_equal(exact_sum_add(1, &bad[i], (int64_t[1]){0}), 1);
    assert_int_equal(exact_sum_add(BAD, bad, (int64_t[BAD]){0}), BAD);
    float mixed[41] = {[7] = NAN, [32] = EXACT_LIMIT, [40] = -INFINITY};
    assert_int_equal(exact_sum_add(41, mixed, (int64_t[41]){0}), 3);
}

/* Refused terms leave no meaning in their sums, but a step of nothing else must still come to its end. */
static void many_refused_terms_are_all_counted(void **state)
{
    (void)state;
    const float bad[] = {INFINITY, -INFINITY, NAN, -NAN, 3.4e38f, -3.4e38f};
    int64_t sums[6] = {0};
    size_t refused = 0;
    for (int i = 0; i < EXACT_MAX_TERMS; i++)
        refused += exact_sum_add(6, bad, sums);
    assert_int_equal(refused, 6 * EXACT_MAX_TERMS);
}

static void the_largest_sum_does_not_wrap(void **state)
{
    (void)state;
    const float largest[2] = {nextafterf(EXACT_LIMIT, 0), -nextafterf(EXACT_LIMIT, 0)};
    int64_t sums[2] = {0};
    for (int i = 0; i < EXACT_MAX_TERMS; i++)
        assert_int_equal(exact_sum_add(2, largest, sums), 0);
    assert_true((long double)sums[0] == EXACT_MAX_TERMS * (long double)fixed(largest[0]));
    assert_true((long double)sums[1] == -(long double)sums[0]);
}

/* Every count up to past the widest vector, from every alignment; neighbours stay as they were. */
static void odd_counts_and_alignments(void **state)
{
    (void)state;
    enum { SPACE = 96 };
    float source[SPACE], terms[SPACE];
    draw_terms(1000, SPACE, source);
    for (size_t shift = 0; shift < 8; shift++)
        for (size_t count = 0; count < 70; count++) {
            int64_t sums[SPACE];
            for (size_t i = 0; i < SPACE; i++) {
                terms[i] = i >= shift && i < shift + count ? source[i] : NAN; /* read only what is given */
                sums[i] = (int64_t)i;
            }
            assert_int_equal(exact_sum_add(count, terms + shift, sums + shift), 0);
            for (size_t i = 0; i < SPACE; i++) {
                int64_t added = i >= shift && i < shift + count ? fixed(source[i]) : 0;
                assert_true(sums[i] == (int64_t)i + added);
            }
        }
}

/* One rounding in double, one to float; a sum over 2^53 units included. */
static void read_scales_and_rounds(void **state)
{
    (void)state;
    const int64_t sums[] = {0, 1, -1, INT64_C(1) << 36, -(INT64_C(3) << 35), INT64_MAX, INT64_C(123456789012345)};
    enum { COUNT = sizeof sums / sizeof *sums };
    float values[COUNT + 1];
    values[COUNT] = 42;
    exact_sum_read(COUNT, sums, 1, values);
    assert_true(values[0] == 0.0f && !signbit(values[0]));
    assert_true(values[1] == (float)EXACT_UNIT && values[2] == -(float)EXACT_UNIT);
    assert_true(values[3] == 1.0f && values[4] == -1.5f);
    assert_true(values[5] == 0x1p27f);
    exact_sum_read(COUNT, sums, 1.0 / 80, values);
    for (int i = 0; i < COUNT; i++) {
        double reference = (double)((long double)sums[i] * EXACT_UNIT / 80);
        assert_true(fabs(values[i] - reference) <= 0x1p-24 * fabs(reference) * (1 + 1e-6));
    }
    assert_true(values[COUNT] == 42);
}

/* Bit for bit what the compiler's own conversion to double gives, for sums of every magnitude and sign. */
static void read_converts_as_the_compiler_does(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    static int64_t sums[COUNT];
    static float values[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        struct philox_counter r = philox4x32((struct philox_counter){{i, 0, 0, 0}}, 9);
        sums[i] = (int64_t)((uint64_t)r.c[0] << 32 | r.c[1]) >> r.c[2] % 64;
    }
    memcpy(sums, (int64_t[]){INT64_MIN, INT64_MAX, (INT64_C(1) << 53) + 1, -(INT64_C(1) << 53) - 1}, 4 * sizeof *sums);
    exact_sum_read(COUNT, sums, 1.0 / 80, values);
    for (size_t i = 0; i < COUNT; i++) {
        volatile int64_t sum = sums[i];
        assert_true(values[i] == (float)((double)sum * (EXACT_UNIT * (1.0 / 80))));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_agree_with_long_double),
        cmocka_unit_test(order_and_split_do_not_matter),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(zeros_and_subnormals_add_nothing),
        cmocka_unit_test(terms_over_the_limit_are_refused),
        cmocka_unit_test(many_refused_terms_are_all_counted),
        cmocka_unit_test(the_largest_sum_does_not_wrap),
        cmocka_unit_test(odd_counts_and_alignments),
        cmocka_unit_test(read_scales_and_rounds),
        cmocka_unit_test(read_converts_as_the_compiler_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
