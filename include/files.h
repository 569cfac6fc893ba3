/* files.h - what the modules of src/files share: folders, and files in them that are complete or absent.
 *
 * A folder is opened once, and what is written goes through its descriptor: when the directory is moved, or another
 * takes its path, nothing lands in the other one. Links are not followed to write, and names that others may have
 * guessed are made anew.
 */
#ifndef DTRAIN_FILES_H
#define DTRAIN_FILES_H

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct cJSON;

struct folder {
    char path[4096]; /* as it was named: for messages, and to see whether it still names this folder */
    int descriptor;  /* AT_FDCWD: the current directory */
    int lock;        /* descriptor of its file "lock", held by a run (run_directory.h); -1: not a run's */
};

/* Opens a directory that is there. Errors: EXIT_RUNTIME. */
bool folder_open(struct folder *folder, const char *path, struct error *error);
void folder_close(struct folder *folder); /* gives the lock back */

/* Whether the path still names this folder, and "lock" in it the file that is held; else another run may be there, and
 * *error (EXIT_RUNTIME) says what happened. What cannot be found out counts as yes. */
bool folder_is_ours(const struct folder *folder, struct error *error);

/* Opens a regular file in it for writing, with open's flags; -1 and *error (EXIT_RUNTIME) for a symbolic link, a
 * FIFO and the like. */
int folder_open_file(const struct folder *folder, const char *name, int flags, struct error *error);

/* Its entries, to be closed; NULL: they cannot be read. */
DIR *folder_list(const struct folder *folder);

/* Puts `bytes` bytes into the file `name`: written aside as `name`.tmp-PID, synced, renamed, the directory synced. At
 * every instant `name` is the old file or the new one, whole, also after a crash. If `keep` is not NULL (another name)
 * the old file stays as `keep`; on a file system without hard links there is an instant when only `keep` is there.
 * Leftovers of killed writers are removed. A folder that is no longer ours is left alone. On failure (EXIT_RUNTIME: no
 * space, no permission) *error names the file, and the old files stay. */
bool folder_replace(const struct folder *folder, const char *name, const char *keep, const void *data, size_t bytes,
                    struct error *error);

/* Whether `entry` is what a killed writer left of `name`. */
bool folder_is_leftover(const char *entry, const char *name);

/* Whether a failed sync says no more than that there is no syncing here. */
bool folder_cannot_sync(int reason);

/* The object in a file of JSON, up to 16 MiB; the caller deletes it. NULL: there is none that can be read. */
struct cJSON *folder_read_json(const struct folder *folder, const char *name);

#endif
