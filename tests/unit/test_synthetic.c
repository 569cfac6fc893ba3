/* The drawn stand-in for CIFAR-10: its name, its pictures, its place in the cache. */
#include "scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "dataset.h"
#include "synthetic.h"

/* --- its name --------------------------------------------------------------------------------- */

static void test_sizes_are_read(void **state)
{
    (void)state;
    const struct {
        const char *text;
        size_t train, test;
    } good[] = {
        {"synthetic", 50000, 10000},
        {"synthetic:5+1", 5, 1},
        {"synthetic:1000000+1000000", 1000000, 1000000},
        {"synthetic:00500+020", 500, 20},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        size_t train = 0, test = 0;
        struct error error = {0};
        assert_true(synthetic_parse(good[i].text, &train, &test, &error));
        assert_int_equal(train, good[i].train);
        assert_int_equal(test, good[i].test);
    }
}

static void test_bad_sizes_are_usage_errors(void **state)
{
    (void)state;
    const char *const bad[] = {
        "synthetic:",          "synthetic:500",
        "synthetic:500+",      "synthetic:+20",
        "synthetic:0+20",      "synthetic:500+0",
        "synthetic:501+20",    "synthetic:1000005+1",
        "synthetic:5+1000001", "synthetic:-5+20",
        "synthetic: 5+20",     "synthetic:5+20x",
        "synthetic:5+ 20",     "synthetic:5.0+20",
        "synthetic:500+20+20", "synthetic:0x50+20",
        "synthetic:++20",      "synthetic:500,20",
        "synthetic:1e3+20",    "synthetic:18446744073709551621+20", /* 2^64 + 5 */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size_t train, test;
        struct error error = {0};
        assert_false(synthetic_parse(bad[i], &train, &test, &error));
        assert_non_null(strstr(error.text, bad[i]));
        assert_error(&error, EXIT_USAGE, "synthetic:50000+10000");
    }
}

static void test_directories_are_left_to_others(void **state)
{
    (void)state;
    const char *const others[] = {"", "data", "./synthetic", "synthetic/", "synthetic-500-20", "Synthetic"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        size_t train, test;
        struct error error = {0};
        assert_false(synthetic_parse(others[i], &train, &test, &error));
        assert_no_error(&error);
    }
}

/* --- its pictures ----------------------------------------------------------------------------- */

static uint64_t hash_of(bool test_set, uint32_t count)
{
    uint8_t *records = malloc(count * RECORD_BYTES);
    for (uint32_t i = 0; i < count; i++)
        synthetic_draw(test_set, i, records + i * RECORD_BYTES);
    uint64_t hash = XXH64(records, count * RECORD_BYTES, 0);
    free(records);
    return hash;
}

/* The same bytes on every machine and with every compiler; sets in caches must never go stale. */
static void test_known_answer(void **state)
{
    (void)state;
    assert_int_equal(hash_of(false, 100), 0x84c8d142b08c3d8cu);
    assert_int_equal(hash_of(true, 20), 0x975d0827eec49b41u);
}

static int by_value(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(uint64_t));
}

static void test_classes_are_balanced_and_no_picture_comes_twice(void **state)
{
    (void)state;
    enum { EACH = 2000 };
    static uint64_t hashes[2 * EACH];
    unsigned labels[LENET5_CLASSES] = {0};
    for (uint32_t i = 0; i < 2 * EACH; i++) {
        uint8_t record[RECORD_BYTES];
        synthetic_draw(i >= EACH, i % EACH, record);
        assert_true(record[0] < LENET5_CLASSES);
        labels[record[0]]++;
        hashes[i] = XXH64(record + 1, LENET5_PIXELS, 0);
    }
    for (size_t c = 0; c < LENET5_CLASSES; c++)
        assert_int_equal(labels[c], 2 * EACH / LENET5_CLASSES);
    qsort(hashes, 2 * EACH, sizeof *hashes, by_value);
    for (size_t i = 1; i < 2 * EACH; i++)
        assert_true(hashes[i] != hashes[i - 1]);
}

/* Contrast, and neither dark nor blown out on the whole: the mean and deviation of CIFAR-10 are near
 * 121 and 64. */
