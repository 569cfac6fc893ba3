#include "cache.h"

#include <stdio.h>
#include <stdlib.h>

bool cache_path(const char *name, char path[4096], struct error *error)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length;
    if (xdg != NULL && xdg[0] == '/')
        length = snprintf(path, 4096, "%s/dtrain/%s", xdg, name);
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, 4096, "%s/.cache/dtrain/%s", home, name);
    else
        return error_set(error, EXIT_RUNTIME,
                         "no cache directory: neither XDG_CACHE_HOME nor HOME is set to an absolute path");
    if (length >= 4096)
        return error_set(error, EXIT_RUNTIME,
                         "the cache directory's path is too long: set XDG_CACHE_HOME "
                         "to a path of less than 4,000 bytes");
    return true;
}
