/* The one table of parameters, the initial weights, the digest, and the four nets of the study. */
#include "lenet5.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const struct parameter *const table = lenet5_parameters;

/* Tensors lie one after the other without gaps, and a count is the product of its shape. */
static void table_is_one_gapless_array(void **state)
{
    (void)state;
    size_t offset = 0;
    for (size_t p = 0; p < LENET5_PARAMETERS; p++) {
        size_t count = 1;
        for (size_t d = 0; d < 4; d++)
            if (d < table[p].dimensions)
                count *= table[p].shape[d];
            else
                assert_int_equal(table[p].shape[d], 0);
        assert_int_equal(table[p].count, count);
        assert_int_equal(table[p].offset, offset);
        offset += count;
    }
    assert_int_equal(offset, LENET5_WEIGHTS);
}

/* Every layer has a weight and a bias of its outputs, under PyTorch's names; both share the weight's fan-in:
 * the inputs of one output, all dimensions but the first. */
static void table_pairs_weights_and_biases(void **state)
{
    (void)state;
    static const char *const layers[] = {"conv1", "conv2", "conv3", "fc1", "fc2"};
    for (size_t l = 0; l < 5; l++) {
        const struct parameter *weight = &table[2 * l], *bias = weight + 1;
        char name[32];
        assert_string_equal(weight->name, strcat(strcpy(name, layers[l]), ".weight"));
        assert_string_equal(bias->name, strcat(strcpy(name, layers[l]), ".bias"));
        assert_int_equal(bias->dimensions, 1);
        assert_int_equal(bias->shape[0], weight->shape[0]);
        assert_int_equal(weight->fan_in, weight->count / weight->shape[0]);
        assert_int_equal(bias->fan_in, weight->fan_in);
    }
}

/* The shapes chain up: a layer's inputs are the outputs of the one before. */
static void table_is_lenet5(void **state)
{
    (void)state;
    size_t side = LENET5_SIDE, channels = LENET5_CHANNELS;
    for (size_t l = 0; l < 3; l++) {
        const struct parameter *weight = &table[2 * l];
        assert_int_equal(weight->shape[1], channels);
        assert_int_equal(weight->shape[2], 5);
        assert_int_equal(weight->shape[3], 5);
        channels = weight->shape[0];
        side = side - 4;
        if (l < 2) {
            assert_int_equal(side % 2, 0);
            side /= 2;
        }
    }
    assert_int_equal(side, 1);
    assert_int_equal(table[6].shape[1], channels);
    assert_int_equal(table[8].shape[1], table[6].shape[0]);
    assert_int_equal(table[8].shape[0], LENET5_CLASSES);
}

/* Uniform in [-b, b), b = 1/sqrt(fan_in): within the bounds, and mean and variance within 4.5 deviations
 * of their estimates from n numbers, b/sqrt(3n) and b^2/3 sqrt(0.8/n). Small tensors are bounded only. */
static void initial_weights_are_uniform(void **state)
{
    (void)state;
    static float weights[LENET5_WEIGHTS];
    lenet5_initialise(1, weights);
    for (size_t p = 0; p < LENET5_PARAMETERS; p++) {
        double n = (double)table[p].count, bound = 1 / sqrt((double)table[p].fan_in), sum = 0, squares = 0;
        for (size_t i = 0; i < table[p].count; i++) {
            double w = weights[table[p].offset + i];
            assert_true(fabs(w) <= (float)bound);
            sum += w;
            squares += w * w;
        }
        assert_true(fabs(sum / n) < 4.5 * bound / sqrt(3 * n));
        if (n >= 100)
            assert_true(fabs(squares / n / (bound * bound / 3) - 1) < 4.5 * sqrt(0.8 / n));
    }
}

/* Tensors draw from streams of their own: no two begin with the same numbers, up to their scale. */
static void initial_tensors_differ(void **state)
{
    (void)state;
    static float weights[LENET5_WEIGHTS];
    lenet5_initialise(1, weights);
    for (size_t p = 0; p < LENET5_PARAMETERS; p++)
        for (size_t q = 0; q < p; q++) {
            double a = weights[table[p].offset] * sqrt((double)table[p].fan_in);
            double b = weights[table[q].offset] * sqrt((double)table[q].fan_in);
            assert_true(fabs(a - b) > 1e-6);
        }
}

static void initial_weights_are_a_pure_function_of_the_seed(void **state)
{
    (void)state;
    static float one[LENET5_WEIGHTS + 1], again[LENET5_WEIGHTS], two[LENET5_WEIGHTS], high[LENET5_WEIGHTS];
    one[LENET5_WEIGHTS] = 42;
    lenet5_initialise(1, one);
    lenet5_initialise(2, two);
    lenet5_initialise(1 + (UINT64_C(1) << 32), high);
    lenet5_initialise(1, again);
    assert_memory_equal(one, again, sizeof again);
    assert_true(one[LENET5_WEIGHTS] == 42); /* nothing is written past the end */
    size_t same_two = 0, same_high = 0;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        same_two += one[i] == two[i];
        same_high += one[i] == high[i];
    }
    assert_true(same_two < 10 && same_high < 10); /* of 62,006 pairs of 24-bit numbers: chance gives 0.004 */
}

/* One flipped bit anywhere, the sign of a zero included, is another digest. */
static void digest_sees_every_bit(void **state)
{
    (void)state;
    static float weights[LENET5_WEIGHTS];
    lenet5_initialise(1, weights);
    weights[100] = 0;
    uint64_t digest = lenet5_digest(weights);
    assert_true(lenet5_digest(weights) == digest);
    const size_t places[] = {0, 100, LENET5_WEIGHTS / 2, LENET5_WEIGHTS - 1};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        for (int bit = 0; bit < 32; bit++) {
            float kept = weights[places[i]];
            uint32_t bits;
            memcpy(&bits, &kept, sizeof bits);
            bits ^= UINT32_C(1) << bit;
            memcpy(&weights[places[i]], &bits, sizeof bits);
            assert_true(lenet5_digest(weights) != digest);
            weights[places[i]] = kept;
        }
    assert_true(lenet5_digest(weights) == digest);
}

/* A none, B fully connected, C convolutions, D both: p = 0.5. */
static void nets_are_those_of_the_study(void **state)
{
    (void)state;
    for (int n = 0; n < NETS; n++) {
        assert_int_equal(lenet5_nets[n].name, 'A' + n);
        assert_true(lenet5_nets[n].p_fc == ((n & 1) ? 0.5 : 0.0));
        assert_true(lenet5_nets[n].p_conv == ((n & 2) ? 0.5 : 0.0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_one_gapless_array),
        cmocka_unit_test(table_pairs_weights_and_biases),
        cmocka_unit_test(table_is_lenet5),
        cmocka_unit_test(initial_weights_are_uniform),
        cmocka_unit_test(initial_tensors_differ),
        cmocka_unit_test(initial_weights_are_a_pure_function_of_the_seed),
        cmocka_unit_test(digest_sees_every_bit),
        cmocka_unit_test(nets_are_those_of_the_study),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
