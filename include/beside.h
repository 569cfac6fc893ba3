/* beside.h - what lies beside the program: the scripts of launch/, and what they are called. */
#ifndef DTRAIN_BESIDE_H
#define DTRAIN_BESIDE_H

#include <limits.h>
#include <stdbool.h>

/* The path of `name`, below the directory that this program lies in. Fails where /proc does not tell, or the path is
 * too long; `path` is then `name` itself, for a message. */
bool beside_find(const char *name, char path[PATH_MAX]);

/* How a user calls those scripts, for a message: "launch/" before their names, or "dtrain-" where `make install` has
 * put them onto the PATH. */
const char *beside_launch(void);

#endif
