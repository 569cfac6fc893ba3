/* find_data.h - from --data to the directory of the data: DIR, one of the usual places, what others keep, or the synthetic set. */
#ifndef DTRAIN_FIND_DATA_H
#define DTRAIN_FIND_DATA_H

#include "comm.h"
#include "error.h"

/* Collective. The synthetic set, and a copy of what is not of the binary version, is made in the cache by one
 * rank a host where it is not there yet. wanted: --data, or
 * NULL. False with *error, perhaps on one rank only. */
bool find_data(const char *wanted, struct comm *world, char directory[4096], struct error *error);

#endif
