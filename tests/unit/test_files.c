/* Files that are complete or absent, their leftovers, and the paths that cannot be. */
#include "scratch.h"

#include "files.h"

static void assert_holds(const char *path, const char *text)
{
    size_t bytes;
    char *data = scratch_read(path, &bytes);
    assert_string_equal(data, text);
    free(data);
}

static void test_replace_keeps_the_old_file(void **state)
{
    (void)state;
    struct error error = {0};
    assert_true(files_replace("a", "old", "first", 5, &error));
    assert_int_equal(access("old", F_OK), -1);
    assert_true(files_replace("a", "old", "second", 6, &error));
    assert_holds("a", "second");
    assert_holds("old", "first");
    assert_true(files_replace("a", "old", "third", 5, &error));
    assert_holds("a", "third");
    assert_holds("old", "second");
    assert_no_error(&error);
}

static void test_a_kill_between_the_two_renames(void **state)
{
    (void)state;
    struct error error = {0};
    char aside[40];
    scratch_write("a", "first", 5); /* `old` is this same file already, and link's temporary name too */
    assert_int_equal(link("a", "old"), 0);
    snprintf(aside, sizeof aside, "old.tmp-%d", getpid());
    assert_int_equal(link("a", aside), 0);
    assert_true(files_replace("a", "old", "second", 6, &error));
    assert_holds("a", "second");
    assert_holds("old", "first");
    assert_int_equal(access(aside, F_OK), -1);
}

static void test_leftovers_go_and_nothing_else(void **state)
{
    (void)state;
    struct error error = {0};
    static const char *const leftovers[] = {"a.tmp-1", "a.tmp-99999999", "old.tmp-7"};
    static const char *const others[] = {"a.tmp-", "a.tmp-1x", "a.tmp", "b.tmp-1", "xa.tmp-1", "a.tmp-x1"};
    for (size_t i = 0; i < 3; i++)
        scratch_write(leftovers[i], "?", 1);
    for (size_t i = 0; i < 6; i++)
        scratch_write(others[i], "?", 1);
    assert_true(files_replace("a", "old", "new", 3, &error));
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(access(leftovers[i], F_OK), -1);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(access(others[i], F_OK), 0);
}

static void test_a_full_disk_leaves_the_old_file(void **state)
{
    (void)state;
    struct error error = {0};
    char aside[40];
    snprintf(aside, sizeof aside, "a.tmp-%d", getpid());
    assert_true(files_replace("a", "old", "first", 5, &error));
    scratch_limit(3);
    bool done = files_replace("a", "old", "second", 6, &error);
    scratch_limit(RLIM_INFINITY);
    assert_false(done);
    assert_error(&error, EXIT_RUNTIME, "a: cannot be written: File too large");
    assert_holds("a", "first");
    assert_int_equal(access("old", F_OK), -1);
    assert_int_equal(access(aside, F_OK), -1);
}

static void test_paths_that_cannot_be(void **state)
{
    (void)state;
    struct error error = {0};
    char path[4096], deep[5000], name[300];
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';

    assert_false(files_path(deep, "a", path, &error));
    assert_error(&error, EXIT_RUNTIME, "a path of 5001 bytes, 4071 is the most");
    assert_false(files_replace(name, NULL, "x", 1, &error));
    assert_error(&error, EXIT_RUNTIME, "File name too long");
    assert_false(files_replace("missing/a", NULL, "x", 1, &error));
    assert_error(&error, EXIT_RUNTIME, "missing/a: cannot be written: No such file or directory");
    assert_true(files_path("run", "a", path, &error));
    assert_string_equal(path, "run/a");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_replace_keeps_the_old_file),      TEST(test_a_kill_between_the_two_renames),
        TEST(test_leftovers_go_and_nothing_else),   TEST(test_a_full_disk_leaves_the_old_file),
        TEST(test_paths_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
