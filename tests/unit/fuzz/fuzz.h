/* fuzz.h - what the fuzzers share: the input as a file in a folder of this process's own, in memory. */
#ifndef DTRAIN_FUZZ_H
#define DTRAIN_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The folder, made below the current one at the first call. */
static inline const char *fuzz_folder(void)
{
    static char folder[] = "input-XXXXXX";
    static int made;
    if (!made && mkdtemp(folder) == NULL)
        abort();
    made = 1;
    return folder;
}

static inline void fuzz_write(const char *name, const uint8_t *data, size_t size)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        abort();
}

/* Bad input is told in one line, with an exit code; good input is not told at all. */
static inline void fuzz_check_verdict(int good, const struct error *error)
{
    if (good != (error->code == EXIT_DONE))
        abort();
    for (const char *c = error->text; !good && (c == error->text || *c != '\0'); c++)
        if (*c == '\0' || *c == '\n')
            abort();
}

#endif
