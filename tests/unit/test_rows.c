/* Epochs of several nets, shown when all have closed them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "src/program/rows.h"

static struct trial trials[3];

static void setup_trials(void)
{
    for (int i = 0; i < 3; i++)
        trials[i].net = lenet5_nets[i == 2 ? 0 : i]; /* A and B, and A with another seed */
}

static void close_epoch(struct rows *rows, int trial, uint64_t epoch, double loss)
{
    struct event event = {.kind = EVENT_EPOCH, .trial = trial, .metrics = {.epoch = epoch, .loss = loss}};
    rows_add(rows, &event);
}

static void assert_next(struct rows *rows, uint64_t epoch, int closed_a, int closed_b)
{
    struct row *row = rows_take(rows);
    assert_non_null(row);
    assert_int_equal(row->epoch, epoch);
    assert_int_equal(row->nets[0].closed, closed_a);
    assert_int_equal(row->nets[1].closed, closed_b);
    assert_int_equal(rows_taken(rows), epoch);
    free(row);
}

static void test_a_row_waits_for_the_slowest(void **state)
{
    (void)state;
    setup_trials();
    struct rows *rows = rows_open(trials, 3, (uint64_t[]){0, 0, 0});
    assert_null(rows_take(rows));
    for (uint64_t epoch = 1; epoch <= 5; epoch++)
        close_epoch(rows, 1, epoch, 1);
    close_epoch(rows, 0, 1, 2);
    assert_null(rows_take(rows));
    close_epoch(rows, 2, 1, 4);
    struct row *row = rows_take(rows);
    assert_non_null(row);
    assert_true(row->nets[0].loss == 6 && row->nets[0].closed == 2 && row->nets[1].loss == 1 &&
                row->nets[0].checked == 0);
    free(row);
    assert_null(rows_take(rows));
    assert_int_equal(rows_taken(rows), 1);
    rows_close(rows);
}

static void test_nobody_waits_for_one_that_failed(void **state)
{
    (void)state;
    setup_trials();
    struct rows *rows = rows_open(trials, 2, (uint64_t[]){0, 0});
    close_epoch(rows, 0, 1, 1);
    close_epoch(rows, 0, 2, 1);
    close_epoch(rows, 1, 1, 1);
    rows_add(rows, &(struct event){.kind = EVENT_FAILURE, .trial = 1});
    assert_next(rows, 1, 1, 1);
    assert_next(rows, 2, 1, 0);
    assert_null(rows_take(rows));
    rows_close(rows);
}

static void test_resumed_from_unlike_epochs(void **state)
{
    (void)state;
    setup_trials();
    struct rows *rows = rows_open(trials, 2, (uint64_t[]){7, 9});
    close_epoch(rows, 0, 8, 1);
    close_epoch(rows, 1, 10, 1);
    assert_next(rows, 8, 1, 0);
    assert_null(rows_take(rows));
    close_epoch(rows, 0, 9, 1);
    assert_next(rows, 9, 1, 0);
    close_epoch(rows, 0, 10, 1);
    assert_next(rows, 10, 1, 1);
    rows_close(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_row_waits_for_the_slowest),
        cmocka_unit_test(test_nobody_waits_for_one_that_failed),
        cmocka_unit_test(test_resumed_from_unlike_epochs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
