/* CIFAR-10's files: read as they are, and every damage named. Each test works in an empty directory. */
#include "scratch.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <xxhash.h>

#include "dataset.h"

enum { PER_FILE = 3, TEST_COUNT = 4 };

static int enter(void **state)
{
    unsetenv("DTRAIN_DATA");
    return scratch_enter(state) || setenv("XDG_CACHE_HOME", *state, 1);
}

/* --- files ------------------------------------------------------------------------------------ */

/* Record i of file f: label (f + i) % 10, pixels that tell f, i and their place apart. */
static void fill_record(uint8_t *record, size_t f, size_t i)
{
    record[0] = (uint8_t)((f + i) % 10);
    for (size_t p = 1; p < RECORD_BYTES; p++)
        record[p] = (uint8_t)(p * 7 + f * 50 + i * 11);
}

static void write_records(const char *path, size_t f, size_t count)
{
    uint8_t *records = malloc(count * RECORD_BYTES);
    for (size_t i = 0; i < count; i++)
        fill_record(records + i * RECORD_BYTES, f, i);
    scratch_write(path, records, count * RECORD_BYTES);
    free(records);
}

static void write_set(const char *directory)
{
    mkdir(directory, 0777);
    for (size_t f = 0; f < DATA_FILES; f++) {
        char path[200];
        snprintf(path, sizeof path, "%s/%s", directory, dataset_files[f]);
        write_records(path, f, f < TRAINING_FILES ? PER_FILE : TEST_COUNT);
    }
}

/* An error of data, on one line that holds all of the words (NULL ends them). */
static void assert_says(const struct error *error, const char *word, va_list words)
{
    assert_int_equal(error->code, EXIT_INPUT);
    assert_null(strchr(error->text, '\n'));
    for (; word; word = va_arg(words, const char *))
        if (!strstr(error->text, word))
            fail_msg("\"%s\" lacks \"%s\"", error->text, word);
}

/* The set in "d" cannot be opened, and the message holds the words. */
static void assert_refused(const char *word, ...)
{
    struct dataset dataset;
    struct error error = {0};
    va_list words;
    va_start(words, word);
    assert_false(dataset_open(&dataset, "d", &error));
    assert_null(dataset.train.files[0]);
    assert_says(&error, word, words);
    va_end(words);
}

/* --- opening ---------------------------------------------------------------------------------- */

static void test_every_record_is_found(void **state)
{
    (void)state;
    write_set("d");
    struct dataset dataset;
    struct error error = {0};
    assert_true(dataset_open(&dataset, "d", &error));
    assert_string_equal(dataset.directory, "d");
    assert_int_equal(dataset.train.count, TRAINING_FILES * PER_FILE);
    assert_int_equal(dataset.test.count, TEST_COUNT);
    XXH64_state_t *hash = XXH64_createState();
    XXH64_reset(hash, 0);
    for (size_t i = 0; i < TRAINING_FILES * PER_FILE + TEST_COUNT; i++) {
        size_t f = i < TRAINING_FILES * PER_FILE ? i / PER_FILE : TRAINING_FILES, within = i - f * PER_FILE;
        uint8_t expected[RECORD_BYTES];
        fill_record(expected, f, within);
        const uint8_t *record = f < TRAINING_FILES ? split_record(&dataset.train, i)
                                                   : split_record(&dataset.test, within);
        assert_memory_equal(record, expected, RECORD_BYTES);
        XXH64_update(hash, expected, RECORD_BYTES);
    }
    assert_int_equal(dataset.hash, XXH64_digest(hash));
    XXH64_freeState(hash);
    dataset_close(&dataset);
}

static void test_missing_file(void **state)
{
    (void)state;
    for (size_t f = 0; f < DATA_FILES; f++) {
        write_set("d");
        char path[200];
        snprintf(path, sizeof path, "d/%s", dataset_files[f]);
        unlink(path);
        assert_refused(path, "missing", "data_batch_1.bin to data_batch_5.bin and test_batch.bin", NULL);
    }
}

static void test_missing_directory(void **state)
{
    (void)state;
    assert_refused("d/data_batch_1.bin", "missing", NULL);
}

static void test_empty_file(void **state)
{
    (void)state;
    write_set("d");
    scratch_write("d/data_batch_4.bin", "", 0);
    assert_refused("d/data_batch_4.bin", "empty", "3073", NULL);
}

