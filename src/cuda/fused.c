#include "fused_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "device.h"
#include "device_memory.h"
#include "memory.h"
#include "range.h"

_Static_assert((int)FUSED_LOSS == (int)FUSED_GRADIENT + (int)SLOT_LOSS && (int)FUSED_STOP == (int)FUSED_LOSS + 1 &&
                   (int)SLOT_STOP == 1 && (int)SLOT_REFUSED == 2 && (int)FUSED_REFUSED == (int)FUSED_LOSS + 2,
               "the device sums what the engine sums");

struct fused *fused_of(struct engine *engine)
{
    device_use(comm_local_rank(engine->setup.comm));
    return (struct fused *)engine; /* base is first */
}

/* --- what nets share ------------------------------------------------------------------------------------------- */

/* Whether a device can run it. */
static bool fits(int device, uint32_t *groups, char *why, size_t why_bytes)
{
    struct cudaDeviceProp properties;
    CUDA_CHECK(fused_fits(device, groups));
    if (*groups > 0)
        return true;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    snprintf(
        why, why_bytes,
        "%.79s lacks what a step in one kernel needs: %d multiprocessors, %d KB of shared memory for a block; give "
        "--engine cudnn",
        properties.name, FUSED_SEATS, (int)(fused_shared_bytes() / 1024));
    return false;
}

static bool available(char *why, size_t why_bytes)
{
    uint32_t groups;
    return device_available(why, why_bytes) && fits(0, &groups, why, why_bytes);
}

/* Collective: as launches of all ranks must have the same nets. */
static uint32_t find_least(struct comm *comm, uint32_t groups)
{
    return (uint32_t)-comm_largest(comm, -(int)groups);
}

static void free_all(void *const *memory, size_t count)
{
    for (size_t i = 0; i < count; i++)
        CUDA_CHECK(cudaFree(memory[i]));
}

static void close_device(struct fused_device *device)
{
    void *all[] = {device->exported, device->mail, device->arrived};
    free_all(all, sizeof all / sizeof *all);
    CUDA_CHECK(cudaFreeHost(device->pinned));
    queue_close(&device->queue);
    free(device);
}

/* Says what a launch has left in which a block waited in vain, for another one or for other ranks. */
static void tell_trouble(struct queue *queue)
{
    struct fused_device *device = (struct fused_device *)queue; /* queue is first */
    const struct fused_trouble *trouble = &device->pinned->trouble;
    char text[160];
    if (device->peers != NULL)
        fused_peers_failed(device);
    if (!trouble->waited)
        return;
    snprintf(text, sizeof text, "block %u waited in vain for another one: for %u, and found %u", trouble->block,
             trouble->wanted, trouble->found);
    gpu_failed("CUDA", "the fused step", __FILE__, __LINE__, text);
}

/* Collective. */
static struct fused_device *open_device(const struct engine_setup *setup, uint32_t groups, struct error *error)
{
    struct fused_device *device = memory_allocate(1, sizeof *device, "the fused engine");
    size_t nets = groups < FUSED_NETS ? groups : FUSED_NETS;
    CUDA_CHECK(fused_prepare());
    queue_open(&device->queue, setup);
    device->queue.failed = tell_trouble;
    device->groups = groups;
    device->least_groups = find_least(setup->comm, groups);
    fused_peers_export(device, nets);
    device->mail = queue_allocate(&device->queue, fused_mail_bytes(groups), "the mail of the blocks");
    /* No launch needs more of them than with as many nets as groups. */
    device->arrived = queue_allocate(&device->queue, groups * fused_arrived_bytes(1), "the marks of the blocks");
    device->round = UINT32_MAX - 1; /* numbers begin anew with the first launch, so that every run tries it */
    device->pinned = device_allocate_pinned(sizeof *device->pinned, "what the host reads after a launch");
    memset(device->pinned, 0, sizeof *device->pinned);
    if (comm_sums_in_kernel(setup->comm) && !fused_peers_open(device, error)) {
        close_device(device);
        return NULL;
    }
    return device;
}

/* --- a net ----------------------------------------------------------------------------------------------------- */

static void allocate(struct fused *fused)
{
    struct queue *queue = &fused->device->queue;
    size_t count = fused->base.setup.data->train.count, bytes = LENET5_WEIGHTS * sizeof(float);
    fused->order = queue_allocate(queue, count * sizeof *fused->order, "the order of an epoch");
    for (int i = 0; i < 2; i++) {
        fused->weights[i] = queue_allocate(queue, bytes, "the weights");
        fused->velocity[i] = queue_allocate(queue, bytes, "the momentum");
        fused->state[i] = queue_allocate(queue, sizeof *fused->state[i], "the state of a launch");
    }
}

/* Collective. The groups that fit on this rank's GPU. */
static bool agree_that_it_fits(const struct engine_setup *setup, uint32_t *groups, struct error *error)
{
    char why[300];
    int device;
    CUDA_CHECK(cudaGetDevice(&device));
    if (setup->precision != PRECISION_FP32)
        error_set(error, EXIT_USAGE,
                  "--precision: engine fused computes in fp32 alone; leave it out, or --engine cudnn");
    else if (!fits(device, groups, why, sizeof why))
        error_set(error, EXIT_RUNTIME, "engine fused: rank %d on host %s: %s",
                  comm_world_rank(setup->comm, comm_rank(setup->comm)),
                  comm_host_name(setup->comm, comm_rank(setup->comm)), why);
    return comm_agree(setup->comm, error);
}

