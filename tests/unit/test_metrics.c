/* metrics.jsonl: its lines, and what a resumed run keeps of it. Each test works in an empty directory. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "metrics.h"
#include "scratch.h"

static const char PATH[] = "metrics.jsonl";

static void assert_lines(const char *expected)
{
    size_t bytes;
    char *text = scratch_read(PATH, &bytes);
    assert_string_equal(text, expected);
    free(text);
}

static struct epoch_metrics epoch_of(uint64_t number)
{
    return (struct epoch_metrics){.epoch = number,
                                  .step = 10 * number,
                                  .loss = 2.25,
                                  .learning_rate = 0.01,
                                  .seconds = 1.0 / 3,
                                  .images_per_second = 26000};
}

#define UNENDED(epoch, step)                                                                                           \
    "{\"epoch\":" epoch ",\"step\":" step ",\"loss\":2.25,\"lr\":0.01,\"seconds\":0.333333333,"                        \
    "\"images_per_second\":26000}"
#define LINE(epoch, step) UNENDED(epoch, step) "\n"

/* A finished run of three epochs. */
static void write_three(void)
{
    struct error error = {0};
    struct metrics *metrics = metrics_open(&here, 0, &error);
    assert_no_error(&error);
    for (uint64_t number = 1; number <= 3; number++) {
        struct epoch_metrics epoch = epoch_of(number);
        assert_true(metrics_write(metrics, &epoch, &error));
    }
    metrics_close(metrics);
    assert_lines(LINE("1", "10") LINE("2", "20") LINE("3", "30"));
}

/* Opens the file after `epochs_done` epochs, checks what is left, and that the next line follows it. */
static void assert_resumes(uint64_t epochs_done, const char *left, const char *left_and_next)
{
    struct error error = {0};
    struct metrics *metrics = metrics_open(&here, epochs_done, &error);
    assert_no_error(&error);
    assert_lines(left);
    struct epoch_metrics epoch = epoch_of(9);
    assert_true(metrics_write(metrics, &epoch, &error));
    metrics_close(metrics);
    assert_lines(left_and_next);
}

static void test_a_line_an_epoch_flushed(void **state)
{
    (void)state;
    struct error error = {0};
    struct metrics *metrics = metrics_open(&here, 0, &error);
    struct epoch_metrics epoch = epoch_of(1);
    assert_lines("");
    assert_true(metrics_write(metrics, &epoch, &error));
    assert_lines(LINE("1", "10")); /* while the file is open */
    epoch = (struct epoch_metrics){.epoch = UINT64_MAX,
                                   .step = 7,
                                   .loss = 1e-20,
                                   .learning_rate = 1e30,
                                   .seconds = 0,
                                   .images_per_second = 123456.789,
                                   .checked = true,
                                   .train_accuracy = 100,
                                   .test_accuracy = 61.47,
                                   .test_loss = -1.5};
    assert_true(metrics_write(metrics, &epoch, &error));
    metrics_close(metrics);
    assert_lines(LINE("1", "10") "{\"epoch\":18446744073709551615,\"step\":7,\"loss\":1e-20,\"lr\":1e+30,"
                                 "\"seconds\":0,\"images_per_second\":123456.789,\"train_accuracy\":100,"
                                 "\"test_accuracy\":61.47,\"test_loss\":-1.5}\n");
}

static void test_what_is_not_finite_is_null(void **state)
{
    (void)state;
    struct error error = {0};
    struct metrics *metrics = metrics_open(&here, 0, &error);
    struct epoch_metrics epoch = {
        .epoch = 1, .loss = NAN, .learning_rate = INFINITY, .seconds = -INFINITY, .checked = true, .test_loss = -NAN};
    assert_true(metrics_write(metrics, &epoch, &error));
    metrics_close(metrics);
    assert_lines("{\"epoch\":1,\"step\":0,\"loss\":null,\"lr\":null,\"seconds\":null,\"images_per_second\":0,"
                 "\"train_accuracy\":0,\"test_accuracy\":0,\"test_loss\":null}\n");
}

static void test_later_epochs_are_cut_off(void **state)
{
    (void)state;
    write_three();
    assert_resumes(3, LINE("1", "10") LINE("2", "20") LINE("3", "30"),
                   LINE("1", "10") LINE("2", "20") LINE("3", "30") LINE("9", "90"));
    write_three();
    assert_resumes(2, LINE("1", "10") LINE("2", "20"), LINE("1", "10") LINE("2", "20") LINE("9", "90"));
    write_three();
    assert_resumes(0, "", LINE("9", "90"));
}