static void test_torn_file(void **state)
{
    (void)state;
    write_set("d");
    assert_int_equal(truncate("d/data_batch_2.bin", 2 * RECORD_BYTES + 100), 0);
    assert_refused("d/data_batch_2.bin", "6246 bytes", "3073", "offset 6146", "right size is 6146", NULL);
    assert_int_equal(truncate("d/data_batch_2.bin", 2 * RECORD_BYTES + 1), 0);
    assert_refused("d/data_batch_2.bin", "6147 bytes", "right size is 6146", NULL);
    assert_int_equal(truncate("d/data_batch_2.bin", 3 * RECORD_BYTES - 1), 0);
    assert_refused("d/data_batch_2.bin", "9218 bytes", "offset 6146", "right size is 9219", NULL);
    assert_int_equal(truncate("d/data_batch_2.bin", 10), 0);
    assert_refused("d/data_batch_2.bin", "10 bytes", "offset 0", "right size is 3073", NULL);
}

static void test_label_over_9(void **state)
{
    (void)state;
    const int bad[] = {10, 255};
    for (size_t b = 0; b < 2; b++) {
        write_set("d");
        FILE *file = fopen("d/test_batch.bin", "r+b");
        fseek(file, 3 * RECORD_BYTES, SEEK_SET);
        fputc(bad[b], file);
        fclose(file);
        char label[20];
        snprintf(label, sizeof label, "label %d ", bad[b]);
        assert_refused("d/test_batch.bin", "offset 9219", label, "0 to 9", NULL);
    }
}

static void test_training_files_of_different_counts(void **state)
{
    (void)state;
    write_set("d");
    write_records("d/data_batch_3.bin", 2, PER_FILE + 1);
    assert_refused("d/data_batch_3.bin", "4 records", "data_batch_1.bin holds 3", "equally many", NULL);
}

static void test_not_regular_files(void **state)
{
    (void)state;
    write_set("d");
    unlink("d/data_batch_5.bin");
    mkdir("d/data_batch_5.bin", 0777);
    assert_refused("d/data_batch_5.bin", "not a regular file", NULL);
    rmdir("d/data_batch_5.bin");
    mkfifo("d/data_batch_5.bin", 0666); /* must not wait for a writer */
    assert_refused("d/data_batch_5.bin", "not a regular file", NULL);
}

static void test_unreadable_file(void **state)
{
    (void)state;
    write_set("d");
    unlink("d/data_batch_1.bin");
    assert_int_equal(symlink("data_batch_1.bin", "d/data_batch_1.bin"), 0); /* fails for root too */
    assert_refused("d/data_batch_1.bin", "cannot be read", strerror(ELOOP), NULL);
}

/* What happens to a file when as many others have been read, on a file system that may not map files. */
static struct {
    bool cannot_map;
    int reads; /* before that; -1: nothing happens */
    enum { CUT_SHORT, UNREADABLE } what;
} fault = {.reads = -1};

/* In place of the C library's. */
void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
{
    if (!fault.cannot_map || file < 0)
        return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
    errno = ENODEV;
    return MAP_FAILED;
}

ssize_t pread(int file, void *buffer, size_t bytes, off_t offset)
{
    if (fault.reads-- == 0) {
        if (fault.what == UNREADABLE) {
            errno = EIO;
            return -1;
        }
        assert_int_equal(truncate("d/data_batch_3.bin", RECORD_BYTES), 0);
    }
    return syscall(SYS_pread64, file, buffer, bytes, offset);
}

/* By somebody, or a disk that fails, after its size was found right. */
static void test_cut_short_or_unreadable_while_it_is_read(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        write_set("d");
        fault.cannot_map = i / 2;
        fault.what = i % 2 == 0 ? CUT_SHORT : UNREADABLE;
        fault.reads = 2;
        assert_refused("d/data_batch_3.bin", "cannot be read",
                       i % 2 == 0 ? "it became shorter meanwhile" : strerror(EIO), NULL);
    }
    fault.reads = -1;
    write_set("d");
    struct dataset dataset;
    struct error error = {0};
    assert_true(dataset_open(&dataset, "d", &error));
    assert_true(dataset.copied);
    dataset_close(&dataset);
    fault.cannot_map = false;
}

/* Touched, it is read again, and is what it was; if it can be read. */
static void test_touched_while_it_is_used(void **state)
{
    (void)state;
    struct dataset dataset;
    struct error error = {0};
    write_set("d");
    assert_true(dataset_open(&dataset, "d", &error));
    assert_int_equal(utimensat(AT_FDCWD, "d/data_batch_2.bin", (struct timespec[2]){{0}, {0}}, 0), 0);
    assert_true(dataset_is_unchanged(&dataset, &error));
    fault.what = UNREADABLE;
    fault.reads = 1;
    assert_false(dataset_is_unchanged(&dataset, &error));
    assert_error(&error, EXIT_INPUT, "d/data_batch_2.bin was changed while the run used it");
    dataset_close(&dataset);
}

/* --- finding ---------------------------------------------------------------------------------- */

static void assert_found(const char *wanted, const char *expected)
{
    char directory[4096];
    struct error error = {0};
    if (!dataset_find(wanted, directory, &error))
        fail_msg("%s", error.text);
    assert_string_equal(directory, expected);
}

