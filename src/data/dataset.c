#include "dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "beside.h"
#include "cache.h"
#include "memory.h"

const char *const dataset_files[DATA_FILES] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                               "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
#define ALL_FILES "data_batch_1.bin to data_batch_5.bin and test_batch.bin"
#define WELL_KNOWN "cifar-10-batches-bin"
#define PICKLED "cifar-10-batches-py"
#define PICKLED_HINT "the Python version (" PICKLED ") is there: name it by --data"

/* path = directory/name; cut off if it does not fit, and then not found. */
static const char *join(char path[4096], const char *directory, const char *name)
{
    snprintf(path, 4096, "%.4000s/%s", directory, name);
    return path;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* `expected` records; 0: any number but none. */
static bool check_size(const char *path, const struct stat *status, size_t expected, struct error *error)
{
    if (!S_ISREG(status->st_mode))
        return error_set(error, EXIT_INPUT, "%s: not a regular file, which a data file must be", path);
    size_t size = (size_t)status->st_size, torn = size % RECORD_BYTES, count = size / RECORD_BYTES;
    if (size == 0)
        return error_set(error, EXIT_INPUT, "%s: empty, but must hold records of %d bytes", path, RECORD_BYTES);
    if (torn > 0)
        return error_set(error, EXIT_INPUT,
                         "%s: its %zu bytes are no multiple of a record's %d: the record at offset %zu is "
                         "torn, the nearest right size is %zu",
                         path, size, RECORD_BYTES, size - torn,
                         (count + (count == 0 || torn > RECORD_BYTES / 2)) * RECORD_BYTES);
    if (expected && count != expected)
        return error_set(error, EXIT_INPUT,
                         "%s: %zu records, but %s holds %zu: the five training files must hold equally many", path,
                         count, dataset_files[0], expected);
    return true;
}

/* Records from number `first` on. */
static bool check_labels(const char *path, const uint8_t *records, size_t first, size_t count, struct error *error)
{
    for (size_t i = first; i < first + count; i++) {
        int label = records[(i - first) * RECORD_BYTES];
        if (label >= LENET5_CLASSES)
            return error_set(error, EXIT_INPUT, "%s: offset %zu holds label %d (record %zu), but labels are 0 to %d",
                             path, i * RECORD_BYTES, label, i, LENET5_CLASSES - 1);
    }
    return true;
}

/* So many bytes of an open file from an offset on. NULL, or why they cannot be had. */
static const char *read_part(int file, void *part, size_t bytes, size_t offset)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = TEMP_FAILURE_RETRY(pread(file, (char *)part + done, bytes - done, (off_t)(offset + done)));
        if (got <= 0)
            return got < 0 ? strerror(errno) : "it became shorter meanwhile";
        done += (size_t)got;
    }
    return NULL;
}

/* The bytes of an open file, to be unmapped. NULL, or why they cannot be had. Some file systems map nothing, or only
 * what is not shared; then each rank has a copy. */
static const char *map_or_copy(int file, size_t bytes, void **mapped, bool *copied)
{
    *mapped = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (*mapped == MAP_FAILED && errno == ENODEV)
        *mapped = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    *copied = *mapped == MAP_FAILED && errno == ENODEV;
    if (*copied)
        *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*mapped == MAP_FAILED)
        return strerror(errno);
    const char *reason = *copied ? read_part(file, *mapped, bytes, 0) : NULL;
    if (reason != NULL)
        munmap(*mapped, bytes);
    return reason;
}

/* Maps a file of *count records (0: as many as it holds, which it sets). */
static bool map_file(const char *path, size_t *count, const uint8_t **records, struct data_file *opened,
                     struct error *error)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* non-blocking: it may be a pipe */
    if (file < 0 && errno == ENOENT)
        return error_set(error, EXIT_INPUT, "%s: missing, the directory must hold " ALL_FILES, path);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
        error_set(error, EXIT_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    } else if (check_size(path, &status, *count, error)) {
        size_t bytes = (size_t)status.st_size;
        bool copied;
        void *mapped;
        const char *reason = map_or_copy(file, bytes, &mapped, &copied);
        if (reason != NULL) {
            bool no_memory = mapped == MAP_FAILED && errno == ENOMEM;
            error_set(error, no_memory ? EXIT_RUNTIME : EXIT_INPUT, "%s: cannot be read into memory: %s", path, reason);
        } else {
            posix_madvise(mapped, bytes, POSIX_MADV_WILLNEED);
            *records = mapped;
            *count = bytes / RECORD_BYTES;
            *opened = (struct data_file){file, copied, status.st_mtim};
            return true;
        }
    }
    if (file >= 0)
        close(file);
    return false;
}

