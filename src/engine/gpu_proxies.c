/* What the lists of engines and transports name for the GPU part: each loads it, then opens the real one there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices.h"
#include "gpu.h"
#include "memory.h"
#include "nccl_log.h"
#include "src/comm/transport.h"

/* --- the engine ------------------------------------------------------------------------------------- */

static bool available(const struct engine_ops *engine, char *why, size_t why_bytes)
{
    return engine != NULL && engine->available(why, why_bytes);
}

static struct engine *open_engine(const struct engine_ops *engine, const char *name, char *why, size_t why_bytes,
                                  const struct engine_setup *setup, struct error *error)
{
    if (!available(engine, why, why_bytes)) {
        error_set(error, EXIT_RUNTIME, "engine %s: rank %d on host %s cannot run it: %s", name, comm_rank(setup->comm),
                  comm_host_name(setup->comm, comm_rank(setup->comm)), why);
        return NULL;
    }
    return engine->open(setup, error);
}

static const struct engine_ops *find_cudnn(char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    return part != NULL ? part->cudnn : NULL;
}

static bool cudnn_available(char *why, size_t why_bytes)
{
    return available(find_cudnn(why, why_bytes), why, why_bytes);
}

static struct engine *open_cudnn(const struct engine_setup *setup, struct error *error)
{
    char why[300];
    return open_engine(find_cudnn(why, sizeof why), "cudnn", why, sizeof why, setup, error);
}

const struct engine_ops proxy_cudnn = {
    .name = "cudnn",
    .note = "GPUs",
    .on_gpu = true,
    .available = cudnn_available,
    .open = open_cudnn,
};

static const struct engine_ops *find_fused(char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    return part != NULL ? part->fused : NULL;
}

static bool fused_available(char *why, size_t why_bytes)
{
    return available(find_fused(why, why_bytes), why, why_bytes);
}

static struct engine *open_fused(const struct engine_setup *setup, struct error *error)
{
    char why[300];
    return open_engine(find_fused(why, sizeof why), "fused", why, sizeof why, setup, error);
}

const struct engine_ops proxy_fused = {
    .name = "fused",
    .note = "GPUs, to the CPU's bits",
    .on_gpu = true,
    .in_kernel = true,
    .is_defined = true,
    .available = fused_available,
    .open = open_fused,
};

/* --- the transports --------------------------------------------------------------------------------- */

static bool suits(struct comm *comm, enum comm_place place, char *why, size_t why_bytes)
{
    if (place == COMM_FOR_CPU) {
        snprintf(why, why_bytes,
                 "it sums on GPUs, but the engine computes on the CPU: give --engine cudnn, or "
                 "--comm mpi");
        return false;
    }
    struct device *devices = memory_allocate((size_t)comm->size, sizeof *devices, "the list of GPUs");
    devices_gather(comm, devices);
    bool apart = devices_are_apart(devices, comm->size, why, why_bytes);
    free(devices);
    return apart;
}

static void prepare(void)
{
    if (gpu_is_built())
        nccl_log_open();
}

static bool open_nccl(struct comm *comm, struct error *error)
{
    char why[300];
    const struct gpu_part *part = gpu_load(why, sizeof why);
    if (part == NULL)
        return error_set(error, EXIT_RUNTIME, "--comm nccl: %s", why);
    comm->transport = part->nccl;
    return part->nccl->open(comm, error);
}

const struct transport proxy_nccl = {
    .name = "nccl",
    .note = "one GPU a rank",
    .suits = suits,
    .prepare = prepare,
    .open = open_nccl,
};

/* Whether this rank's GPU reaches those of all others. */
static bool reaches_all(const struct comm *comm, const struct device *devices, char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    for (int i = 0; i < comm->size; i++)
        if (strcmp(devices[i].host, devices[0].host) != 0) {
            snprintf(why, why_bytes, "ranks 0 and %d are on two hosts, %s and %s", i, devices[0].host, devices[i].host);
            return false;
        }
    return devices_are_apart(devices, comm->size, why, why_bytes) && part != NULL &&
           part->reaches(devices, comm->size, comm->rank, why, why_bytes);
}

static bool suits_peers(struct comm *comm, enum comm_place place, char *why, size_t why_bytes)
{
    struct error refused = {0};
    if (place != COMM_FOR_KERNEL) {
        snprintf(why, why_bytes, "engine fused alone sums so: give --engine fused, or another --comm");
        return false;
    }
    struct device *devices = memory_allocate((size_t)comm->size, sizeof *devices, "the list of GPUs");
    devices_gather(comm, devices);
    if (!reaches_all(comm, devices, why, why_bytes))
        error_set(&refused, EXIT_USAGE, "%s", why);
    bool agreed = comm_agree(comm, &refused) && gpu_load(why, why_bytes)->can_map(comm, &refused);
    free(devices);
    snprintf(why, why_bytes, "%s", agreed ? "every GPU reaches the memory of the others" : refused.text);
    return agreed;
}

const struct transport transport_peers = {
    .name = "peers",
    .note = "engine fused, GPUs of a host that reach each other",
    .in_kernel = true,
    .suits = suits_peers,
};
