/* TensorBoard's event files: framing, names, faults. tests/program/file_formats.py reads whole files independently. */
#include <glob.h>

#include "scratch.h"
#include "src/files/tensorboard.h"

enum {
    FRAME_BYTES = 8 + 4 + 4,                                 /* length, its crc, the data's crc */
    START_BYTES = FRAME_BYTES + 24 + FRAME_BYTES + 9 + 2 + 4 /* of a file: version; session log at step 1 */
};

/* The i-th event file of the directory, in TensorBoard's order (by name). */
static char *read_events(size_t i, size_t n_expected, size_t *bytes)
{
    glob_t found;
    assert_int_equal(glob("events.out.tfevents.*", 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, n_expected);
    char *events = scratch_read(found.gl_pathv[i], bytes);
    globfree(&found);
    return events;
}

static size_t count_records(const char *events, size_t bytes)
{
    size_t count = 0, at = 0;
    for (uint64_t length; at < bytes; at += FRAME_BYTES + length, count++) {
        assert_true(bytes - at >= FRAME_BYTES);
        memcpy(&length, events + at, sizeof length);
        assert_true(length <= bytes - at - FRAME_BYTES);
    }
    assert_int_equal(at, bytes);
    return count;
}

static void test_a_file_starts_with_its_version(void **state)
{
    (void)state;
    /* Every event file of TensorFlow starts with these bytes: 24, masked crc32c of that, wall time's key. */
    static const uint8_t start[] = {24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22, 0x09};
    struct error error = {0};
    size_t bytes;
    tensorboard_close(tensorboard_open(&here, 1, &error));
    assert_no_error(&error);
    char *events = read_events(0, 1, &bytes);
    assert_int_equal(bytes, START_BYTES);
    assert_memory_equal(events, start, sizeof start);
    assert_memory_equal(events + 21,
                        "\x1a\x0d"
                        "brain.Event:2",
                        15);
    free(events);
}

static void test_a_resumed_run_says_so(void **state)
{
    (void)state;
    struct error error = {0};
    size_t bytes;
    tensorboard_close(tensorboard_open(&here, 300, &error));
    char *events = read_events(0, 1, &bytes), *second = events + FRAME_BYTES + 24;
    assert_int_equal(count_records(events, bytes), 2);
    assert_memory_equal(second + 12 + 9, "\x10\xac\x02\x3a\x02\x08\x01", 7); /* step 300, session log START */
    free(events);
}

static void test_events_are_flushed(void **state)
{
    (void)state;
    struct error error = {0};
    struct tensorboard *board = tensorboard_open(&here, 1, &error);
    static const struct scalar scalars[] = {{"loss", 1.5}, {"accuracy", -2}};
    for (size_t n = 1; n <= 3; n++) {
        size_t bytes;
        assert_true(tensorboard_write(board, n, scalars, 2, &error));
        char *events = read_events(0, 1, &bytes);
        assert_int_equal(count_records(events, bytes), 2 + n);
        free(events);
    }
    tensorboard_close(board);
}

static void test_scalars_are_encoded(void **state)
{
    (void)state;
    static const char expected[] = "\x10\xac\x02" /* step 300 */
                                   "\x2a\x1a"     /* summary */
                                   "\x0a\x0b"
                                   "\x0a\x04loss"
                                   "\x15\0\0\xc0\x3f" /* 1.5f */
                                   "\x0a\x0b"
                                   "\x0a\x04rate"
                                   "\x15\0\0\x00\xc0"; /* -2f */
    struct error error = {0};
    size_t bytes;
    struct tensorboard *board = tensorboard_open(&here, 1, &error);
    assert_true(tensorboard_write(board, 300, (struct scalar[]){{"loss", 1.5}, {"rate", -2}}, 2, &error));
    tensorboard_close(board);
    char *events = read_events(0, 1, &bytes), *event = events + START_BYTES + 12 + 9;
    assert_memory_equal(event, expected, sizeof expected - 1);
    assert_int_equal(bytes, (size_t)(event - events) + sizeof expected - 1 + 4);
    free(events);
}

static void test_two_files_of_one_second(void **state)
{
    (void)state;
    struct error error = {0};
    size_t bytes;
    struct tensorboard *first = tensorboard_open(&here, 1, &error), *second = tensorboard_open(&here, 1, &error);
    assert_true(tensorboard_write(second, 1, (struct scalar[]){{"loss", 1}}, 1, &error));
    char *events = read_events(0, 2, &bytes);
    assert_int_equal(count_records(events, bytes), 2);
    free(events);
    events = read_events(1, 2, &bytes);
    assert_int_equal(count_records(events, bytes), 3);
    free(events);
    tensorboard_close(first);
    tensorboard_close(second);
}

static void test_a_clock_that_is_behind(void **state)
{
    (void)state;
    struct error error = {0};
    size_t bytes;
    scratch_write("events.out.tfevents.9999999998.elsewhere.0000001.0", "", 0);
    tensorboard_close(tensorboard_open(&here, 1, &error));
    free(read_events(1, 2, &bytes));
    assert_int_not_equal(bytes, 0); /* the new file is the last by name */
}

static void test_what_cannot_be_written_is_said(void **state)
{
    (void)state;
    struct error error = {0};
    struct folder removed;
    scratch_open_removed(&removed);
    assert_null(tensorboard_open(&removed, 1, &error));
    assert_error(&error, EXIT_RUNTIME, ": cannot be made: No such file or directory");
    folder_close(&removed);

    struct tensorboard *board = tensorboard_open(&here, 1, &error);
    char tag[5000];
    memset(tag, 't', sizeof tag);
    tag[sizeof tag - 1] = '\0';
    assert_false(tensorboard_write(board, 1, (struct scalar[]){{tag, 1}}, 1, &error));
    assert_error(&error, EXIT_RUNTIME, "4000 is the most");

    scratch_limit(START_BYTES + 5);
    bool done = tensorboard_write(board, 1, (struct scalar[]){{"loss", 1}}, 1, &error);
    scratch_limit(RLIM_INFINITY);
    assert_false(done);
    assert_error(&error, EXIT_RUNTIME, ": cannot be written: File too large");
    tensorboard_close(board);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_a_file_starts_with_its_version),
        TEST(test_a_resumed_run_says_so),
        TEST(test_events_are_flushed),
        TEST(test_scalars_are_encoded),
        TEST(test_two_files_of_one_second),
        TEST(test_a_clock_that_is_behind),
        TEST(test_what_cannot_be_written_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
