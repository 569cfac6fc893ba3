/* dataset.h - CIFAR-10 in its binary layout, memory-mapped read-only.
 *
 * A directory of data_batch_1.bin .. data_batch_5.bin and test_batch.bin, each a run of 3,073-byte
 * records: one label 0..9, then 3,072 pixels (32x32 planes red, green, blue, row by row). Ranks of a
 * host share one copy in the page cache. The real set has 50,000 + 10,000 records; any size is read
 * as long as the five training files hold equally many.
 */
#ifndef DTRAIN_DATASET_H
#define DTRAIN_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "error.h"
#include "lenet5.h"

enum { RECORD_BYTES = 1 + LENET5_PIXELS, TRAINING_FILES = 5, DATA_FILES = TRAINING_FILES + 1 };
extern const char *const dataset_files[DATA_FILES]; /* names: the training files in order, the test file */

/* The training set or the test set. */
struct split {
    size_t count;                         /* samples */
    size_t per_file;                      /* samples in each file */
    const uint8_t *files[TRAINING_FILES]; /* mapped records; the test set has one file */
};

struct dataset {
    char directory[4096];
    struct split train, test;
    bool copied;   /* one of the files is */
    uint64_t hash; /* xxh64 of all files' bytes, in order: equal on every rank, or the run is refused */
    struct data_file {
        int descriptor;
        bool copied;              /* not mapped, as the file system cannot: every rank has a copy of its own */
        struct timespec modified; /* when it was opened */
    } files[DATA_FILES];
};

/* Maps and checks every file of a directory: sizes, labels. On failure *error (EXIT_INPUT) names the
 * file, the offset and what would be right, and nothing stays open. */
bool dataset_open(struct dataset *dataset, const char *directory, struct error *error);
void dataset_close(struct dataset *dataset);

/* Whether the files still hold what they held, or were copied, so that it does not matter; if not, *error (EXIT_INPUT)
 * names the one that was changed. Reads them again only where a time has moved. */
bool dataset_is_unchanged(const struct dataset *dataset, struct error *error);

/* The name of the file of which the byte at this address is one, as it is mapped; NULL: none. Also in a signal's
 * handler. */
const char *dataset_file_at(const struct dataset *dataset, const void *address);

/* A set in the cache has its digest beside it, in a file: dataset.hash when it was made. Reading fails where there is
 * none, or half of one, which writing replaces. Where it cannot be written errno says why. */
bool dataset_read_digest(const char *directory, uint64_t *digest);
bool dataset_write_digest(const char *directory, uint64_t digest);

/* Closes a file of a set, with all of it on the disk if it was written well so far. False: errno says why. */
bool dataset_finish_file(FILE *file, bool good);

/* Finds where the data lies, without opening it: `wanted` (--data) if not NULL, else $DTRAIN_DATA, else
 * data/cifar-10-batches-bin, else dtrain/cifar-10-batches-bin below the user's cache ($XDG_CACHE_HOME
 * or ~/.cache). A `wanted` or $DTRAIN_DATA that lacks the files is an error, not skipped. If nothing is
 * found the error names the places searched and both remedies (fetching it, --data synthetic). */
bool dataset_find(const char *wanted, char directory[4096], struct error *error);

/* The record of sample i: label at [0], pixels from [1] on. */
static inline const uint8_t *split_record(const struct split *split, size_t i)
{
    return split->files[i / split->per_file] + i % split->per_file * RECORD_BYTES;
}

#endif
