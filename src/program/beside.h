/* beside.h - what lies beside the program: the scripts of launch/. */
#ifndef DTRAIN_PROGRAM_BESIDE_H
#define DTRAIN_PROGRAM_BESIDE_H

#include <limits.h>
#include <stdbool.h>

/* The path of `name`, below the directory that this program lies in. Fails where /proc does not tell, or the path is
 * too long; `path` is then `name` itself, for a message. */
bool beside_find(const char *name, char path[PATH_MAX]);

#endif
