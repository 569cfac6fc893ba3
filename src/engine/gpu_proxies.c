/* What the lists of engines and transports name for the GPU part: each loads it, then opens the real one there. */
#include <stdio.h>
#include <stdlib.h>

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
    .is_defined = true,
    .available = fused_available,
    .open = open_fused,
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
