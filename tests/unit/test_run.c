/* run.h: numbers as text, and how many terms there may be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <float.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run.h"

static void test_numbers_read_back(void **state)
{
    static const double numbers[] = {0, 0.1, 1.0 / 3, 0.9, 1e-3, DBL_MIN, DBL_MAX, 123456789.123456789};
    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char text[VALUE_BYTES];
        run_print_number(numbers[i], text);
        assert_true(strtod(text, NULL) == numbers[i]);
    }
    char text[VALUE_BYTES];
    run_print_number(0.1, text);
    assert_string_equal(text, "0.1");
}

static void add_terms(struct terms *terms, int count)
{
    for (int i = 0; i < count; i++)
        strcpy(run_add_term(terms, "key", "option")->value, "value");
}

static void test_a_term_too_many_ends_the_job(void **state)
{
    struct terms terms = {0};
    int status;
    (void)state;
    add_terms(&terms, MOST_TERMS);
    assert_int_equal(terms.count, MOST_TERMS);
    pid_t child = fork();
    if (child == 0) {
        add_terms(&terms, 1);
        _exit(EXIT_DONE);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_RUNTIME);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_read_back),
        cmocka_unit_test(test_a_term_too_many_ends_the_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