static void test_what_a_crash_tore_is_cut_off(void **state)
{
    (void)state;
    static const char *const tails[] = {"{\"epoch\":2,\"step\":20,\"lo", "{\"epoch\":", "{\"ep", "{",
                                        "{\"epoch\":2} {"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        char text[1000];
        snprintf(text, sizeof text, "%s%s", LINE("1", "10"), tails[i]);
        scratch_write(PATH, text, strlen(text));
        assert_resumes(5, LINE("1", "10"), LINE("1", "10") LINE("9", "90"));
    }
    /* some file systems leave zeros after a crash */
    static const char zeros[] = LINE("1", "10") "\0\0\0\0\0\0\0\0";
    scratch_write(PATH, zeros, sizeof zeros);
    assert_resumes(5, LINE("1", "10"), LINE("1", "10") LINE("9", "90"));
}

static void test_lines_that_are_no_epochs_stay(void **state)
{
    (void)state;
    static const char *const foreign[] = {"no JSON\n",
                                          "\n",
                                          "{\"epoch\":\"2\"}\n",
                                          "{\"step\":2}\n",
                                          "[2]\n",
                                          "{\"epoch\":0}\n",
                                          "{\"epoch\":-1}\n",
                                          "{\"epoch\":2} {}\n",
                                          "{\"epoch\":7,\"note\":\"a user's\"}\n",
                                          "{\"epoch\":7,\"step\":70}\n",
                                          "\x80\xff\n",
                                          "{\"epoch\":2,\"st\n"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        char text[1000], left[1000], next[1200];
        snprintf(left, sizeof left, LINE("1", "10") "%s" LINE("2", "20"), foreign[i]);
        snprintf(next, sizeof next, "%s" LINE("9", "90"), left);
        scratch_write(PATH, left, strlen(left));
        assert_resumes(5, left, next);
        snprintf(text, sizeof text, LINE("1", "10") LINE("7", "70") "%s" LINE("2", "20") LINE("8", "80"), foreign[i]);
        scratch_write(PATH, text, strlen(text));
        assert_resumes(5, left, next); /* epochs that will be done again go, wherever they are */
    }
    static const char note[] = LINE("1", "10") "{\"epoch\":7,\"note\":\"a user's\"}";
    scratch_write(PATH, note, sizeof note - 1);
    assert_resumes(5, LINE("1", "10") "{\"epoch\":7,\"note\":\"a user's\"}\n",
                   LINE("1", "10") "{\"epoch\":7,\"note\":\"a user's\"}\n" LINE("9", "90"));
    static const char unended[] = LINE("1", "10") LINE("2", "20"),
                      windows[] = UNENDED("1", "10") "\r\n" UNENDED("7", "70") "\r\n";
    scratch_write(PATH, unended, sizeof unended - 2);
    assert_resumes(5, unended, LINE("1", "10") LINE("2", "20") LINE("9", "90"));
    scratch_write(PATH, windows, sizeof windows - 1);
    assert_resumes(5, UNENDED("1", "10") "\r\n", UNENDED("1", "10") "\r\n" LINE("9", "90"));
}

static void test_a_missing_file_is_made(void **state)
{
    (void)state;
    assert_resumes(5, "", LINE("9", "90"));
}

static void test_what_cannot_be_written_is_said(void **state)
{
    (void)state;
    struct error error = {0};
    struct folder removed;
    scratch_open_removed(&removed);
    assert_null(metrics_open(&removed, 0, &error));
    assert_error(&error, EXIT_RUNTIME, "removed/metrics.jsonl: cannot be written: No such file or directory");
    folder_close(&removed);
    assert_int_equal(mkdir(PATH, 0777), 0);
    assert_null(metrics_open(&here, 0, &error));
    assert_error(&error, EXIT_RUNTIME, "./metrics.jsonl: cannot be written: Is a directory");
    assert_int_equal(rmdir(PATH), 0);

    struct metrics *metrics = metrics_open(&here, 0, &error);
    struct epoch_metrics epoch = epoch_of(1);
    assert_true(metrics_write(metrics, &epoch, &error));
    epoch = epoch_of(2);
    scratch_limit(150); /* in the middle of the second line */
    bool done = metrics_write(metrics, &epoch, &error);
    scratch_limit(RLIM_INFINITY);
    assert_false(done);
    assert_error(&error, EXIT_RUNTIME, "./metrics.jsonl: cannot be written: File too large");
    metrics_close(metrics);
    assert_resumes(1, LINE("1", "10"), LINE("1", "10") LINE("9", "90"));
}

/* A file that cannot be read from an offset on, for so many attempts. */
static struct {
    off_t offset;
    int attempts, file;
} fault;