static void test_pictures_use_the_range(void **state)
{
    (void)state;
    enum { PICTURES = 500 };
    double sum = 0, squares = 0, n = (double)PICTURES * LENET5_PIXELS;
    for (uint32_t i = 0; i < PICTURES; i++) {
        uint8_t record[RECORD_BYTES];
        synthetic_draw(false, i, record);
        for (size_t p = 1; p < RECORD_BYTES; p++) {
            sum += record[p];
            squares += (double)record[p] * record[p];
        }
    }
    double mean = sum / n, variance = squares / n - mean * mean;
    assert_true(mean > 110 && mean < 145);
    assert_true(variance > 45 * 45 && variance < 75 * 75);
}

/* --- its place in the cache ------------------------------------------------------------------- */

static int enter_with_cache(void **state)
{
    return scratch_enter(state) || setenv("XDG_CACHE_HOME", *state, 1);
}

/* How many names, those of temporaries too, there are in a directory. */
static size_t count_names(const char *path)
{
    DIR *directory = opendir(path);
    assert_non_null(directory);
    size_t count = 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return count;
}

static void assert_is_set(const char *directory, size_t train, size_t test)
{
    struct dataset data;
    struct error error = {0};
    if (!dataset_open(&data, directory, &error))
        fail_msg("%s", error.text);
    assert_int_equal(data.train.count, train);
    assert_int_equal(data.test.count, test);
    for (size_t i = 0; i < train + test; i++) {
        uint8_t record[RECORD_BYTES];
        bool test_set = i >= train;
        size_t within = test_set ? i - train : i;
        synthetic_draw(test_set, (uint32_t)within, record);
        assert_memory_equal(split_record(test_set ? &data.test : &data.train, within), record, RECORD_BYTES);
    }
    dataset_close(&data);
}

