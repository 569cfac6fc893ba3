/* Memory shared between processes: seen by those that were told where it is, and by nobody else. */
#include "src/comm/shared_memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { BYTES = 100000 };

/* In a process of its own: whether it finds the memory, holding `expected` at its end, and answers there. */
static bool other_process_finds(const struct shared_memory *memory, char expected)
{
    pid_t child = fork();
    if (child == 0) {
        char *there = shared_memory_open(memory);
        if (there == NULL || there[memory->bytes - 1] != expected)
            _exit(1);
        there[0] = (char)(expected + 1);
        shared_memory_close(there, memory->bytes);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void others_see_what_is_written(void **state)
{
    (void)state;
    struct shared_memory memory;
    char *here = shared_memory_make(BYTES, &memory);
    assert_non_null(here);
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal(here[i], 0);
    here[BYTES - 1] = 'a';
    assert_true(other_process_finds(&memory, 'a'));
    assert_int_equal(here[0], 'b');

    shared_memory_unpublish(&memory);
    assert_false(other_process_finds(&memory, 'a'));
    here[1] = 'c'; /* this process still has it */
    shared_memory_close(here, BYTES);
}

static void something_else_is_not_taken_for_it(void **state)
{
    (void)state;
    struct shared_memory memory, other;
    char *here = shared_memory_make(BYTES, &memory);
    assert_non_null(here);
    other = memory;
    other.nonce++;
    assert_null(shared_memory_open(&other));
    other = memory;
    other.bytes++;
    assert_null(shared_memory_open(&other));
    other = memory;
    other.descriptor = STDERR_FILENO;
    assert_null(shared_memory_open(&other));
    other.descriptor = -1;
    assert_null(shared_memory_open(&other));
    shared_memory_unpublish(&memory);
    shared_memory_close(here, BYTES);
    shared_memory_close(NULL, 0);
}

static void too_much_is_refused(void **state)
{
    (void)state;
    struct shared_memory memory;
    assert_null(shared_memory_make(SIZE_MAX / 4, &memory));
    assert_int_equal(memory.descriptor, -1);
    assert_null(shared_memory_open(&memory));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(others_see_what_is_written),
        cmocka_unit_test(something_else_is_not_taken_for_it),
        cmocka_unit_test(too_much_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
