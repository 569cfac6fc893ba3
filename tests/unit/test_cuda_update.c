/* The CUDA kernels that end a step: the whole gradient and the update, run on the host (tests/support/shim). Every
 * launch is made in three orders of blocks and threads, which must give the same bits. */
#include <float.h>

#include "cuda_test.h"
#include "exact_sum.h"

enum { TABLES = 6 };
static const size_t widths[TABLES] = {CUDA_CONV1_WIDTH, CUDA_CONV2_WIDTH, 120, 84, 10, 1};

static size_t rows_in(int t, uint32_t count)
{
    return t < 2 ? cuda_parts(count) : count;
}

/* Where table t's sums go. */
static size_t into(int t)
{
    return t == 5 ? (size_t)CUDA_SUMS_LOSS : lenet5_parameters[t < 2 ? 2 * t : 2 * t + 1].offset;
}

static struct cuda_rows rows_of(float *const *tables)
{
    return (struct cuda_rows){tables[0], tables[1], tables[2], tables[3], tables[4], tables[5]};
}

static bool is_in_no_table(size_t i)
{
    bool in = false;
    for (int t = 0; t < 5; t++)
        in |= i >= into(t) && i < into(t) + widths[t];
    return i < LENET5_WEIGHTS && !in;
}

/* As the kernel adds its parts up, in order. */
static float split_sum(uint32_t count, size_t i)
{
    float sum = 0;
    for (uint32_t split = 0; split < cuda_splits(count); split++)
        sum += fine(30, split * LENET5_WEIGHTS + i);
    return sum;
}

static void check_sums(uint32_t count, float *const *tables, const int64_t *sums)
{
    for (int t = 0; t < TABLES; t++)
        for (size_t c = 0; c < widths[t]; c++) {
            double want = 0;
            for (size_t n = 0; n < rows_in(t, count); n++)
                want += tables[t][n * widths[t] + c];
            assert_near("sum", into(t) + c, (double)sums[into(t) + c] * EXACT_UNIT, want, 1e-7 * (1 + count));
        }
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        if (is_in_no_table(i))
            assert_int_equal(sums[i], units(split_sum(count, i)));
    assert_int_equal(sums[CUDA_SUMS_REFUSED], 0);
    assert_int_equal(sums[CUDA_SUMS_STOP], count % 2);
}

static void check_finish(uint32_t count)
{
    float *tables[TABLES];
    float *gradient = filled(fine, 30, cuda_splits(count) * (size_t)LENET5_WEIGHTS); /* of no samples there is none */
    int32_t *wish = guarded_new(sizeof *wish, 0);
    *wish = 3;
    for (int t = 0; t < TABLES; t++)
        tables[t] = filled(fine, 20 + (uint32_t)t, rows_in(t, count) * widths[t]);
    int64_t *first = NULL;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        int64_t *sums = sums_new();
        sums[CUDA_SUMS_REFUSED] = 0;
        RUN(cuda_finish_gradient(rows_of(tables), count, count > 0 ? gradient : NULL, count % 2 ? wish : NULL, sums,
                                 NULL));
        check_sums(count, tables, sums);
        if (cuda_host.order == 0)
            first = guarded_copy(sums, CUDA_SUMS * sizeof *sums);
        assert_memory_equal(sums, first, CUDA_SUMS * sizeof *sums);
        guarded_free(sums);
    }
    guarded_free(first);
    guarded_free(wish);
    guarded_free(gradient);
    for (int t = 0; t < TABLES; t++)
        guarded_free(tables[t]);
}

static void tables_are_summed(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 31, 32, 33, 255, 256, 300};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        check_finish(counts[i]);
}

enum { REFUSED_COUNT = 2 * TILE + 1 }; /* three tiles */

/* Whether a gradient with this number at one place of the weights, or else at the end of one table, is
 * refused. */
static bool refused(size_t place, int table, float number)
{
    cuda_host.order = 0;
    float *tables[TABLES], *gradient = guarded_floats(2 * LENET5_WEIGHTS); /* in two splits */
    int64_t *sums = sums_new();
    memset(gradient, 0, 2 * LENET5_WEIGHTS * sizeof *gradient);
    for (int t = 0; t < TABLES; t++)
        tables[t] = filled(fine, 31, REFUSED_COUNT * widths[t]);
    *(table < TABLES ? &tables[table][REFUSED_COUNT * widths[table] - 1] : &gradient[place]) = number;
    sums[CUDA_SUMS_REFUSED] = 0;
    RUN(cuda_finish_gradient(rows_of(tables), REFUSED_COUNT, gradient, NULL, sums, NULL));
    int64_t slot = sums[CUDA_SUMS_REFUSED], sum = sums[place];
    for (int t = 0; t < TABLES; t++)
        guarded_free(tables[t]);
    guarded_free(gradient);
    guarded_free(sums);
    assert_true(slot == 0 || slot == 1);
    if (table == TABLES)
        assert_int_equal(sum, slot != 0 ? 0 : units(number));
    return slot != 0;
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    const float limit = REFUSED_COUNT * EXACT_LIMIT, below = nextafterf(limit, 0);
    const float numbers[] = {NAN, INFINITY, -INFINITY, -FLT_MAX, limit, -limit, below, -below, EXACT_LIMIT};
    const size_t places[] = {2872, 50871, 50992, 61071, 61156, 61995}; /* weights, at their ends */
    for (size_t i = 0; i < 9; i++)
        assert_true(refused(places[i % 6], TABLES, numbers[i]) == (i < 6));
    for (size_t i = 0; i < 6; i++)
        assert_true(refused(places[i], TABLES, NAN));
    for (int t = 0; t < TABLES; t++)
        assert_true(refused(0, t, INFINITY));
}