static struct fused_device *share_or_open(const struct engine_setup *setup, struct error *error)
{
    uint32_t groups = 0;
    if (!device_suits(setup->comm, error) || !agree_that_it_fits(setup, &groups, error))
        return NULL;
    return setup->beside != NULL ? fused_of(setup->beside)->device : open_device(setup, groups, error);
}

static struct engine *open_fused(const struct engine_setup *setup, struct error *error)
{
    struct comm_sums *sums = comm_sums_open(setup->comm, FUSED_SUMS);
    device_use(comm_local_rank(setup->comm));
    struct fused_device *device = share_or_open(setup, error);
    if (device == NULL) {
        comm_sums_close(sums);
        return NULL;
    }
    struct fused *fused = memory_allocate(1, sizeof *fused, "the fused engine");
    fused->base = (struct engine){&engine_fused, *setup, NULL, sums, FUSED_GRADIENT};
    fused->device = device;
    fused->device->nets++;
    allocate(fused);
    return &fused->base;
}

static void close_fused(struct engine *engine)
{
    struct fused *fused = fused_of(engine);
    void *all[] = {fused->order,       fused->weights[0], fused->weights[1], fused->velocity[0],
                   fused->velocity[1], fused->state[0],   fused->state[1]};
    CUDA_CHECK(cudaStreamSynchronize(fused->device->queue.stream));
    free_all(all, sizeof all / sizeof *all);
    if (--fused->device->nets == 0) {
        if (fused->device->peers != NULL)
            fused_peers_close(fused->device);
        close_device(fused->device);
    }
    comm_sums_close(engine->sums);
    free(fused);
}

static void begin_epoch(struct engine *engine, const uint32_t *order)
{
    struct fused *fused = fused_of(engine);
    engine->order = order;
    queue_copy(&fused->device->queue, fused->order, order, engine->setup.data->train.count * sizeof *order);
}

static void read_sums(const struct engine *engine, const int64_t *sums, int64_t *canonical)
{
    (void)engine;
    for (uint32_t i = 0; i < FUSED_GRADIENT; i++) {
        int at = fused_canonical(i);
        if (at >= 0)
            canonical[at] = sums[i];
    }
}

/* --- evaluation, state ----------------------------------------------------------------------------------------- */

static void evaluate_fused(struct engine *engine, const struct split *split, size_t first, size_t end,
                           struct evaluation *sum)
{
    struct fused *fused = fused_of(engine);
    struct fused_device *device = fused->device;
    struct queue *queue = &device->queue;
    struct fused_run run = {
        .records = queue_records(queue, split),
        .weights = fused->weights[fused->now],
        .mail = device->mail,
        .arrived = device->arrived,
        .trouble = &device->pinned->trouble,
        .batch = (uint32_t)(end - first),
        .position = (uint32_t)first,
        .end = (uint32_t)end,
        .groups = device->groups,
    };
    if (first == end)
        return;
    range_begin("check");
    run.round = fused_take_rounds(device, fused_rounds(&run));
    queue_begin_evaluation(queue);
    CUDA_CHECK(cudaMemsetAsync(device->arrived, 0, fused_arrived_bytes(run.groups), queue->stream));
    CUDA_CHECK(fused_evaluate(&run, queue->evaluation, queue->stream));
    queue_end_evaluation(queue, sum);
    range_end();
}

static void read_state(struct engine *engine, float *weights, float *velocity)
{
    struct fused *fused = fused_of(engine);
    if (weights != NULL)
        queue_copy(&fused->device->queue, weights, fused->weights[fused->now], LENET5_WEIGHTS * sizeof *weights);
    if (velocity != NULL)
        queue_copy(&fused->device->queue, velocity, fused->velocity[fused->now], LENET5_WEIGHTS * sizeof *velocity);
}

static void write_state(struct engine *engine, const float *weights, const float *velocity)
{
    struct fused *fused = fused_of(engine);
    if (weights != NULL)
        queue_copy(&fused->device->queue, fused->weights[fused->now], weights, LENET5_WEIGHTS * sizeof *weights);
    if (velocity != NULL)
        queue_copy(&fused->device->queue, fused->velocity[fused->now], velocity, LENET5_WEIGHTS * sizeof *velocity);
}

const struct engine_ops engine_fused = {
    .name = "fused",
    .on_gpu = true,
    .in_kernel = true,
    .is_defined = true,
    .available = available,
    .open = open_fused,
    .close = close_fused,
    .begin_epoch = begin_epoch,
    .gradient = fused_gradient,
    .update = fused_update,
    .train = fused_train_alone,
    .at_once = fused_at_once,
    .train_several = fused_train_several,
    .evaluate = evaluate_fused,
    .read = read_state,
    .write = write_state,
    .read_sums = read_sums,
};
