/* The dropout masks of a step: who is kept, how often, and that no two streams have anything in common. */
#include "masks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "philox.h"
#include "sampler.h"

static const uint32_t elements[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS, FC1_ELEMENTS};

/* ----- which bits ------------------------------------------------------------------------------------ */

/* Each bit by hand from the written layout: number e % 4 of the block {e / 4, position, step, ...}. */
static void bits_follow_the_counter_layout(void **state)
{
    (void)state;
    const uint64_t seed = 0x0123456789abcdef, step = 0xbeef12345678;
    struct masks masks = masks_make(seed, 0.3, 0.6);
    struct sample_mask drawn[5];
    masks_draw(&masks, step, 251, 5, drawn);
    for (uint32_t s = 0; s < 5; s++)
        for (uint32_t layer = 0; layer < DROPOUT_LAYERS; layer++)
            for (uint32_t e = 0; e < elements[layer]; e++) {
                struct philox_counter at = {{e / 4, 251 + s, 0x12345678, 0x01000000 | layer << 16 | 0xbeef}};
                uint32_t number = philox4x32(at, seed).c[e % 4];
                double p = layer == DROPOUT_FC1 ? 0.6 : 0.3;
                assert_int_equal(mask_keeps(&drawn[s], layer, e), number >= p * 4294967296.0);
            }
}

static void bits_past_the_last_element_are_zero(void **state)
{
    (void)state;
    const double p[] = {0, 0.5, 1};
    struct sample_mask drawn[16];
    for (int i = 0; i < 3; i++) {
        struct masks masks = masks_make(1, p[i], p[i]);
        memset(drawn, 0xff, sizeof drawn);
        masks_draw(&masks, 0, 0, 16, drawn);
        for (int s = 0; s < 16; s++)
            for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
                for (uint32_t e = elements[layer]; e < 128; e++)
                    assert_false(mask_keeps(&drawn[s], layer, e));
    }
}

static void scale_is_the_inverse_of_the_keep_rate(void **state)
{
    (void)state;
    struct masks masks = masks_make(1, 0.2, 1);
    for (int layer = DROPOUT_CONV1; layer <= DROPOUT_CONV3; layer++)
        assert_true(masks.p[layer] == 0.2 && masks.scale[layer] == 1.25f);
    assert_true(masks.p[DROPOUT_FC1] == 1 && masks.scale[DROPOUT_FC1] == 0);
    masks = masks_make(1, 0, 0.5);
    assert_true(masks.scale[DROPOUT_CONV1] == 1 && masks.scale[DROPOUT_FC1] == 2);
}

/* ----- how many -------------------------------------------------------------------------------------- */

enum { SAMPLES = 4096 };

/* Within 4.5 deviations of the binomial, in every layer; p = 0 and p = 1 without exception. */
static void keep_rates_are_those_asked(void **state)
{
    (void)state;
    static struct sample_mask drawn[SAMPLES];
    const double rates[] = {0, 0.001, 0.1, 0.25, 0.5, 0.8, 0.999, 1};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        double p = rates[i];
        struct masks masks = masks_make(1, p, p);
        masks_draw(&masks, i, 0, SAMPLES, drawn);
        for (int layer = 0; layer < DROPOUT_LAYERS; layer++) {
            double n = (double)SAMPLES * elements[layer], kept = 0;
            for (int s = 0; s < SAMPLES; s++)
                kept += __builtin_popcountll(drawn[s].keep[layer][0]) + __builtin_popcountll(drawn[s].keep[layer][1]);
            assert_true(fabs(kept - n * (1 - p)) <= 4.5 * sqrt(n * p * (1 - p)));
        }
    }
}

/* ----- independence ---------------------------------------------------------------------------------- */

enum { BITS = 6 * SAMPLES }; /* a stream: the first six elements (conv1 has no more) of SAMPLES samples */

