#include "gpu.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/comm/transport.h"
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
        snprintf(why, why_bytes, "this program was built without CUDA: there is no %s",
                 strrchr(path, '/') + 1);
    else
        snprintf(why, why_bytes, "%s", reason ? reason : "it cannot be loaded");
}

/* Libraries stay loaded until the end, so loading them again is only a look-up. */
const struct gpu_part *gpu_load(char *why, size_t why_bytes)
{
    char path[PATH_MAX];
    if (dlopen("libcuda.so.1", RTLD_LAZY) == NULL) {
        snprintf(why, why_bytes, "no NVIDIA driver here: libcuda.so.1 is not found");
        return NULL;
    }
    void *library = name_part(path) ? dlopen(path, RTLD_LAZY) : NULL;
    const struct gpu_part *part = library != NULL ? dlsym(library, "dtrain_gpu_part") : NULL;
    if (part == NULL) {
        explain_missing(path, why, why_bytes);
        return NULL;
    }
    if (strcmp(part->revision, version_revision) != 0) {
        snprintf(why, why_bytes, "%s is of revision %s, this program of %s: run make again",
                 strrchr(path, '/') + 1, part->revision, version_revision);
        return NULL;
    }
    return part;
}

/* --- the engine ------------------------------------------------------------------------------------- */

static bool available(char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    return part != NULL && part->engine->available(why, why_bytes);
}

static struct engine *open_cudnn(const struct engine_setup *setup, struct error *error)
{
    char why[300];
    const struct gpu_part *part = gpu_load(why, sizeof why);
    if (part == NULL || !part->engine->available(why, sizeof why)) {
        error_set(error, EXIT_RUNTIME, "engine cudnn: rank %d on host %s cannot run it: %s",
                  comm_rank(setup->comm), comm_host_name(setup->comm, comm_rank(setup->comm)), why);
        return NULL;
    }
    return part->engine->open(setup, error);
}

const struct engine_ops engine_cudnn = {
    .name = "cudnn",
    .on_gpu = true,
    .available = available,
    .open = open_cudnn,
};

/* --- the transport ---------------------------------------------------------------------------------- */

static bool suits(struct comm *comm, bool on_gpu, char *why, size_t why_bytes)
{
    if (!on_gpu) {
        snprintf(why, why_bytes,
                 "it sums on GPUs, but the engine computes on the CPU: give --engine cudnn, or "
                 "--comm mpi");
        return false;
    }
    struct device *devices = calloc((size_t)comm->size, sizeof *devices);
    devices_gather(comm, devices);
    bool apart = devices_are_apart(devices, comm->size, why, why_bytes);
    free(devices);
    return apart;
}

static bool open_nccl(struct comm *comm, struct error *error)
{
    char why[300];
    const struct gpu_part *part = gpu_load(why, sizeof why);
    if (part == NULL)
        return error_set(error, EXIT_RUNTIME, "--comm nccl: %s", why);
    comm->transport = part->transport;
    return part->transport->open(comm, error);
}

const struct transport transport_nccl = {.name = "nccl", .suits = suits, .open = open_nccl};
