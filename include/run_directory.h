/* run_directory.h - the directory of one run: made, locked, and described in run.json. */
#ifndef DTRAIN_RUN_DIRECTORY_H
#define DTRAIN_RUN_DIRECTORY_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "error.h"
#include "files.h"

/* Makes the directory with its parents, opens it and takes its lock, so that no two runs share it; folder_close gives
 * it back. A directory that holds a run already is refused unless `resume`, one with a study's runs in A, seed1 or
 * seed1/A always. Says what its file system lacks, as the run goes on there with less safety. Errors name the path:
 * EXIT_USAGE (in use, a run or a study is there, or a file `lock` that is no run's), EXIT_RUNTIME (cannot be made or
 * written). */
bool run_directory_open(struct folder *folder, const char *path, bool resume, struct error *error);

/* Whether a study may have `below`, "A" or "seed1", in this directory, which is there or not. Error: EXIT_USAGE, it is
 * a run's, or has seeds where the study has nets, or nets where it has seeds. */
bool run_directory_admits_study(const char *path, const char *below, struct error *error);

/* Removes what killed writers left, and says so. Before the run's first write. */
void run_directory_tidy(const struct folder *folder);

/* run.json as the run left it before; the caller deletes it. NULL: there is none. One that is damaged is kept under
 * another name, and that is said. */
cJSON *run_directory_read(const struct folder *folder);

/* A string for run.json, which is UTF-8: other bytes, as names of files may have, become question marks. The caller
 * owns it. */
cJSON *run_directory_text(const char *text);

/* Writes run.json: complete or absent. Errors: EXIT_RUNTIME (no space, no permission). */
bool run_directory_write(const struct folder *folder, const cJSON *json, struct error *error);

#endif
