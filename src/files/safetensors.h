/* safetensors.h - reads and writes the safetensors format: 8 bytes little-endian header length, a JSON
 * header {"__metadata__": {"key": "string"}, "name": {"dtype": "F32", "shape": [...], "data_offsets":
 * [begin, end]}}, then the tensors' bytes, without gaps. Only F32 is written and read.
 *
 * A checksummed file has "checksum" as its first metadata: xxh64 (seed 0) over the whole file, as 16
 * lower-case hex digits, computed with that field as 16 zeros. Its place is fixed, right behind
 * {"__metadata__":{"checksum":" at byte 8.
 */
#ifndef DTRAIN_FILES_SAFETENSORS_H
#define DTRAIN_FILES_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "files.h"

struct tensor {
    const char *name;
    size_t dimensions, shape[4];
    size_t count; /* floats */
    float *data;  /* only read by safetensors_write */
};

struct metadata {
    const char *key, *value; /* UTF-8 */
};

/* Writes a file that is complete or absent, by folder_replace: if `keep` is not NULL the file that was `name`
 * stays as `keep`. The tensors' data starts at a multiple of 8 bytes. The file is checksummed. Errors
 * (EXIT_RUNTIME: no space, no permission) name the file; the old one stays. */
bool safetensors_write(const struct folder *folder, const char *name, const char *keep, const struct tensor *tensors,
                       size_t n_tensors, const struct metadata *metadata, size_t n_metadata, struct error *error);

struct safetensors; /* a file read into memory, which others may change or remove meanwhile; opaque */

/* Reads and checks all of it: lengths, JSON, names that occur once, offsets that cover the data without gap
 * or overlap in any order, F32 shapes that match their sizes, the checksum if there is one. Errors
 * (EXIT_INPUT) name the file and the fault. Tensors of another dtype may be there. */
struct safetensors *safetensors_open(const char *path, struct error *error);
struct safetensors *safetensors_open_in(const struct folder *folder, const char *name, struct error *error);
void safetensors_close(struct safetensors *file); /* NULL is fine */

/* As it was named, for messages. Lives as long as the file. */
const char *safetensors_path(const struct safetensors *file);

/* The value of a metadata key, or NULL. Lives as long as the file. A "checksum" has been verified. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* Whether there is a tensor of this name, of whatever dtype and shape. */
bool safetensors_has(const struct safetensors *file, const char *name);

/* Copies tensor `want->name` to want->data when it is F32 and its shape is want's. Else error (EXIT_INPUT):
 * absent, of another dtype or of another shape. */
bool safetensors_read(const struct safetensors *file, const struct tensor *want, struct error *error);

#endif
