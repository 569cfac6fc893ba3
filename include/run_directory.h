/* run_directory.h - the directory of one run: made, locked, and described in run.json. */
#ifndef DTRAIN_RUN_DIRECTORY_H
#define DTRAIN_RUN_DIRECTORY_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "error.h"

struct run_directory {
    char path[4096];
    int lock; /* file descriptor of path/lock */
};

/* Makes the directory with its parents and takes its lock, so that no two runs share it. A directory that
 * holds a run already is refused unless `resume`. Errors name the path: EXIT_USAGE (in use, or a run is
 * there), EXIT_RUNTIME (cannot be made or written). */
bool run_directory_open(struct run_directory *directory, const char *path, bool resume, struct error *error);

/* path/run.json as the run left it before; the caller deletes it. NULL: there is none. */
cJSON *run_directory_read(const struct run_directory *directory);

/* Writes path/run.json: complete or absent. */
bool run_directory_write(const struct run_directory *directory, const cJSON *json, struct error *error);

/* Gives the lock back. */
void run_directory_close(struct run_directory *directory);

#endif
