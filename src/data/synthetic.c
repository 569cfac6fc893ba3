#include "synthetic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "cache.h"
#include "dataset.h"
#include "memory.h"

enum { FULL_TRAIN = 50000, FULL_TEST = 10000, MOST = 1000000 };
static const uint64_t FULL_DIGEST = 0x40ad99841af6a484; /* of the usual set */

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
                         "%s: want synthetic:TRAIN+TEST, as in synthetic:%d+%d: TRAIN a multiple of "
                         "%d from %d to %d, TEST from 1 to %d",
                         text, FULL_TRAIN, FULL_TEST, TRAINING_FILES, TRAINING_FILES, MOST, MOST);
    return true;
}

/* --- making it -------------------------------------------------------------------------------- */

enum { PATH_BYTES = 4096 + 64 };

static FILE *open_in(const char *directory, const char *name, const char *mode)
{
    char path[PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return fopen(path, mode);
}

/* Writes `count` records of a set, from `first` on, as a new file. */
static bool write_file(const char *directory, const char *name, bool test_set, size_t first, size_t count,
                       XXH64_state_t *hash)
{
    FILE *file = open_in(directory, name, "wbxe");
    bool good = file != NULL;
    for (size_t i = first; good && i < first + count; i++) {
        uint8_t record[RECORD_BYTES];
        synthetic_draw(test_set, (uint32_t)i, record);
        XXH64_update(hash, record, sizeof record);
        good = fwrite(record, sizeof record, 1, file) == 1;
    }
    return file != NULL && dataset_finish_file(file, good);
}

static bool write_files(const char *directory, size_t train, size_t test)
{
    XXH64_state_t *hash = memory_check(XXH64_createState(), "the hash of the data");
    XXH64_reset(hash, 0);
    bool good = true;
    for (size_t i = 0; good && i < DATA_FILES; i++) {
        bool test_set = i == TRAINING_FILES;
        size_t count = test_set ? test : train / TRAINING_FILES;
        good = write_file(directory, dataset_files[i], test_set, test_set ? 0 : i * count, count, hash);
    }
    uint64_t digest = XXH64_digest(hash);
    XXH64_freeState(hash);
    return good && dataset_write_digest(directory, digest);
}

/* Whether a whole, undamaged set of these sizes is there. */
static bool is_good(const char *directory, size_t train, size_t test)
{
    struct dataset data;
    struct error ignored = {0};
    uint64_t digest = FULL_DIGEST; /* of the usual set it is known */
    if (train != FULL_TRAIN || test != FULL_TEST)
        if (!dataset_read_digest(directory, &digest))
            return false;
    if (!dataset_open(&data, directory, &ignored))
        return false;
    bool good = data.train.count == train && data.test.count == test && data.hash == digest;
    dataset_close(&data);
    return good;
}

/* --- the directory it is made in ---------------------------------------------------------------- */

/* Puts the set made aside in its place. One that is there goes if it is damaged; else another process was faster, with
 * the same bytes. */
static bool install(const char *aside, const char *directory, size_t train, size_t test)
{
    char old[PATH_BYTES];
    if (rename(aside, directory) == 0)
        return true;
    if (errno != EEXIST && errno != ENOTEMPTY && errno != ENOTDIR)
        return false;
    bool done = is_good(directory, train, test) ||
                renameat2(AT_FDCWD, aside, AT_FDCWD, directory, RENAME_EXCHANGE) == 0;
    if (!done &&
        (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)) { /* not everywhere can two names be exchanged */
        snprintf(old, sizeof old, "%s.tmp-XXXXXX", directory);
        done = mkdtemp(old) != NULL && rename(directory, old) == 0 && rename(aside, directory) == 0;
        cache_remove(old);
    }
    if (done)
        cache_remove(aside); /* the damaged one, or the needless one */
    return done;
}

bool synthetic_find(size_t train, size_t test, char directory[4096], struct error *error)
{
    char name[64];
    snprintf(name, sizeof name, "synthetic-%zu-%zu", train, test);
    return cache_path(name, directory, error);
}

bool synthetic_make(size_t train, size_t test, char directory[4096], struct error *error)
{
    char aside[PATH_BYTES];
    if (!synthetic_find(train, test, directory, error))
        return false;
    cache_remove_abandoned(directory);
    bool was_there = access(directory, F_OK) == 0;
    if (was_there && is_good(directory, train, test))
        return true;
    int parents = cache_make_parents(directory);
    snprintf(aside, sizeof aside, "%s.tmp-XXXXXX", directory);
    if (mkdtemp(aside) == NULL)
        return error_set(error, EXIT_RUNTIME,
                         "%s: cannot be made: %s; XDG_CACHE_HOME can name another place for the cache", directory,
                         strerror(errno == ENOENT && parents != 0 ? parents : errno));
    bool made = write_files(aside, train, test) && install(aside, directory, train, test);
    int reason = errno;
    if (!made)
        cache_remove(aside);
    if (made && was_there)
        error_note("%s was damaged or incomplete, and is drawn anew", directory);
    return made || error_set(error, EXIT_RUNTIME,
                             "%s: its %zu MB cannot be written: %s; make room there, or have XDG_CACHE_HOME name "
                             "another place for the cache",
                             directory, (train + test) * RECORD_BYTES / 1000000 + 1, strerror(reason));
}
