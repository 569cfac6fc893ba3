#include "synthetic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "dataset.h"

enum { FULL_TRAIN = 50000, FULL_TEST = 10000, MOST = 1000000 };

/* --- its name on the command line ------------------------------------------------------------- */

/* Reads digits; 0, never a right size, when there are none or too many. Returns what follows them. */
static const char *read_size(const char *text, size_t *size)
{
    size_t digits = strspn(text, "0123456789");
    *size = digits > 0 && digits <= 7 ? strtoul(text, NULL, 10) : 0;
    return text + digits;
}

bool synthetic_parse(const char *text, size_t *train, size_t *test, struct error *error)
{
    static const char name[] = "synthetic";
    const char *rest = text + sizeof name - 1;
    if (strncmp(text, name, sizeof name - 1) != 0 || (*rest != '\0' && *rest != ':'))
        return false;
    *train = FULL_TRAIN;
    *test = FULL_TEST;
    if (*rest == '\0')
        return true;
    rest = read_size(rest + 1, train);
    bool plus = *rest == '+';
    rest = read_size(rest + plus, test);
    if (!plus || *rest != '\0' || *train < TRAINING_FILES || *train > MOST || *train % TRAINING_FILES != 0 ||
        *test < 1 || *test > MOST)
        return error_set(error, EXIT_USAGE,
                         "--data %s: want synthetic:TRAIN+TEST, as in synthetic:%d+%d: TRAIN a multiple of "
                         "%d from %d to %d, TEST from 1 to %d",
                         text, FULL_TRAIN, FULL_TEST, TRAINING_FILES, TRAINING_FILES, MOST, MOST);
    return true;
}

/* --- making it -------------------------------------------------------------------------------- */

/* Creates the directories above `path`; what is wrong with them, the next use of `path` tells. */
static void make_parents(const char *path)
{
    char parent[4096];
    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
        mkdir(parent, 0700); /* as the XDG Base Directory Specification asks */
    }
}

/* Who is told now and then that drawing goes on. */
struct observer {
    void (*alive)(void *context);
    void *context;
};

/* Writes `count` records of a set, from `first` on, as a new file. On failure errno says why. */
static bool write_file(const char *path, bool test_set, size_t first, size_t count, const struct observer *observer)
{
    FILE *file = fopen(path, "wbx");
    if (file == NULL)
        return false;
    bool good = true;
    for (size_t i = first; good && i < first + count; i++) {
        uint8_t record[RECORD_BYTES];
        synthetic_draw(test_set, (uint32_t)i, record);
        good = fwrite(record, sizeof record, 1, file) == 1;
        if (i % 1000 == 0)
            observer->alive(observer->context);
    }
    good = good && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int reason = errno;
    fclose(file);
    errno = reason;
    return good;
}

static bool write_files(const char *directory, size_t train, size_t test, const struct observer *observer)
{
    bool good = true;
    for (size_t i = 0; good && i < DATA_FILES; i++) {
        bool test_set = i == TRAINING_FILES;
        size_t count = test_set ? test : train / TRAINING_FILES;
        char path[4096 + 32];
        snprintf(path, sizeof path, "%s/%s", directory, dataset_files[i]);
        good = write_file(path, test_set, test_set ? 0 : i * count, count, observer);
    }
    return good;
}

static void remove_files(const char *directory)
{
    for (size_t i = 0; i < DATA_FILES; i++) {
        char path[4096 + 32];
        snprintf(path, sizeof path, "%s/%s", directory, dataset_files[i]);
        unlink(path);
    }
    rmdir(directory);
}

bool synthetic_make(size_t train, size_t test, char directory[4096], void (*alive)(void *context), void *context,
                    struct error *error)
{
    char name[64], aside[4096 + 16];
    snprintf(name, sizeof name, "synthetic-%zu-%zu", train, test);
    if (!cache_path(name, directory, error))
        return false;
    if (access(directory, F_OK) == 0)
        return true;
    make_parents(directory);
    snprintf(aside, sizeof aside, "%s.tmp-XXXXXX", directory);
    if (mkdtemp(aside) == NULL)
        return error_set(error, EXIT_RUNTIME,
                         "%s: cannot be made: %s; XDG_CACHE_HOME can name another place for the cache",
                         directory, strerror(errno));
    bool made = write_files(aside, train, test, &(struct observer){alive, context});
    int reason = errno;
    if (made && rename(aside, directory) == 0)
        return true;
    if (made)
        reason = errno;
    remove_files(aside);
    if (made && access(directory, F_OK) == 0) /* another process was faster, with the same bytes */
        return true;
    return error_set(error, EXIT_RUNTIME,
                     "%s: its %zu MB cannot be written: %s; make room there, or have XDG_CACHE_HOME name "
                     "another place for the cache",
                     directory, (train + test) * RECORD_BYTES / 1000000 + 1, strerror(reason));
}
