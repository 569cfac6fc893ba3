/* safetensors.h - reads and writes the safetensors format: 8 bytes little-endian header length, a JSON
 * header {"name": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, "__metadata__":
 * {"key": "string"}}, then the tensors' bytes. Only F32 is written and read.
 */
#ifndef DTRAIN_SAFETENSORS_H
#define DTRAIN_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct tensor {
    const char *name;
    size_t dimensions, shape[4];
    size_t count; /* floats */
    float *data;
};

struct metadata {
    const char *key, *value; /* UTF-8 */
};

/* Writes a file that is complete or absent: `path`.tmp-PID, fsync, rename, fsync of the directory. If
 * `checksum` the metadata gains "checksum": xxh64 over the whole file, in hex, computed with that field
 * as 16 zeros. Errors (EXIT_RUNTIME: no space, no permission) name the path; the old file stays. */
bool safetensors_write(const char *path, const struct tensor *tensors, size_t n_tensors,
                       const struct metadata *metadata, size_t n_metadata, bool checksum,
                       struct error *error);

struct safetensors; /* a file read into memory; opaque */

/* Reads and checks all of it: lengths, JSON, dtype, offsets in bounds and without overlap, shapes that
 * match their sizes, the checksum if there is one. Errors (EXIT_INPUT) name the file and the fault. */
struct safetensors *safetensors_open(const char *path, struct error *error);
void safetensors_close(struct safetensors *file);

/* The value of a metadata key, or NULL. Lives as long as the file. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* Copies tensor `want->name` to want->data when its shape is want's. Else error (EXIT_INPUT): absent, or
 * of another shape. */
bool safetensors_read(const struct safetensors *file, const struct tensor *want, struct error *error);

#endif