/* Pearson's chi-square of the 2x2 table of two streams' bits: one degree of freedom, n rho^2 for bits
 * correlated by rho. Chance exceeds LIMIT once in 15,000 pairs; the streams are fixed by their seed. */
static const double LIMIT = 16;

static double chi_square(const uint8_t *a, const uint8_t *b)
{
    double n[2][2] = {{0}};
    for (size_t i = 0; i < BITS; i++)
        n[a[i]][b[i]]++;
    double determinant = n[0][0] * n[1][1] - n[0][1] * n[1][0];
    return BITS * determinant * determinant /
           ((n[0][0] + n[0][1]) * (n[1][0] + n[1][1]) * (n[0][0] + n[1][0]) * (n[0][1] + n[1][1]));
}

/* Masks at positions 0, stride, 2 stride, ... of one layer from element `first` on: stride 64 as a rank
 * of 4 sees its first sample over and over. */
struct stream {
    uint64_t seed, step;
    uint32_t layer, position, stride, first;
};

static void draw_stream(struct stream from, double p, uint8_t *bits)
{
    struct masks masks = masks_make(from.seed, p, p);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct sample_mask drawn;
        masks_draw(&masks, from.step, from.position + s * from.stride, 1, &drawn);
        for (uint32_t e = 0; e < 6; e++)
            *bits++ = mask_keeps(&drawn, from.layer, from.first + e);
    }
}

/* Every stream differs from the first by one thing only; every pair of them is compared. */
static void streams_are_independent(void **state)
{
    (void)state;
    const struct stream streams[] = {
        {1, 5, DROPOUT_CONV1, 0, 64, 0},
        {1, 5, DROPOUT_CONV2, 0, 64, 0}, /* layers */
        {1, 5, DROPOUT_CONV3, 0, 64, 0},
        {1, 5, DROPOUT_FC1, 0, 64, 0},
        {1, 5, DROPOUT_CONV3, 0, 64, 6}, /* other elements of a layer: the next, and past the 64th */
        {1, 5, DROPOUT_CONV3, 0, 64, 64},
        {1, 5, DROPOUT_FC1, 0, 64, 77},
        {1, 5, DROPOUT_CONV1, 1, 64, 0}, /* positions: the neighbour, and those of ranks 1 to 3 */
        {1, 5, DROPOUT_CONV1, 16, 64, 0},
        {1, 5, DROPOUT_CONV1, 32, 64, 0},
        {1, 5, DROPOUT_CONV1, 48, 64, 0},
        {1, 6, DROPOUT_CONV1, 0, 64, 0}, /* steps: the next, and one that differs in its high bits */
        {1, 5 + (UINT64_C(1) << 32), DROPOUT_CONV1, 0, 64, 0},
        {1, 5 + (UINT64_C(1) << 47), DROPOUT_CONV1, 0, 64, 0},
        {2, 5, DROPOUT_CONV1, 0, 64, 0}, /* seeds: the next, and one that differs in its high bits */
        {1 + (UINT64_C(1) << 32), 5, DROPOUT_CONV1, 0, 64, 0},
    };
    enum { STREAMS = sizeof streams / sizeof *streams };
    static uint8_t bits[STREAMS][BITS];
    const double rates[] = {0.5, 0.1};
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < STREAMS; i++) {
            draw_stream(streams[i], rates[r], bits[i]);
            for (int j = 0; j < i; j++)
                assert_true(chi_square(bits[i], bits[j]) < LIMIT);
        }
}

/* Numbers drawn for weights, shuffles and pictures at the same counter otherwise. */
static void purposes_are_independent(void **state)
{
    (void)state;
    static uint8_t masks[BITS], other[BITS];
    draw_stream((struct stream){1, 5, DROPOUT_CONV1, 0, 1, 0}, 0.5, masks);
    for (enum philox_purpose purpose = PHILOX_WEIGHTS; purpose <= PHILOX_SYNTHETIC; purpose++) {
        for (uint32_t i = 0; i < BITS; i++) {
            struct philox_counter at = philox_counter(purpose, DROPOUT_CONV1, 5, i / 6, i % 6 / 4);
            other[i] = philox4x32(at, 1).c[i % 6 % 4] >= philox_threshold(0.5);
        }
        assert_true(chi_square(masks, other) < LIMIT);
    }
}

