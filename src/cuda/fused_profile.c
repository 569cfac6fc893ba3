/* What each phase of a step costs, by the kernel that reads clocks. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "check.h"
#include "fused_private.h"
#include "gpu.h"
#include "memory.h"

enum { STEPS = 20, LAUNCHES = 2 };

/* A launch of up to STEPS steps from the epoch's first batch on, of this rank's share. Returns its milliseconds. */
static double launch_clocked(struct engine *engine, long long *clocks, cudaEvent_t *events, size_t *steps)
{
    size_t batch = engine->setup.batch_size, count = engine->setup.data->train.count / batch * batch;
    struct span span = {.end = count < STEPS * batch ? count : STEPS * batch, .learning_rate = 1e-3f};
    struct fused_team team;
    float milliseconds;
    fused_begin(&team, &engine, 1, &span);
    *steps = team.steps[0];
    team.runs[0].steps = (uint32_t)*steps, team.runs[0].closes = 1, team.runs[0].clocks = clocks;
    CUDA_CHECK(cudaEventRecord(events[0], team.device->queue.stream));
    fused_launch(&team);
    CUDA_CHECK(cudaEventRecord(events[1], team.device->queue.stream));
    queue_finish(&team.device->queue, NULL);
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events[0], events[1]));
    return (double)milliseconds;
}

/* clocks: (blocks, FUSED_PHASES) of the whole launch; blocks that did not run have none. */
static int summarise(const long long *clocks, size_t blocks, double microseconds_a_step, struct gpu_node *nodes,
                     int most)
{
    double all = 0;
    size_t ran = 0;
    for (size_t block = 0; block < blocks; block++) {
        long long spent = 0;
        for (size_t i = 0; i < FUSED_PHASES; i++)
            spent += clocks[block * FUSED_PHASES + i];
        all += (double)spent;
        ran += spent > 0;
    }
    if (ran == 0)
        return 0;
    int count = most < FUSED_PHASES ? most : FUSED_PHASES;
    double unit = microseconds_a_step / (all / (double)ran);
    for (int i = 0; i < count; i++) {
        double sum = 0, slowest = 0;
        for (size_t block = 0; block < blocks; block++) {
            double spent = (double)clocks[block * FUSED_PHASES + (size_t)i];
            sum += spent;
            slowest = spent > slowest ? spent : slowest;
        }
        nodes[i] = (struct gpu_node){"", fused_phase((uint32_t)i), sum / (double)ran * unit, slowest * unit};
    }
    return count;
}

int fused_profile(struct engine *engine, struct gpu_node *nodes, int most)
{
    struct fused *fused = fused_of(engine);
    size_t blocks = fused->device->groups * FUSED_SEATS, bytes = blocks * FUSED_PHASES * sizeof(long long), steps = 1;
    long long *clocks, *read = memory_allocate(1, bytes, "the clocks of a step");
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS]; /* as they were, and are to be afterwards */
    double milliseconds = 0;
    cudaEvent_t events[2];
    engine->ops->read(engine, weights, velocity);
    CUDA_CHECK(cudaMalloc((void **)&clocks, bytes));
    CUDA_CHECK(cudaMemsetAsync(clocks, 0, bytes, fused->device->queue.stream));
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventCreate(&events[i]));
    for (int i = 0; i < LAUNCHES; i++) /* the first warms up */
        milliseconds = launch_clocked(engine, clocks, events, &steps);
    queue_copy(&fused->device->queue, read, clocks, bytes);
    for (int i = 0; i < 2; i++)
        CUDA_CHECK(cudaEventDestroy(events[i]));
    CUDA_CHECK(cudaFree(clocks));
    engine->ops->write(engine, weights, velocity);
    int count = summarise(read, blocks, 1e3 * milliseconds / (double)steps, nodes, most);
    free(read);
    return count;
}
