/* find_data.h - from --data to the directory of the data: DIR, one of the usual places, what others keep, or the
 * synthetic set. */
#ifndef DTRAIN_FIND_DATA_H
#define DTRAIN_FIND_DATA_H

#include <stdbool.h>
#include <stddef.h>

#include "comm.h"
#include "error.h"

/* What --data asks for. */
struct data_choice {
    enum { DATA_BINARY, DATA_SYNTHETIC, DATA_TO_CONVERT } kind;
    const char *named;  /* DATA_TO_CONVERT: the file or directory that is not of the binary version; borrowed */
    size_t train, test; /* DATA_SYNTHETIC: pictures */
};

/* wanted: --data, or NULL: then $DTRAIN_DATA may name some. Looks at what a name leads to, makes nothing. Errors
 * (EXIT_USAGE): a count of synthetic pictures that cannot be. */
bool find_data_choose(const char *wanted, struct data_choice *choice, struct error *error);

/* Collective. The synthetic set, and a copy of what is not of the binary version, is made in the cache where it is
 * not there yet: by rank 0, then by the first rank of each host that does not share its cache. wanted: as above.
 * False with *error, perhaps on one rank only: EXIT_USAGE (a count of pictures), EXIT_INPUT (no data there, or not to
 * be converted), EXIT_RUNTIME (no space, no python3). */
bool find_data(const char *wanted, struct comm *world, char directory[4096], struct error *error);

#endif