/* Elements of one mask against each other: all 15 pairs of the first six, a sample apart each. */
static void elements_are_independent(void **state)
{
    (void)state;
    static uint8_t bits[6][BITS], all[6 * BITS];
    for (uint32_t part = 0; part < 6; part++)
        draw_stream((struct stream){3, part, DROPOUT_CONV1, 0, 1, 0}, 0.5, all + part * BITS);
    for (int e = 0; e < 6; e++)
        for (int i = 0; i < BITS; i++)
            bits[e][i] = all[6 * i + e];
    for (int e = 0; e < 6; e++)
        for (int f = 0; f < e; f++)
            assert_true(chi_square(bits[e], bits[f]) < LIMIT);
}

/* The negative control: a stream that copies one bit in 25 from another (rho = 0.04) is found out, and so
 * is one that is the other's opposite as often. */
static void the_statistic_detects_correlation(void **state)
{
    (void)state;
    static uint8_t a[BITS], b[BITS];
    for (int opposite = 0; opposite < 2; opposite++) {
        draw_stream((struct stream){1, 5, DROPOUT_CONV1, 0, 1, 0}, 0.5, a);
        draw_stream((struct stream){1, 6, DROPOUT_CONV1, 0, 1, 0}, 0.5, b);
        assert_true(chi_square(a, b) < LIMIT);
        for (int i = 0; i < BITS; i += 25)
            b[i] = (uint8_t)(a[i] ^ opposite);
        assert_true(chi_square(a, b) > LIMIT);
    }
}

/* ----- ranks ----------------------------------------------------------------------------------------- */

/* Drawn in shares by any number of ranks, the masks of a batch are those one rank draws. */
static void union_over_ranks_is_the_same(void **state)
{
    (void)state;
    static struct sample_mask whole[1030], shared[1030];
    const size_t batches[] = {1, 15, 16, 17, 80, 250, 256, 1030};
    struct masks masks = masks_make(1, 0.5, 0.5);
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        size_t bytes = batches[b] * sizeof *whole;
        masks_draw(&masks, 77, 0, (uint32_t)batches[b], whole);
        for (int size = 1; size <= 64; size++) {
            memset(shared, 0xff, sizeof shared); /* no mask has bits past its end: a gap would show */
            for (int rank = 0; rank < size; rank++) {
                size_t first, last;
                sampler_share(batches[b], rank, size, &first, &last);
                masks_draw(&masks, 77, (uint32_t)first, (uint32_t)(last - first), shared + first);
            }
            assert_memory_equal(shared, whole, bytes);
        }
    }
}

static void no_samples_draw_nothing(void **state)
{
    (void)state;
    struct masks masks = masks_make(1, 0.5, 0.5);
    struct sample_mask untouched = {{{42}}};
    masks_draw(&masks, 0, 16, 0, &untouched);
    assert_int_equal(untouched.keep[0][0], 42);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_follow_the_counter_layout),
        cmocka_unit_test(bits_past_the_last_element_are_zero),
        cmocka_unit_test(scale_is_the_inverse_of_the_keep_rate),
        cmocka_unit_test(keep_rates_are_those_asked),
        cmocka_unit_test(streams_are_independent),
        cmocka_unit_test(purposes_are_independent),
        cmocka_unit_test(elements_are_independent),
        cmocka_unit_test(the_statistic_detects_correlation),
        cmocka_unit_test(union_over_ranks_is_the_same),
        cmocka_unit_test(no_samples_draw_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