static void numbers_are_rounded_to_even(void **state)
{
    (void)state;
    const float halves[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0x1p-30f}; /* of a unit */
    const int64_t want[] = {0, 2, 2, 0, -2, 0};
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(units(halves[i] * EXACT_UNIT), want[i]);
        assert_false(refused(2872, TABLES, halves[i] * (float)EXACT_UNIT));
    }
}

/* The state of an update: all that cuda_sgd reads and writes. */
struct replica {
    int64_t *sums;
    float *velocity, *weights;
    struct cuda_step *step;
};

static struct replica replica_new(struct cuda_step step)
{
    struct replica r = {sums_new(), filled(fine, 41, LENET5_WEIGHTS), filled(fine, 42, LENET5_WEIGHTS),
                        guarded_copy(&step, sizeof step)};
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        r.sums[i] = units(fine(40, i));
    r.sums[CUDA_SUMS_LOSS] = 590;
    r.sums[CUDA_SUMS_STOP] = r.sums[CUDA_SUMS_REFUSED] = 0;
    return r;
}

static void replica_free(struct replica *r)
{
    guarded_free(r->sums);
    guarded_free(r->velocity);
    guarded_free(r->weights);
    guarded_free(r->step);
}

/* Whether the update was applied, and to the right numbers. */
static bool updated(const struct replica *r, float momentum, uint32_t samples, float learning_rate)
{
    if (r->weights[0] == fine(42, 0)) {
        for (size_t i = 0; i < LENET5_WEIGHTS; i++)
            assert_true(r->weights[i] == fine(42, i) && r->velocity[i] == fine(41, i));
        return false;
    }
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        double v = (double)momentum * fine(41, i) + fine(40, i) / (double)samples;
        assert_near("velocity", i, r->velocity[i], v, 2e-7);
        assert_near("weight", i, r->weights[i], fine(42, i) - (double)learning_rate * v, 2e-7);
    }
    return true;
}

static const struct cuda_step before = {
    .step = 0xffffffff, .position = 512, .learning_rate = 0.01f, .loss = 100, .applied = 4};

static void an_update_moves_the_step_on(void **state)
{
    (void)state;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        struct replica r = replica_new(before);
        RUN(cuda_sgd(0.9f, 80, r.sums, r.velocity, r.weights, r.step, NULL));
        assert_true(updated(&r, 0.9f, 80, 0.01f));
        const struct cuda_step after = {
            .step = 0x100000000, .position = 592, .learning_rate = 0.01f, .loss = 690, .applied = 5};
        assert_memory_equal(r.step, &after, sizeof after);
        replica_free(&r);
    }
}

static void the_step_that_says_stop_is_the_last(void **state)
{
    (void)state;
    cuda_host.order = 0;
    struct replica r = replica_new(before);
    r.sums[CUDA_SUMS_STOP] = 2;
    RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
    assert_true(updated(&r, 0.9f, 256, 0.01f));
    struct cuda_step after = *r.step;
    assert_true(after.stopped == 1 && after.applied == 5);
    r.sums[CUDA_SUMS_STOP] = 0;
    RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
    assert_true(updated(&r, 0.9f, 256, 0.01f));
    assert_memory_equal(r.step, &after, sizeof after);
    replica_free(&r);
}

static void a_refused_step_is_not_applied_nor_any_after(void **state)
{
    (void)state;
    for (cuda_host.order = 0; cuda_host.order < ORDERS; cuda_host.order++) {
        struct replica r = replica_new(before);
        struct cuda_step after = before;
        after.not_finite = 1;
        for (int again = 0; again < 2; again++) {
            r.sums[CUDA_SUMS_REFUSED] = again ? 0 : 1;
            RUN(cuda_sgd(0.9f, 256, r.sums, r.velocity, r.weights, r.step, NULL));
            assert_false(updated(&r, 0.9f, 256, 0.01f));
            assert_memory_equal(r.step, &after, sizeof after);
        }
        replica_free(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_summed),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(numbers_are_rounded_to_even),
        cmocka_unit_test(an_update_moves_the_step_on),
        cmocka_unit_test(the_step_that_says_stop_is_the_last),
        cmocka_unit_test(a_refused_step_is_not_applied_nor_any_after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