static void test_set_is_made_once(void **state)
{
    char directory[4096], expected[4096];
    struct error error = {0};
    assert_true(synthetic_make(50, 7, directory, &error));
    snprintf(expected, sizeof expected, "%s/dtrain/synthetic-50-7", (char *)*state);
    assert_string_equal(directory, expected);
    assert_is_set(directory, 50, 7);
    assert_int_equal(count_names("dtrain"), 1);
    struct stat before, after;
    assert_int_equal(stat("dtrain/synthetic-50-7/test_batch.bin", &before), 0);
    assert_true(synthetic_make(50, 7, directory, &error));
    assert_int_equal(stat("dtrain/synthetic-50-7/test_batch.bin", &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_true(synthetic_make(5, 1, directory, &error)); /* another size, beside it */
    assert_is_set(directory, 5, 1);
}

static void test_several_processes_make_it_at_once(void **state)
{
    (void)state;
    enum { PROCESSES = 4 };
    for (size_t round = 1; round <= 10; round++) {
        int start[2];
        assert_int_equal(pipe(start), 0);
        pid_t children[PROCESSES];
        for (int p = 0; p < PROCESSES; p++) {
            children[p] = fork();
            if (children[p] == 0) {
                char directory[4096], go;
                struct error error = {0};
                close(start[1]);
                (void)!read(start[0], &go, 1); /* returns for all as the parent closes its end */
                _exit(synthetic_make(100 * round, 10, directory, &error) ? 0 : (int)error.code);
            }
        }
        close(start[0]);
        close(start[1]);
        for (int p = 0; p < PROCESSES; p++) {
            int status;
            assert_int_equal(waitpid(children[p], &status, 0), children[p]);
            assert_int_equal(status, 0);
        }
        assert_int_equal(count_names("dtrain"), round);
    }
    char directory[4096];
    struct error error = {0};
    assert_true(synthetic_make(1000, 10, directory, &error));
    assert_is_set(directory, 1000, 10);
}

static void test_a_damaged_set_is_drawn_anew(void **state)
{
    (void)state;
    char directory[4096];
    struct error error = {0};
    for (int damage = 0; damage < 6; damage++) {
        assert_true(synthetic_make(50, 7, directory, &error));
        assert_int_equal(chdir(directory), 0);
        if (damage == 0)
            unlink("data_batch_3.bin");
        else if (damage == 1)
            assert_int_equal(truncate("test_batch.bin", 3 * RECORD_BYTES), 0);
        else if (damage == 2)
            unlink("xxh64");
        else if (damage == 3)
            scratch_write("xxh64", "0123456789abcdef\n", 17);
        else if (damage == 4) /* now "1" is missing, and "2" another */
            assert_int_equal(rename("data_batch_1.bin", "data_batch_2.bin"), 0);
        FILE *file = damage == 5 ? fopen("data_batch_5.bin", "r+b") : NULL;
        if (file != NULL) {
            fseek(file, -1, SEEK_END);
            fputc('x', file);
            fclose(file);
        }
        assert_int_equal(chdir("../.."), 0);
        assert_true(synthetic_make(50, 7, directory, &error));
        assert_is_set(directory, 50, 7);
        assert_int_equal(count_names("dtrain"), 1);
    }
}

static void test_what_is_abandoned_goes(void **state)
{
    (void)state;
    char directory[4096];
    struct error error = {0};
    assert_true(synthetic_make(50, 7, directory, &error));
    assert_int_equal(mkdir("dtrain/synthetic-50-7.tmp-abcdef", 0700), 0);
    scratch_write("dtrain/synthetic-50-7.tmp-abcdef/data_batch_1.bin", "half", 4);
    assert_int_equal(utimensat(AT_FDCWD, "dtrain/synthetic-50-7.tmp-abcdef", (struct timespec[2]){0}, 0), 0);
    assert_int_equal(mkdir("dtrain/synthetic-50-7.tmp-young", 0700), 0); /* another host draws there: no lock tells */
    assert_true(synthetic_make(50, 7, directory, &error));
    assert_int_equal(access("dtrain/synthetic-50-7.tmp-abcdef", F_OK), -1);
    assert_int_equal(access("dtrain/synthetic-50-7.tmp-young", F_OK), 0);
    assert_int_equal(rmdir("dtrain/synthetic-50-7.tmp-young"), 0);

    /* A link to a damaged set: it alone is replaced. */
    assert_int_equal(rename("dtrain/synthetic-50-7", "elsewhere"), 0);
    assert_int_equal(symlink("../elsewhere", "dtrain/synthetic-50-7"), 0);
    assert_int_equal(unlink("elsewhere/xxh64"), 0);
    assert_true(synthetic_make(50, 7, directory, &error));
    assert_is_set(directory, 50, 7);
    assert_int_equal(access("elsewhere/data_batch_1.bin", F_OK), 0);
}

static void test_full_disk_leaves_nothing(void **state)
{
    (void)state;
    char directory[4096];
    struct error error = {0};
    scratch_limit(10 * RECORD_BYTES - 1);
    assert_false(synthetic_make(50, 10, directory, &error));
    scratch_limit(RLIM_INFINITY);
    assert_non_null(strstr(error.text, "synthetic-50-10"));
    assert_error(&error, EXIT_RUNTIME, "XDG_CACHE_HOME");
    assert_int_equal(count_names("dtrain"), 0);
}

static void test_cache_that_cannot_be(void **state)
{
    char directory[4096], file[4096];
    struct error error = {0};
    snprintf(file, sizeof file, "%s/file", (char *)*state);
    scratch_write(file, "x", 1);
    setenv("XDG_CACHE_HOME", file, 1);
    assert_false(synthetic_make(50, 10, directory, &error));
    assert_non_null(strstr(error.text, file));
    assert_error(&error, EXIT_RUNTIME, "XDG_CACHE_HOME");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_false(synthetic_make(50, 10, directory, &error));
    assert_error(&error, EXIT_RUNTIME, "neither XDG_CACHE_HOME nor HOME");
}

#define IN_EMPTY_CACHE(test) cmocka_unit_test_setup_teardown(test, enter_with_cache, scratch_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_are_read),
        cmocka_unit_test(test_bad_sizes_are_usage_errors),
        cmocka_unit_test(test_directories_are_left_to_others),
        cmocka_unit_test(test_known_answer),
        cmocka_unit_test(test_classes_are_balanced_and_no_picture_comes_twice),
        cmocka_unit_test(test_pictures_use_the_range),
        IN_EMPTY_CACHE(test_set_is_made_once),
        IN_EMPTY_CACHE(test_several_processes_make_it_at_once),
        IN_EMPTY_CACHE(test_a_damaged_set_is_drawn_anew),
        IN_EMPTY_CACHE(test_what_is_abandoned_goes),
        IN_EMPTY_CACHE(test_full_disk_leaves_nothing),
        IN_EMPTY_CACHE(test_cache_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