static void assert_not_found(const char *wanted, const char *word, ...)
{
    char directory[4096];
    struct error error = {0};
    va_list words;
    va_start(words, word);
    assert_false(dataset_find(wanted, directory, &error));
    assert_says(&error, word, words);
    va_end(words);
}

static void test_search_order(void **state)
{
    char cached[200];
    snprintf(cached, sizeof cached, "%s/dtrain", (char *)*state);
    mkdir(cached, 0777);
    strcat(cached, "/cifar-10-batches-bin");
    write_set(cached);
    assert_found(NULL, cached);
    mkdir("data", 0777);
    mkdir("data/cifar-10-batches-bin", 0777); /* empty: passed over */
    assert_found(NULL, cached);
    write_set("data/cifar-10-batches-bin");
    assert_found(NULL, "data/cifar-10-batches-bin");
    write_set("variable");
    setenv("DTRAIN_DATA", "variable", 1);
    assert_found(NULL, "variable");
    write_set("option");
    assert_found("option", "option");
    setenv("DTRAIN_DATA", "", 1); /* as if unset */
    assert_found(NULL, "data/cifar-10-batches-bin");
}

static void test_home_is_the_cache_without_xdg(void **state)
{
    char cached[200];
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", *state, 1);
    mkdir(".cache", 0777);
    mkdir(".cache/dtrain", 0777);
    snprintf(cached, sizeof cached, "%s/.cache/dtrain/cifar-10-batches-bin", (char *)*state);
    write_set(cached);
    assert_found(NULL, cached);
    setenv("XDG_CACHE_HOME", "relative", 1); /* not valid, hence ignored */
    assert_found(NULL, cached);
}

static void test_nothing_found_names_places_and_remedies(void **state)
{
    assert_not_found(NULL, "data/cifar-10-batches-bin", (char *)*state, "launch/fetch-cifar10", "--data synthetic",
                     "DTRAIN_DATA", NULL);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_not_found(NULL, "data/cifar-10-batches-bin", "launch/fetch-cifar10", "--data synthetic", NULL);
}

/* A place the user names is never passed over for another. */
static void test_named_place_without_data_is_an_error(void **state)
{
    (void)state;
    mkdir("data", 0777);
    write_set("data/cifar-10-batches-bin");
    mkdir("hollow", 0777);
    scratch_write("file", "x", 1);
    assert_not_found("hollow", "--data", "hollow", "data_batch_1.bin", "launch/fetch-cifar10", NULL);
    assert_not_found("nowhere", "--data", "nowhere", strerror(ENOENT), NULL);
    assert_not_found("file", "--data", "not a directory", NULL);
    char directory[4096];
    struct error error = {0};
    assert_true(dataset_find("data", directory, &error));
    assert_string_equal(directory, "data/cifar-10-batches-bin");
    setenv("DTRAIN_DATA", "hollow", 1);
    assert_not_found(NULL, "DTRAIN_DATA", "hollow", NULL);
}

static void test_python_version_is_recognised(void **state)
{
    (void)state;
    mkdir("data", 0777);
    mkdir("data/cifar-10-batches-py", 0777);
    scratch_write("data/cifar-10-batches-py/data_batch_1", "x", 1);
    assert_not_found(NULL, "Python version", "name it by --data", "launch/fetch-cifar10", NULL);
    assert_not_found("data", "Python version", "name it by --data", NULL);
    assert_not_found("data/cifar-10-batches-py", "Python version", "name it by --data", NULL);
}

#define IN_EMPTY_DIRECTORY(test) cmocka_unit_test_setup_teardown(test, enter, scratch_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EMPTY_DIRECTORY(test_every_record_is_found),
        IN_EMPTY_DIRECTORY(test_missing_file),
        IN_EMPTY_DIRECTORY(test_missing_directory),
        IN_EMPTY_DIRECTORY(test_empty_file),
        IN_EMPTY_DIRECTORY(test_torn_file),
        IN_EMPTY_DIRECTORY(test_label_over_9),
        IN_EMPTY_DIRECTORY(test_training_files_of_different_counts),
        IN_EMPTY_DIRECTORY(test_not_regular_files),
        IN_EMPTY_DIRECTORY(test_unreadable_file),
        IN_EMPTY_DIRECTORY(test_cut_short_or_unreadable_while_it_is_read),
        IN_EMPTY_DIRECTORY(test_touched_while_it_is_used),
        IN_EMPTY_DIRECTORY(test_search_order),
        IN_EMPTY_DIRECTORY(test_home_is_the_cache_without_xdg),
        IN_EMPTY_DIRECTORY(test_nothing_found_names_places_and_remedies),
        IN_EMPTY_DIRECTORY(test_named_place_without_data_is_an_error),
        IN_EMPTY_DIRECTORY(test_python_version_is_recognised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
