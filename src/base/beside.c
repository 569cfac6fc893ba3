#include "beside.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool beside_find(const char *name, char path[PATH_MAX])
{
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program);
    const char *slash = length > 0 ? memrchr(program, '/', (size_t)length) : NULL;
    if (slash != NULL && snprintf(path, PATH_MAX, "%.*s/%s", (int)(slash - program), program, name) < PATH_MAX)
        return true;
    snprintf(path, PATH_MAX, "%s", name);
    return false;
}

const char *beside_launch(void)
{
    char path[PATH_MAX];
    return beside_find("../../bin/dtrain-run", path) && access(path, F_OK) == 0 ? "dtrain-" : "launch/";
}
