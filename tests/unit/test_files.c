/* Files that are complete or absent, their leftovers, and the paths that cannot be. */
#include <sys/stat.h>

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
    assert_true(folder_replace(&here, "a", "old", "first", 5, &error));
    assert_int_equal(access("old", F_OK), -1);
    assert_true(folder_replace(&here, "a", "old", "second", 6, &error));
    assert_holds("a", "second");
    assert_holds("old", "first");
    assert_true(folder_replace(&here, "a", "old", "third", 5, &error));
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
    assert_true(folder_replace(&here, "a", "old", "second", 6, &error));
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
    assert_true(folder_replace(&here, "a", "old", "new", 3, &error));
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
    assert_true(folder_replace(&here, "a", "old", "first", 5, &error));
    scratch_limit(3);
    bool done = folder_replace(&here, "a", "old", "second", 6, &error);
    scratch_limit(RLIM_INFINITY);
    assert_false(done);
    assert_error(&error, EXIT_RUNTIME, "a: cannot be written: File too large");
    assert_holds("a", "first");
    assert_int_equal(access("old", F_OK), -1);
    assert_int_equal(access(aside, F_OK), -1);
}

static void test_what_lies_in_the_way(void **state)
{
    (void)state;
    struct error error = {0};
    char aside[40];
    snprintf(aside, sizeof aside, "a.tmp-%d", getpid());
    scratch_write("victim", "precious", 8);
    for (const char *const *name = (const char *const[]){aside, "a", NULL}; *name != NULL; name++) {
        unlink("a");
        assert_int_equal(symlink("victim", *name), 0);
        assert_true(folder_replace(&here, "a", NULL, "new", 3, &error)); /* the link goes, and is not followed */
        assert_holds("a", "new");
        assert_holds("victim", "precious");
    }
    assert_int_equal(mkfifo(aside, 0666), 0);
    assert_true(folder_replace(&here, "a", NULL, "newer", 5, &error));
    assert_holds("a", "newer");
    assert_int_equal(mkdir(aside, 0777), 0);
    assert_false(folder_replace(&here, "a", NULL, "newest", 6, &error));
    assert_error(&error, EXIT_RUNTIME, "./a: cannot be written: Is a directory");
    assert_holds("a", "newer");
    assert_int_equal(rmdir(aside), 0);
    assert_int_equal(mkdir("old", 0777), 0);
    assert_false(folder_replace(&here, "a", "old", "newest", 6, &error));
    assert_error(&error, EXIT_RUNTIME, "./old: cannot be written: Is a directory");
    assert_holds("a", "newer");

    assert_int_equal(symlink("victim", "link"), 0);
    assert_int_equal(folder_open_file(&here, "link", O_RDWR | O_CREAT, &error), -1);
    assert_error(&error, EXIT_RUNTIME, "./link is a symbolic link: dtrain writes regular files only");
    assert_int_equal(mkfifo("pipe", 0666), 0);
    assert_int_equal(folder_open_file(&here, "pipe", O_RDWR | O_CREAT, &error), -1);
    assert_error(&error, EXIT_RUNTIME, "./pipe is no regular file");
    assert_int_equal(folder_open_file(&here, "pipe", O_WRONLY, &error), -1);
    assert_error(&error, EXIT_RUNTIME, "./pipe is no regular file");
    assert_null(folder_read_json(&here, "pipe"));
}

static void test_a_folder_that_is_another(void **state)
{
    (void)state;
    struct error error = {0};
    struct folder run;
    assert_int_equal(mkdir("run", 0777), 0);
    assert_true(folder_open(&run, "run", &error));
    run.lock = folder_open_file(&run, "lock", O_RDWR | O_CREAT, &error);
    assert_true(folder_replace(&run, "a", NULL, "old", 3, &error));

    assert_int_equal(rename("run/lock", "run/key"), 0);
    assert_false(folder_replace(&run, "a", NULL, "new", 3, &error));
    assert_error(&error, EXIT_RUNTIME, "run/lock was removed or replaced");
    scratch_write("run/lock", "another's", 9);
    assert_false(folder_replace(&run, "a", NULL, "new", 3, &error));
    assert_error(&error, EXIT_RUNTIME, "run/lock was removed or replaced");
    assert_int_equal(rename("run/key", "run/lock"), 0);

    assert_int_equal(rename("run", "moved"), 0);
    assert_false(folder_replace(&run, "a", NULL, "new", 3, &error));
    assert_error(&error, EXIT_RUNTIME, "run was removed, moved or replaced");
    assert_int_equal(mkdir("run", 0777), 0);
    assert_false(folder_replace(&run, "a", NULL, "new", 3, &error));
    assert_error(&error, EXIT_RUNTIME, "run was removed, moved or replaced");
    assert_int_equal(rmdir("run"), 0); /* it is empty */
    assert_holds("moved/a", "old");
    assert_int_equal(symlink("moved", "run"), 0); /* the same folder by another way */
    assert_true(folder_replace(&run, "a", NULL, "new", 3, &error));
    folder_close(&run);
}

static void test_paths_that_cannot_be(void **state)
{
    (void)state;
    struct error error = {0};
    struct folder folder;
    char deep[5000], name[300];
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';

    assert_false(folder_open(&folder, deep, &error));
    assert_error(&error, EXIT_RUNTIME, "a path of 4999 bytes, 4000 is the most");
    assert_false(folder_open(&folder, "missing", &error));
    assert_error(&error, EXIT_RUNTIME, "missing: cannot be opened: No such file or directory");
    folder_close(&folder);
    assert_false(folder_replace(&here, name, NULL, "x", 1, &error));
    assert_error(&error, EXIT_RUNTIME, "File name too long");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_replace_keeps_the_old_file),    TEST(test_a_kill_between_the_two_renames),
        TEST(test_leftovers_go_and_nothing_else), TEST(test_a_full_disk_leaves_the_old_file),
        TEST(test_paths_that_cannot_be),          TEST(test_what_lies_in_the_way),
        TEST(test_a_folder_that_is_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
