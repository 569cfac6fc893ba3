#include "gpu.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "version.h"

/* dtrain -> dtrain-cuda.so, in the same directory. */
static bool name_part(char path[PATH_MAX])
{
    static const char suffix[] = "-cuda.so";
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - sizeof suffix);
    if (length <= 0)
        return false;
    memcpy(path + length, suffix, sizeof suffix);
    return true;
}

/* dlerror names the library that is missing. */
static void explain_missing(const char *path, char *why, size_t why_bytes)
{
    const char *reason = dlerror();
    if (access(path, F_OK) != 0)
        snprintf(why, why_bytes, "this program was built without CUDA: there is no %s", strrchr(path, '/') + 1);
    else
        snprintf(why, why_bytes, "%s", reason != NULL ? reason : "it cannot be loaded");
}

bool gpu_is_built(void)
{
    char path[PATH_MAX];
    return name_part(path) && access(path, F_OK) == 0;
}

/* Libraries stay loaded until the end, so loading them again is only a look-up. */
const struct gpu_part *gpu_load(char *why, size_t why_bytes)
{
    if (dlopen("libcuda.so.1", RTLD_LAZY) == NULL) {
        snprintf(why, why_bytes, "no NVIDIA driver here: libcuda.so.1 is not found");
        return NULL;
    }
    return gpu_load_without_driver(why, why_bytes);
}

const struct gpu_part *gpu_load_without_driver(char *why, size_t why_bytes)
{
    char path[PATH_MAX];
    if (!name_part(path)) {
        snprintf(why, why_bytes, "/proc/self/exe cannot be read, beside which the GPU part lies");
        return NULL;
    }
    void *library = dlopen(path, RTLD_LAZY);
    const struct gpu_part *part = library != NULL ? dlsym(library, "dtrain_gpu_part") : NULL;
    if (part == NULL) {
        explain_missing(path, why, why_bytes);
        return NULL;
    }
    if (strcmp(part->revision, version_revision) != 0) {
        snprintf(why, why_bytes, "%s is of revision %s, this program of %s: run make again", strrchr(path, '/') + 1,
                 part->revision, version_revision);
        return NULL;
    }
    return part;
}
