/* scratch.h - what the tests of files share: a scratch directory a test, whole files, faults. */
#ifndef DTRAIN_TEST_SCRATCH_H
#define DTRAIN_TEST_SCRATCH_H

#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "error.h"
#include "files.h"

static const struct folder here = {.path = ".", .descriptor = AT_FDCWD, .lock = -1};

/* Setup of a test: makes an empty directory below $TMPDIR or /tmp and goes there. */
static inline int scratch_enter(void **state)
{
    const char *parent = getenv("TMPDIR");
    char *directory = NULL;
    if (asprintf(&directory, "%s/dtrain-test-XXXXXX", parent && *parent ? parent : "/tmp") < 0)
        return -1;
    *state = directory;
    return mkdtemp(directory) ? chdir(directory) : -1;
}

static inline int scratch_remove(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status, (void)kind, (void)place;
    return remove(path);
}

/* Teardown: removes the directory with all in it. */
static inline int scratch_leave(void **state)
{
    int failed = chdir("/") || nftw(*state, scratch_remove, 16, FTW_DEPTH | FTW_PHYS);
    free(*state);
    return failed;
}

static inline void scratch_write(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* The whole file and a 0 byte behind it, to be freed. */
static inline char *scratch_read(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = calloc(1, *bytes + 1);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

/* From now on no file grows beyond `bytes`, as on a full disk; RLIM_INFINITY ends it. */
static inline void scratch_limit(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* Opens a folder that is gone by then. */
static inline void scratch_open_removed(struct folder *removed)
{
    struct error error = {0};
    assert_int_equal(mkdir("removed", 0777), 0);
    assert_true(folder_open(removed, "removed", &error));
    assert_int_equal(rmdir("removed"), 0);
}

/* An error of this code, on one line, that mentions `text`; cleared for the next. */
static inline void assert_error(struct error *error, enum exit_code code, const char *text)
{
    if (error->code != code || !strstr(error->text, text) || strchr(error->text, '\n'))
        fail_msg("code %d, '%s'; expected code %d and '%s' on one line", error->code, error->text, code, text);
    *error = (struct error){0};
}

static inline void assert_no_error(const struct error *error)
{
    if (error->code != EXIT_DONE)
        fail_msg("unexpected: %s", error->text);
}

#endif
