/* The order of an epoch and the ranks' shares of a batch. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exact_sum.h"
#include "philox.h"
#include "sampler.h"

static uint32_t *shuffled(uint64_t seed, uint64_t epoch, size_t count)
{
    uint32_t *order = malloc(count * sizeof *order + 1);
    sampler_shuffle(seed, epoch, count, order);
    return order;
}

static void assert_permutation(const uint32_t *order, size_t count)
{
    uint8_t *seen = calloc(count + 1, 1);
    for (size_t i = 0; i < count; i++) {
        assert_true(order[i] < count);
        assert_int_equal(seen[order[i]]++, 0);
    }
    free(seen);
}

static void test_every_order_is_a_permutation(void **state)
{
    (void)state;
    const size_t counts[] = {0, 1, 2, 3, 4, 5, 31, 100, 4999, 50000};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (uint64_t epoch = 0; epoch < 5; epoch++) {
            uint32_t *order = shuffled(c, epoch, counts[c]);
            assert_permutation(order, counts[c]);
            free(order);
        }
}

/* Recomputed from the header's words alone: the number R of place i is the pair of 32-bit numbers 2i and
 * 2i + 1, and samples are inserted one by one. */
static void test_known_answer(void **state)
{
    (void)state;
    enum { COUNT = 11 };
    const uint64_t seed = 0x123456789abcdef0u, epoch = 0x500000007u; /* its high bits count too */
    uint32_t expected[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        struct philox_counter counter = {{i / 2, 0, 7, 3u << 24 | 5}};
        struct philox_counter r = philox4x32(counter, seed);
        uint64_t number = (uint64_t)r.c[i % 2 * 2] << 32 | r.c[i % 2 * 2 + 1];
        uint32_t place = (uint32_t)((unsigned __int128)number * (i + 1) >> 64);
        expected[i] = i;
        uint32_t moved = expected[place];
        expected[place] = i;
        if (place < i)
            expected[i] = moved;
    }
    uint32_t order[COUNT];
    sampler_shuffle(seed, epoch, COUNT, order);
    assert_memory_equal(order, expected, sizeof order);
}

/* Guards the runs already made: this order must never change. */
static void test_order_is_frozen(void **state)
{
    (void)state;
    static const uint32_t frozen[12] = {3, 4, 6, 10, 0, 1, 11, 2, 7, 9, 5, 8};
    uint32_t order[12];
    sampler_shuffle(1, 0, 12, order);
    assert_memory_equal(order, frozen, sizeof order);
}

static void test_epochs_and_seeds_differ(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    uint32_t *base = shuffled(1, 0, COUNT);
    const uint64_t others[][2] = {{1, 1}, {2, 0}, {1, 1ull << 32}, {1ull << 32 | 1, 0}};
    for (size_t o = 0; o < 4; o++) {
        uint32_t *other = shuffled(others[o][0], others[o][1], COUNT);
        size_t equal = 0;
        for (size_t i = 0; i < COUNT; i++)
            equal += base[i] == other[i];
        assert_true(equal < 10); /* 1 is expected; 10 or more has probability 1e-7 */
        free(other);
    }
    uint32_t *again = shuffled(1, 0, COUNT);
    assert_memory_equal(base, again, COUNT * sizeof *base);
    free(again);
    free(base);
}

/* Over many epochs each sample comes to each place equally often, and so does each ordered pair of
 * samples to the first two places. The bounds are 5 standard deviations of chi-square; rows and columns
 * of the places have fixed sums, which leaves 15 * 15 degrees of freedom and stretches the sum by 16/15. */
static void test_positions_are_uniform(void **state)
{
    (void)state;
    enum { COUNT = 16, EPOCHS = 64000 };
    static unsigned place[COUNT][COUNT], pair[COUNT][COUNT];
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        uint32_t order[COUNT];
        sampler_shuffle(99, epoch, COUNT, order);
        for (size_t i = 0; i < COUNT; i++)
            place[i][order[i]]++;
        pair[order[0]][order[1]]++;
    }
    double places = 0, pairs = 0;
    for (size_t i = 0; i < COUNT; i++)
        for (size_t j = 0; j < COUNT; j++) {
            places += pow(place[i][j] - EPOCHS / 16.0, 2) / (EPOCHS / 16.0) * 15 / 16;
            if (i != j)
                pairs += pow(pair[i][j] - EPOCHS / 240.0, 2) / (EPOCHS / 240.0);
        }
    double place_freedom = 15 * 15, pair_freedom = 16 * 15 - 1;
    assert_true(fabs(places - place_freedom) < 5 * sqrt(2 * place_freedom));
    assert_true(fabs(pairs - pair_freedom) < 5 * sqrt(2 * pair_freedom));
}

static void test_shares_are_disjoint_whole_tiles_in_order(void **state)
{
    (void)state;
    for (int size = 1; size <= 64; size++)
        for (size_t count = 0; count <= 1100; count += count < 300 ? 1 : 37) {
            size_t next = 0, fewest = SIZE_MAX, most = 0, tiles = (count + TILE - 1) / TILE, of_rank_0 = 0;
            for (int rank = 0; rank < size; rank++) {
                size_t first, last;
                sampler_share(count, rank, size, &first, &last);
                assert_int_equal(first, next);
                assert_true(last >= first && last <= count);
                assert_true(first % TILE == 0 || first == count);
                assert_true(last % TILE == 0 || last == count);
                size_t mine = (last - first + TILE - 1) / TILE;
                fewest = mine < fewest ? mine : fewest;
                most = mine > most ? mine : most;
                of_rank_0 = rank == 0 ? mine : of_rank_0;
                next = last;
            }
            assert_int_equal(next, count);
            assert_int_equal(fewest, tiles / (size_t)size);
            assert_true(most - fewest <= 1);
            assert_int_equal(of_rank_0, fewest);
        }
}

/* An epoch as the trainer walks it: batches, tails, shares; any number of ranks. */
static void test_an_epoch_uses_each_sample_once(void **state)
{
    (void)state;
    enum { COUNT = 1237 };
    const size_t batch_sizes[] = {1, 7, 16, 100, 256, COUNT - 1, COUNT, 5000};
    uint32_t *order = shuffled(5, 3, COUNT), *used = calloc(COUNT, sizeof *used);
    for (int size = 1; size <= 64; size++)
        for (size_t b = 0; b < sizeof batch_sizes / sizeof *batch_sizes; b++) {
            size_t used_so_far = 0;
            memset(used, 0, COUNT * sizeof *used);
            for (size_t begin = 0; begin < COUNT; begin += batch_sizes[b]) {
                size_t left = COUNT - begin, count = left < batch_sizes[b] ? left : batch_sizes[b];
                for (int rank = 0; rank < size; rank++) {
                    size_t first, last;
                    sampler_share(count, rank, size, &first, &last);
                    for (size_t i = first; i < last; i++, used_so_far++)
                        assert_int_equal(used[order[begin + i]]++, 0);
                }
            }
            assert_int_equal(used_so_far, COUNT);
        }
    free(used);
    free(order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order_is_a_permutation),
        cmocka_unit_test(test_known_answer),
        cmocka_unit_test(test_order_is_frozen),
        cmocka_unit_test(test_epochs_and_seeds_differ),
        cmocka_unit_test(test_positions_are_uniform),
        cmocka_unit_test(test_shares_are_disjoint_whole_tiles_in_order),
        cmocka_unit_test(test_an_epoch_uses_each_sample_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