static ssize_t read_with_fault(void *cookie, char *buffer, size_t bytes)
{
    (void)cookie;
    size_t good = (size_t)(fault.offset - lseek(fault.file, 0, SEEK_CUR));
    if (good == 0 && fault.attempts > 0) {
        fault.attempts--;
        errno = EIO;
        return -1;
    }
    return read(fault.file, buffer, good > 0 && good < bytes ? good : bytes);
}

static int close_with_fault(void *cookie)
{
    (void)cookie;
    return close(fault.file);
}

/* In place of the C library's, by which metrics.c makes a stream of its file, and tensorboard.c one to write alone. */
FILE *fdopen(int file, const char *mode)
{
    if (strcmp(mode, "a+") == 0)
        fault.file = file;
    if (fault.attempts == 0)
        return ((FILE * (*)(int, const char *)) dlsym(RTLD_NEXT, "fdopen"))(file, mode);
    return fopencookie(&fault, mode, (cookie_io_functions_t){.read = read_with_fault, .close = close_with_fault});
}

/* A read error is no end of the file, also where what follows can be read again, as in a network's file system. */
static void test_what_cannot_be_read_is_not_cut_off(void **state)
{
    (void)state;
    static const char lines[] = LINE("1", "10") LINE("2", "20") LINE("3", "30");
    const size_t offsets[] = {0, sizeof LINE("1", "10") - 1, sizeof LINE("1", "10") + 8, sizeof lines - 1};
    struct error error = {0};
    write_three();
    for (size_t i = 0; i < 4; i++)
        for (int attempts = 1; attempts <= 1000; attempts += 999) {
            fault.offset = (off_t)offsets[i];
            fault.attempts = attempts;
            struct metrics *metrics = metrics_open(&here, 2, &error);
            fault.attempts = 0;
            assert_null(metrics);
            assert_error(&error, EXIT_RUNTIME, "./metrics.jsonl: cannot be read: Input/output error");
            assert_lines(lines);
        }

    struct metrics *metrics = metrics_open(&here, 3, &error);
    struct epoch_metrics epoch = epoch_of(4);
    int unreadable = open("/proc/self/mem", O_RDONLY); /* at its beginning */
    assert_int_equal(dup2(unreadable, fault.file), fault.file);
    close(unreadable);
    assert_int_equal(unlink(PATH), 0);
    assert_false(metrics_write(metrics, &epoch, &error)); /* which would put the lines there again */
    assert_error(&error, EXIT_RUNTIME, "./metrics.jsonl: cannot be read: Input/output error");
    assert_int_equal(access(PATH, F_OK), -1);
    metrics_close(metrics);
}

/* By a person, or an editor that writes a new file. */
static void test_removed_or_replaced_under_a_run(void **state)
{
    (void)state;
    struct error error = {0};
    struct metrics *metrics = metrics_open(&here, 0, &error);
    struct epoch_metrics epochs[3] = {epoch_of(1), epoch_of(2), epoch_of(3)};
    assert_true(metrics_write(metrics, &epochs[0], &error));
    assert_int_equal(unlink(PATH), 0);
    assert_true(metrics_write(metrics, &epochs[1], &error));
    assert_lines(LINE("1", "10") LINE("2", "20"));
    scratch_write("edited", LINE("1", "10") "mine", sizeof LINE("1", "10") + 3);
    assert_int_equal(rename("edited", PATH), 0);
    assert_true(metrics_write(metrics, &epochs[2], &error));
    assert_lines(LINE("1", "10") "mine\n" LINE("3", "30"));
    assert_int_equal(unlink(PATH), 0);
    assert_int_equal(symlink("elsewhere", PATH), 0);
    assert_true(metrics_write(metrics, &epochs[0], &error));
    assert_lines(LINE("1", "10") "mine\n" LINE("3", "30") LINE("1", "10"));
    assert_int_equal(access("elsewhere", F_OK), -1);
    assert_int_equal(unlink(PATH), 0);
    assert_int_equal(mkdir(PATH, 0700), 0);
    assert_false(metrics_write(metrics, &epochs[0], &error));
    assert_error(&error, EXIT_RUNTIME, "./metrics.jsonl: cannot be written: Is a directory");
    metrics_close(metrics);
    assert_int_equal(rmdir(PATH), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_a_line_an_epoch_flushed),         TEST(test_what_is_not_finite_is_null),
        TEST(test_later_epochs_are_cut_off),        TEST(test_what_a_crash_tore_is_cut_off),
        TEST(test_lines_that_are_no_epochs_stay),   TEST(test_a_missing_file_is_made),
        TEST(test_what_cannot_be_written_is_said),  TEST(test_what_cannot_be_read_is_not_cut_off),
        TEST(test_removed_or_replaced_under_a_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
