/* convert_data.h - CIFAR-10 as others keep it: torchvision's cifar-10-batches-py, or an archive of either version. */
#ifndef DTRAIN_PROGRAM_CONVERT_DATA_H
#define DTRAIN_PROGRAM_CONVERT_DATA_H

#include <stdbool.h>

#include "error.h"

/* Whether `named` is there and something for convert_data, to be converted or to be told what it is, rather than a
 * directory of the binary version. */
bool convert_data_wants(const char *named);

/* Converts it into the user's cache, once while its files stay as they are, by launch/convert-cifar10, and gives the
 * directory. Complete or absent, safe when several processes do it at once. Errors: EXIT_INPUT, it is not CIFAR-10 or
 * is damaged; EXIT_RUNTIME, no python3, no room. A copy that is no longer what it was is made anew, with a
 * note. Takes seconds. */
bool convert_data(const char *named, char directory[4096], struct error *error);

/* Where the copy lies, or will. Fails as cache_path, or (EXIT_INPUT) where `named` cannot be read. */
bool convert_data_find(const char *named, char directory[4096], struct error *error);

#endif