/* Adds file number i, and checks its labels. A file that is mapped is read nonetheless: where the disk fails, or
 * somebody cuts the file short, that is an error here, where memory would end the process by a signal. */
static bool hash_file(const struct dataset *dataset, int i, XXH64_state_t *hash, struct error *error)
{
    enum { AT_ONCE = 64 };
    const struct data_file *file = &dataset->files[i];
    const struct split *split = i < TRAINING_FILES ? &dataset->train : &dataset->test;
    uint8_t part[AT_ONCE * RECORD_BYTES];
    char path[4096];
    join(path, dataset->directory, dataset_files[i]);
    for (size_t first = 0; first < split->per_file; first += AT_ONCE) {
        size_t count = split->per_file - first < AT_ONCE ? split->per_file - first : AT_ONCE;
        const uint8_t *records = split->files[i % TRAINING_FILES] + first * RECORD_BYTES;
        const char *reason = NULL;
        if (!file->copied) {
            reason = read_part(file->descriptor, part, count * RECORD_BYTES, first * RECORD_BYTES);
            records = part;
        }
        if (reason != NULL)
            return error_set(error, EXIT_INPUT, "%s: cannot be read: %s", path, reason);
        if (!check_labels(path, records, first, count, error))
            return false;
        XXH64_update(hash, records, count * RECORD_BYTES);
    }
    return true;
}

static bool hash_all(const struct dataset *dataset, uint64_t *digest, struct error *error)
{
    XXH64_state_t *hash = memory_check(XXH64_createState(), "the hash of the data");
    XXH64_reset(hash, 0);
    bool good = true;
    for (int i = 0; good && i < DATA_FILES; i++)
        good = hash_file(dataset, i, hash, error);
    *digest = XXH64_digest(hash);
    XXH64_freeState(hash);
    return good;
}

static FILE *open_digest(const char *directory, const char *mode)
{
    char path[4096 + 16];
    snprintf(path, sizeof path, "%s/xxh64", directory);
    return fopen(path, mode);
}

bool dataset_read_digest(const char *directory, uint64_t *digest)
{
    FILE *file = open_digest(directory, "re");
    bool good = file != NULL && fscanf(file, "%16" SCNx64, digest) == 1;
    if (file != NULL)
        fclose(file);
    return good;
}

bool dataset_write_digest(const char *directory, uint64_t digest)
{
    FILE *file = open_digest(directory, "we");
    return file != NULL && dataset_finish_file(file, fprintf(file, "%016" PRIx64 "\n", digest) > 0);
}

bool dataset_finish_file(FILE *file, bool good)
{
    good = good && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int reason = errno;
    fclose(file);
    errno = reason;
    return good;
}

bool dataset_open(struct dataset *dataset, const char *directory, struct error *error)
{
    memset(dataset, 0, sizeof *dataset);
    snprintf(dataset->directory, sizeof dataset->directory, "%s", directory);
    for (int i = 0; i < DATA_FILES; i++)
        dataset->files[i].descriptor = -1;
    bool good = true;
    for (int i = 0; good && i < DATA_FILES; i++) {
        struct split *split = i < TRAINING_FILES ? &dataset->train : &dataset->test;
        char path[4096];
        good = map_file(join(path, directory, dataset_files[i]), &split->per_file, &split->files[i % TRAINING_FILES],
                        &dataset->files[i], error);
        dataset->copied |= dataset->files[i].copied;
    }
    dataset->train.count = TRAINING_FILES * dataset->train.per_file;
    dataset->test.count = dataset->test.per_file;
    good = good && hash_all(dataset, &dataset->hash, error);
    if (!good)
        dataset_close(dataset);
    return good;
}

static void unmap(struct split *split)
{
    for (int i = 0; i < TRAINING_FILES; i++)
        if (split->files[i] != NULL)
            munmap((void *)split->files[i], split->per_file * RECORD_BYTES);
}

void dataset_close(struct dataset *dataset)
{
    unmap(&dataset->train);
    unmap(&dataset->test);
    for (int i = 0; i < DATA_FILES; i++)
        if (dataset->files[i].descriptor >= 0)
            close(dataset->files[i].descriptor);
    memset(dataset, 0, sizeof *dataset);
    for (int i = 0; i < DATA_FILES; i++)
        dataset->files[i].descriptor = -1;
}

