/* cache.h - the user's cache directory of dtrain: $XDG_CACHE_HOME/dtrain, or ~/.cache/dtrain. A relative
 * XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification asks.
 */
#ifndef DTRAIN_CACHE_H
#define DTRAIN_CACHE_H

#include <stdbool.h>

#include "error.h"

/* The path of `name` inside the cache; nothing is created. Fails (EXIT_RUNTIME) when neither
 * XDG_CACHE_HOME nor HOME holds an absolute path, or when the path does not fit. */
bool cache_path(const char *name, char path[4096], struct error *error);

/* Creates the directories above an absolute path of the cache. Returns the errno of the first that could not be made,
 * or 0. */
int cache_make_parents(const char *path);

/* Removes a directory of files, if it can; a link to one goes alone. */
void cache_remove(const char *path);

/* What is made for the cache is made in DIRECTORY.tmp-XXXXXX, and then renamed. Removes those that killed processes
 * left: nothing was put there for a day. A lock would tell sooner, but on NFS and Lustre a directory's is not seen by
 * other hosts. */
void cache_remove_abandoned(const char *directory);

#endif
