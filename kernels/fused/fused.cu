/* fused.cu - what the host calls: the kernel that trains (train.cuh), one that evaluates, and their sizes. README.md
 * explains the whole. */
#include "train.cuh"

/* --- predict mode ----------------------------------------------------------------------------- */

/* By the first warp: adds losses and hits of the seat's samples to *sum. */
DEVICE void evaluate_head(const memory &m, evaluation *sum)
{
    unsigned k = tid() % 16;
    logit l = classify(m);
    bool refused = false;
    long long loss = fixed_point(loss_of(l.denominator, l.rest), &refused);
    unsigned best = k < 10 && l.z == l.largest ? k : 16; /* the first of the largest */
#pragma unroll
    for (unsigned apart = 8; apart > 0; apart /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffffu, best, apart);
        best = other < best ? other : best;
    }
    if (k != 0 || l.label < 0)
        return;
    add_sum(&sum->loss, loss);
    add_sum(&sum->refused, refused);
    add_sum(&sum->correct, (int)best == l.label);
}

/* Tile `number` of all that is evaluated. */
DEVICE tile evaluated_tile(const memory &m, unsigned number)
{
    return tile_of(0, m.run.position, m.run.end - m.run.position, number);
}

static __global__ void __launch_bounds__(THREADS, 1)
    fused_evaluate_kernel(const __grid_constant__ fused_run run, evaluation *sum)
{
    memory &m = shared();
    take_run(m, &run);
    draw_tile(evaluated_tile(m, m.group));
    if (tid() == 0)
        m.coming = evaluated_tile(m, m.group);
    load(m, false);
    draw_dense_masks(m, 0);
#pragma unroll 1
    while (m.coming.count != 0) {
        take_masks(m);
        if (tid() == 0)
            m.coming = evaluated_tile(m, m.now.tile.number + m.run.groups);
        place_pictures();
        forward(m);
        if (tid() < LANES)
            evaluate_head(m, sum); /* what it reads is written again only after a barrier */
    }
}

/* --- launches --------------------------------------------------------------------------------- */

extern "C" cudaError_t fused_fits(int device, uint32_t *groups)
{
    int shared = 0, together = 0, multiprocessors = 0;
    cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    *groups = together && (size_t)shared >= sizeof(memory) ? (uint32_t)multiprocessors / SEATS : 0;
    return error;
}

extern "C" cudaError_t fused_prepare(void)
{
    cudaError_t error = fit(fused_train_kernel);
    return error == cudaSuccess ? fit(fused_evaluate_kernel) : error;
}

extern "C" cudaError_t fused_train(const fused_run *runs, uint32_t nets, cudaStream_t stream)
{
    return launch_training(runs, nets, stream);
}

extern "C" cudaError_t fused_evaluate(const fused_run *run, evaluation *sum, cudaStream_t stream)
{
    fused_run all = *run;
    all.order = nullptr;
    for (int layer = 0; layer < 4; layer++)
        all.threshold[layer] = 0, all.scale[layer] = 1;
    return LAUNCH_TOGETHER(fused_evaluate_kernel, run->groups * SEATS, (unsigned)THREADS, sizeof(memory), stream, all,
                           sum);
}

extern "C" int fused_canonical(uint32_t i)
{
    if (i >= SUMS_SMALL)
        return canonical_small(i - SUMS_SMALL);
    return (int)canonical_conv3(i / WEIGHTS3, i % WEIGHTS3);
}

/* Every tile of a group and every update has a round. */
extern "C" uint32_t fused_rounds(const fused_run *run)
{
    uint32_t tiles = (run->batch + SAMPLES - 1) / SAMPLES, of_group = (tiles + run->groups - 1) / run->groups;
    return (run->steps + 1) * (of_group + 1);
}

extern "C" size_t fused_mail_bytes(uint32_t groups)
{
    return groups * SEATS * sizeof(mailbox);
}

extern "C" size_t fused_arrived_bytes(uint32_t groups)
{
    return (1 + groups) * COUNTER_PITCH * sizeof(uint32_t);
}

extern "C" size_t fused_shared_bytes(void)
{
    return sizeof(memory);
}