bool dataset_is_unchanged(const struct dataset *dataset, struct error *error)
{
    for (int i = 0; i < DATA_FILES; i++) {
        const struct data_file *file = &dataset->files[i];
        const struct split *split = i < TRAINING_FILES ? &dataset->train : &dataset->test;
        struct stat status;
        if (file->copied)
            continue;
        bool there = fstat(file->descriptor, &status) == 0 && (size_t)status.st_size == split->per_file * RECORD_BYTES;
        if (there && memcmp(&status.st_mtim, &file->modified, sizeof file->modified) == 0)
            continue;
        uint64_t digest;
        if (!there || !hash_all(dataset, &digest, &(struct error){0}) || digest != dataset->hash)
            return error_set(
                error, EXIT_INPUT,
                "%s/%s was changed while the run used it, and what was learned since the last checkpoint may be "
                "wrong: restore the file, then --resume",
                dataset->directory, dataset_files[i]);
    }
    return true;
}

const char *dataset_file_at(const struct dataset *dataset, const void *address)
{
    for (int i = 0; i < DATA_FILES; i++) {
        const struct split *split = i < TRAINING_FILES ? &dataset->train : &dataset->test;
        uintptr_t first = (uintptr_t)split->files[i % TRAINING_FILES];
        if ((uintptr_t)address - first < split->per_file * RECORD_BYTES)
            return dataset_files[i];
    }
    return NULL;
}

/* --- finding ---------------------------------------------------------------------------------- */

static bool exists(const char *directory, const char *name)
{
    char path[4096];
    return access(join(path, directory, name), F_OK) == 0;
}

/* One file is enough: what else is amiss, dataset_open says. */
static bool holds_data(const char *directory)
{
    for (int i = 0; i < DATA_FILES; i++)
        if (exists(directory, dataset_files[i]))
            return true;
    return false;
}

/* Whether CIFAR-10's Python version lies at, in or beside `directory`. */
static bool is_pickled(const char *directory)
{
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", directory);
    char *slash = strrchr(parent, '/');
    if (slash != NULL)
        *slash = '\0';
    return exists(directory, "data_batch_1") || exists(directory, PICKLED) ||
           exists(slash != NULL ? parent : ".", PICKLED);
}

/* A directory the user named, by option or variable `source`. */
static bool find_named(const char *source, const char *named, char directory[4096], struct error *error)
{
    struct stat status;
    if (stat(named, &status) == 0 && !S_ISDIR(status.st_mode))
        return error_set(error, EXIT_INPUT, "%s: %s is not a directory; name the one that holds " ALL_FILES, source,
                         named);
    if (access(named, X_OK) != 0)
        return error_set(error, EXIT_INPUT, "%s: the data directory %s cannot be read: %s", source, named,
                         strerror(errno));
    if (!holds_data(named)) {
        if (exists(named, WELL_KNOWN)) {
            join(directory, named, WELL_KNOWN);
            return true;
        }
        bool pickled = is_pickled(named);
        return error_set(error, EXIT_INPUT, "%s: %s holds none of " ALL_FILES ": %s%s", source, named,
                         pickled ? "" : beside_launch(),
                         pickled ? PICKLED_HINT : "fetch-cifar10 gets them, --data synthetic needs none");
    }
    snprintf(directory, 4096, "%s", named);
    return true;
}

bool dataset_find(const char *wanted, char directory[4096], struct error *error)
{
    if (wanted != NULL)
        return find_named("--data", wanted, directory, error);
    const char *variable = getenv("DTRAIN_DATA");
    if (variable != NULL && variable[0])
        return find_named("DTRAIN_DATA", variable, directory, error);

    char cached[4096] = "";
    bool has_cache = cache_path(WELL_KNOWN, cached, &(struct error){0});
    const char *const places[] = {"data/" WELL_KNOWN, has_cache ? cached : NULL};
    bool pickled = false;
    for (size_t i = 0; i < 2 && places[i] != NULL; i++) {
        if (holds_data(places[i])) {
            snprintf(directory, 4096, "%s", places[i]);
            return true;
        }
        pickled = pickled || is_pickled(places[i]);
    }
    return error_set(error, EXIT_INPUT,
                     "no CIFAR-10 in %s%s%s%s: get it with %sfetch-cifar10, or name its directory with "
                     "--data DIR or DTRAIN_DATA, or train on drawn pictures with --data synthetic",
                     places[0], has_cache ? " or " : "", cached, pickled ? "; " PICKLED_HINT : "", beside_launch());
}
