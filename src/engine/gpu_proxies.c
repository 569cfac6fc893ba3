/* What the lists of engines and transports name for the GPU part: each loads it, then opens the real one there. */
#include <stdio.h>
#include <stdlib.h>

#include "devices.h"
#include "gpu.h"
#include "memory.h"
#include "nccl_log.h"
#include "src/comm/transport.h"

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
        error_set(error, EXIT_RUNTIME, "engine cudnn: rank %d on host %s cannot run it: %s", comm_rank(setup->comm),
                  comm_host_name(setup->comm, comm_rank(setup->comm)), why);
        return NULL;
    }
    return part->engine->open(setup, error);
}

const struct engine_ops proxy_cudnn = {
    .name = "cudnn",
    .note = "GPUs",
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
    comm->transport = part->transport;
    return part->transport->open(comm, error);
}

const struct transport proxy_nccl = {
    .name = "nccl",
    .note = "one GPU a rank",
    .suits = suits,
    .prepare = prepare,
    .open = open_nccl,
};
