/* files.h - what the modules of src/files share: paths, and files that are complete or absent. */
#ifndef DTRAIN_FILES_H
#define DTRAIN_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct cJSON;

/* path = directory/name. Fails (EXIT_RUNTIME) when it, or the name of its temporary file, would not fit. */
bool files_path(const char *directory, const char *name, char path[4096], struct error *error);

/* Puts `bytes` bytes at `path`: written aside as `path`.tmp-PID, synced, renamed, the directory synced. At
 * every instant `path` is the old file or the new one, whole, also after a crash. If `keep` is not NULL (a
 * path in the same directory) the old file stays as `keep`; on a file system without hard links there is
 * an instant when only `keep` is there. Leftovers of killed writers are removed. On failure (EXIT_RUNTIME:
 * no space, no permission) *error names the path, and the old files stay. */
bool files_replace(const char *path, const char *keep, const void *data, size_t bytes,
                   struct error *error);

/* A file of JSON, up to 1 MiB; the caller deletes it. NULL: there is none that can be read. */
struct cJSON *files_read_json(const char *path);

#endif
