/* The generator: Random123's known answers, the counter's layout, and the numbers made from its output. */
#include "philox.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void assert_block(struct philox_counter got, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    assert_int_equal(got.c[0], a);
    assert_int_equal(got.c[1], b);
    assert_int_equal(got.c[2], c);
    assert_int_equal(got.c[3], d);
}

/* Random123's kat_vectors, lines "philox4x32 10": counter of four words, key of two (the low one first). */
static void known_answers(void **state)
{
    (void)state;
    struct philox_counter zeros = {{0, 0, 0, 0}};
    assert_block(philox4x32(zeros, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);

    struct philox_counter ones = {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}};
    assert_block(philox4x32(ones, 0xffffffffffffffff), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);

    struct philox_counter pi = {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
    assert_block(philox4x32(pi, 0x299f31d0a4093822), 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}

static void counter_has_the_documented_layout(void **state)
{
    (void)state;
    assert_block(philox_counter(PHILOX_DROPOUT, 3, 0x1234567890ab, 0xfedcba98, 0x13579bdf), 0x13579bdf, 0xfedcba98,
                 0x567890ab, 0x01031234);
    assert_block(philox_counter(PHILOX_SYNTHETIC, 0xff, 0xffffffffffff, 0, 0), 0, 0, 0xffffffff, 0x04ffffff);
    assert_block(philox_counter(PHILOX_WEIGHTS, 9, 0, 0, 7), 7, 0, 0, 0x02090000);
}

/* Numbers too large for their field must not spill into the neighbour's. */
static void counter_fields_do_not_overlap(void **state)
{
    (void)state;
    assert_block(philox_counter(PHILOX_DROPOUT, 0x1ff, 0, 0, 0), 0, 0, 0, 0x01ff0000);
    assert_block(philox_counter(PHILOX_DROPOUT, 0, 0xffffffffffffffff, 0, 0), 0, 0, 0xffffffff, 0x0100ffff);
}

/* An element is kept when its number >= threshold: the share of dropped numbers is p exactly when p is a
 * multiple of 2^-32, and the ends have no exception. */
static void threshold_drops_a_share_of_p(void **state)
{
    (void)state;
    assert_true(philox_threshold(0) == 0); /* 0 is kept: nothing is dropped */
    assert_true(philox_threshold(0.5) == UINT64_C(1) << 31);
    assert_true(philox_threshold(0.25) == UINT64_C(1) << 30);
    assert_true(philox_threshold(1) == UINT64_C(1) << 32); /* above every 32-bit number */
    assert_true(philox_threshold(0x1p-32) == 1);
    assert_true(philox_threshold(1 - 0x1p-32) == UINT32_MAX); /* only the largest number is kept */
    assert_true(philox_threshold(nextafter(1, 0)) == UINT32_MAX);
}

static void uniform_is_in_zero_to_below_one(void **state)
{
    (void)state;
    assert_true(philox_uniform(0) == 0.0f);
    assert_true(philox_uniform(UINT32_MAX) == 1.0f - 0x1p-24f);
    assert_true(philox_uniform(0x80000000u) == 0.5f);
    assert_true(philox_uniform(0x100) == 0x1p-24f); /* the step */
    assert_true(philox_uniform(0xff) == 0.0f);      /* rounded down, never up to 1 */
}

/* 256 equal cells, 2^18 numbers: chi-square of 255 degrees of freedom, mean 255, deviation 22.6. */
static void uniform_fills_its_range_evenly(void **state)
{
    (void)state;
    enum { CELLS = 256, BLOCKS = 1 << 16 };
    double chi_square = 0, expected = 4.0 * BLOCKS / CELLS;
    unsigned cells[CELLS] = {0};
    for (uint32_t block = 0; block < BLOCKS; block++) {
        struct philox_counter r = philox4x32(philox_counter(PHILOX_DROPOUT, 0, 0, 0, block), 1);
        for (int i = 0; i < 4; i++)
            cells[(int)(philox_uniform(r.c[i]) * CELLS)]++;
    }
    for (int i = 0; i < CELLS; i++)
        chi_square += (cells[i] - expected) * (cells[i] - expected) / expected;
    assert_true(chi_square > 255 - 4 * 22.6 && chi_square < 255 + 4 * 22.6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(counter_has_the_documented_layout),
        cmocka_unit_test(counter_fields_do_not_overlap),
        cmocka_unit_test(threshold_drops_a_share_of_p),
        cmocka_unit_test(uniform_is_in_zero_to_below_one),
        cmocka_unit_test(uniform_fills_its_range_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
