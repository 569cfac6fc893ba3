/* What the lists of engines and transports name for the GPU part, which is loaded where it is asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices.h"
#include "gpu.h"
#include "memory.h"
#include "nccl_log.h"
#include "src/comm/transport.h"

/* --- the engines ------------------------------------------------------------------------------------ */

const struct engine_ops *gpu_find_cudnn(char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    return part != NULL ? part->cudnn : NULL;
}

const struct engine_ops *gpu_find_fused(char *why, size_t why_bytes)
{
    const struct gpu_part *part = gpu_load(why, why_bytes);
    return part != NULL ? part->fused : NULL;
}

/* --- the transports --------------------------------------------------------------------------------- */

/* Who of the world has which GPU: a group may share its GPUs with another. */
struct survey {
    int count;
    struct device all[];
};

static void *survey_world(struct comm *world, enum comm_use use)
{
    size_t count = (size_t)world->size;
    if (use == COMM_FOR_CPU)
        return NULL;
    struct survey *made = memory_allocate(1, sizeof *made + count * sizeof *made->all, "the list of GPUs");
    made->count = world->size;
    devices_gather(world, made->all);
    return made;
}

static bool are_apart(const struct comm *comm, char *why, size_t why_bytes)
{
    const struct survey *survey = comm->survey;
    return devices_are_apart(survey->all, survey->count, why, why_bytes);
}

/* Of the group's ranks; the caller frees them. */
static struct device *list_devices(const struct comm *comm)
{
    const struct survey *survey = comm->survey;
    struct device *devices = memory_allocate((size_t)comm->size, sizeof *devices, "the list of GPUs");
    for (int i = 0; i < comm->size; i++)
        devices[i] = survey->all[comm->group.world_ranks[i]];
    return devices;
}

/* Collective, where every rank has a GPU of its own. NCCL maps the memory of the host's other GPUs, and fails where a
 * rank can do that neither because it sees them nor otherwise; then this has it go by way of the host's memory. The
 * threads that there are by now, of MPI and CUDA, read nothing of the environment. */
static void find_way(struct comm *comm, const struct device *devices, char *why, size_t why_bytes)
{
    static const char setting[] = "NCCL_P2P_DISABLE";
    struct error refused = {0};
    const struct gpu_part *part = gpu_load(why, why_bytes);
    if (!comm_largest(comm, !part->sees(devices, comm->size, comm->rank)) || part->can_map(comm, &refused) ||
        comm_largest(comm, nccl_log_user_sets(setting)))
        return;
    setenv(setting, "1", 1);
    snprintf(why, why_bytes, "every rank has a GPU of its own; %s=1, as %s", setting, refused.text);
}

static bool suits(struct comm *comm, enum comm_use use, char *why, size_t why_bytes)
{
    if (use == COMM_FOR_CPU) {
        snprintf(why, why_bytes,
                 "it sums on GPUs, but the engine computes on the CPU: give --engine cudnn, or "
                 "--comm mpi");
        return false;
    }
    if (!are_apart(comm, why, why_bytes))
        return false;
    struct device *devices = list_devices(comm);
    find_way(comm, devices, why, why_bytes);
    free(devices);
    return true;
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
    .advice = "; if it happens again, give --comm mpi, or set NCCL_P2P_DISABLE=1",
    .survey = survey_world,
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
    return are_apart(comm, why, why_bytes) && part != NULL &&
           part->reaches(devices, comm->size, comm->rank, why, why_bytes);
}

static bool suits_peers(struct comm *comm, enum comm_use use, char *why, size_t why_bytes)
{
    struct error refused = {0};
    if (use != COMM_FOR_KERNEL) {
        snprintf(why, why_bytes, "engine fused alone sums so: give --engine fused, or another --comm");
        return false;
    }
    struct device *devices = list_devices(comm);
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
    .advice = "; if it happens again, give --comm nccl",
    .suits = suits_peers,
};
