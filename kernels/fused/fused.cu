/* fused.cu - the step, and the loop over steps. README.md tells the whole. */
#include "conv1.cuh"
#include "conv2.cuh"
#include "conv3.cuh"
#include "head.cuh"
#include "tile.cuh"
#include "update.cuh"

/* --- the gradient of a tile ------------------------------------------------------------------- */

/* This seat's samples, and what their masks keep. */
DEVICE both kept_of(const memory &m, int layer)
{
    unsigned first = m.sample[EACH * seat_of()], second = m.sample[EACH * seat_of() + 1];
    return layer == 1 ? both{m.keep1[first], m.keep1[second]} : both{m.keep2[first], m.keep2[second]};
}

DEVICE void forward_to_pool2(const fused_run &f, memory &m)
{
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    if (tid() == 0)
        m.round++; /* the one before has been read behind a barrier */
    make_taps(m);
    __syncthreads();
    ends(m, PHASE_TAPS);
    conv1_forward(f, m, kept1);
    __syncthreads();
    ends(m, PHASE_CONV1);
    conv2_forward(f, m, m.round, kept1, kept2);
    ends(m, PHASE_CONV2);
    await_dense_weights(f, m);
    receive_pool2(f, m, m.round);
}

/* Forward as far as fc1. */
DEVICE void forward(const fused_run &f, memory &m)
{
    forward_to_pool2(f, m);
    fetch_dense_weights(f, m); /* while conv3 goes forward */
    ends(m, PHASE_POOL2);
    conv3_forward(f, m, m.round);
    settle_dense_weights(m);
    ends(m, PHASE_CONV3);
    head_forward(f, m, m.round);
}

/* conv3's input, on which others wait, by the first warps; then what is left of the dense layers' weights, by all. */
DEVICE void dense_back(const fused_run &f, memory &m, int64_t *sums)
{
    constexpr unsigned FIRST = CONV3_INPUT_WARPS, OTHERS = WARPS - FIRST;
    unsigned warp = tid() / LANES;
    if (warp < FIRST)
        conv3_input(f, m, m.round);
    else
        conv3_weights(m, sums, warp - FIRST);
    ends(m, PHASE_CONV3_BACK);
    if (warp < FIRST)
        conv3_weights(m, sums, OTHERS + warp);
#pragma unroll 1
    for (unsigned unit = warp; unit < DENSE_UNITS; unit += warp < FIRST ? DENSE_UNITS : OTHERS)
        dense_weights(m, sums, unit);
    ends(m, PHASE_DENSE);
}
static_assert(CONV3_UNITS == WARPS && CONV3_INPUT_WARPS * LANES >= SAMPLES * 14 - 16, "every unit is somebody's");

DEVICE void tile_gradient(const fused_run &f, memory &m, int64_t *sums)
{
    forward(f, m);
    head_back(f, m, m.round, sums);
    ends(m, PHASE_HEAD);
    receive_rows(f, m, m.round);
    ends(m, PHASE_ROWS);
    dense_back(f, m, sums);
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    conv2_weights(f, m, m.round, kept1, kept2, sums);
    ends(m, PHASE_CONV2_WEIGHTS);
    __syncthreads(); /* pool1 and the rows have been read */
    conv2_input(f, m, kept1, kept2);
    __syncthreads();
    ends(m, PHASE_CONV2_INPUT);
    conv1_weights(m, kept1, sums);
    ends(m, PHASE_CONV1_WEIGHTS);
}

/* --- between memory and the blocks
 * ------------------------------------------------------------------------------------ */

static __device__ void load(const fused_run &f, memory &m, bool velocity)
{
    unsigned seat = seat_of();
    for (unsigned i = tid(); i < 120 * (PITCH_CONV3 - INPUTS); i += THREADS)
        m.w3[i / 2][INPUTS + i % 2] = 0;
    for (unsigned i = tid(); i < WEIGHTS3; i += THREADS) {
        m.w3[i / INPUTS][i % INPUTS] = f.weights[canonical_conv3(seat, i)];
        m.v3[i] = velocity ? f.velocity[canonical_conv3(seat, i)] : 0;
    }
    for (unsigned i = tid(); i < SMALL; i += THREADS)
        *small_parameter(m, i) = canonical_small(i) < 0 ? 0 : f.weights[canonical_small(i)];
    for (unsigned i = tid(); i < OWN; i += THREADS) {
        int at = canonical_small(seat * OWN + i);
        m.v_small[i] = at < 0 || !velocity ? 0 : f.velocity[at];
    }
    make_patch(m);
    if (tid() == 0)
        m.round = f.round, m.arrivals = m.dense_awaited = m.refused = 0;
#ifdef FUSED_CLOCKS
    if (tid() < 32)
        m.clocks[tid()] = 0;
    m.since = clock64();
#endif
    __syncthreads();
}

/* The first group. */
static __device__ void store(const fused_run &f, memory &m)
{
    unsigned seat = seat_of();
    if (group_of() != 0)
        return;
    for (unsigned i = tid(); i < WEIGHTS3; i += THREADS) {
        f.new_weights[canonical_conv3(seat, i)] = m.w3[i / INPUTS][i % INPUTS];
        f.new_velocity[canonical_conv3(seat, i)] = m.v3[i];
    }
    for (unsigned i = tid(); i < OWN; i += THREADS) {
        int at = canonical_small(seat * OWN + i);
        if (at >= 0)
            f.new_weights[at] = *small_parameter(m, seat * OWN + i), f.new_velocity[at] = m.v_small[i];
    }
    if (block() == 0 && tid() == 0)
        *f.after = m.state;
}

/* --- the loop
 * --------------------------------------------------------------------------------------------------------- */

/* What there is to know of step i of a launch follows from i, which lies in shared memory over the step: a thread has
 * no register to spare. */
DEVICE unsigned position_of(const fused_run &f, unsigned i)
{
    return f.position + i * f.batch;
}

/* Samples of the batch; 0: there is none. */
DEVICE unsigned samples_of(const fused_run &f, unsigned i)
{
    unsigned position = position_of(f, i), left = i < f.steps && position < f.last ? f.last - position : 0;
    return left < f.batch ? left : f.batch;
}

DEVICE int64_t *sums_of(const fused_run &f, unsigned i)
{
    return f.sums + (f.buffer + i) % 3 * FUSED_SUMS_PITCH;
}

/* This rank's tiles of a batch are those before `last` from `first` on; this group has every groups-th. */
DEVICE unsigned tiles_before(const fused_run &f, unsigned samples, unsigned rank)
{
    return (samples + SAMPLES - 1) / SAMPLES * rank / f.ranks; /* at most 4,096 tiles: 32 bits do */
}

DEVICE unsigned first_tile(const fused_run &f, unsigned i)
{
    return tiles_before(f, samples_of(f, i), f.rank) + group_of();
}

DEVICE unsigned last_tile(const fused_run &f, unsigned i)
{
    return tiles_before(f, samples_of(f, i), f.rank + 1);
}

DEVICE tile tile_of(uint64_t step, unsigned position, unsigned samples, unsigned number)
{
    unsigned left = samples - number * SAMPLES;
    return tile{step, number, position + number * SAMPLES, left < SAMPLES ? left : SAMPLES};
}

DEVICE void prepare(const fused_run &f, memory &m, unsigned i, unsigned number)
{
    prepare_tile(f, m, tile_of(f.step + i, position_of(f, i), samples_of(f, i), number));
}

/* The tiles of this group, the first of which is prepared. */
DEVICE void step_gradient(const fused_run &f, memory &m, unsigned i)
{
    __syncthreads(); /* m.step is there */
#pragma unroll 1
    for (bool more = first_tile(f, i) < last_tile(f, i); more;) {
        tile_gradient(f, m, sums_of(f, m.step));
        more = m.tile + f.groups < last_tile(f, m.step);
        if (more) {
            group_barrier(f, m); /* the mail has been read */
            prepare(f, m, m.step, m.tile + f.groups);
        }
    }
    if (m.dense_awaited)
        take_dense_weights(f, m); /* of a group that had no tile */
    __syncthreads();
    if (tid() == THREADS - 1) { /* not one of the first warps, which go on meanwhile */
        if (m.refused)
            add_sum(sums_of(f, m.step) + FUSED_REFUSED, 1);
        m.refused = 0;
        add_release(grid_counter(f));
    }
}

/* The update of the step before step i. True: the run is over. */
DEVICE bool finish_before(const fused_run &f, memory &m, unsigned i)
{
    if (i > 0) { /* all blocks have added to the sums */
        if (tid() == 0)
            wait_for_count(f, grid_counter(f), i * f.groups * SEATS);
        __syncthreads();
    }
    ends(m, PHASE_GRID);
    bool over = finish_step(f, m, f.round + i, sums_of(f, i + 2), i > 0 ? samples_of(f, i - 1) : f.pending);
    ends(m, PHASE_UPDATE);
    return over;
}

/* Step after step: while others still work on the one before, the tile is prepared; then all wait for its sums, and
 * update. */
DEVICE void run_steps(const fused_run &f, memory &m)
{
#pragma unroll 1
    for (unsigned i = 0;; i = m.step + 1) {
        if (first_tile(f, i) < last_tile(f, i))
            prepare(f, m, i, first_tile(f, i));
        if (block() == 0 && tid() == 0)
            m.wish = f.stop != nullptr && *f.stop; /* a way to the host: before the wait */
        ends(m, PHASE_TILE);
        if (i == 0 ? f.pending != 0 : samples_of(f, i) != 0 || f.closes)
            if (finish_before(f, m, i))
                break;
        if (samples_of(f, i) == 0)
            break;
        if (tid() == 0)
            m.step = i;                    /* behind a barrier after it was last read: finish_before's */
        int64_t *next = sums_of(f, i + 1); /* those of two steps ago, which nobody reads any more */
        for (unsigned k = block() * THREADS + tid(); k < FUSED_SUMS_PITCH; k += f.groups * SEATS * THREADS)
            next[k] = 0;
        if (block() == 0 && tid() == 0 && m.wish)
            add_sum(sums_of(f, i) + FUSED_STOP, 1);
        step_gradient(f, m, i);
    }
}

static __global__ void __launch_bounds__(THREADS, 1) fused_train_kernel(const __grid_constant__ fused_run f)
{
    memory &m = shared();
    load(f, m, true);
    if (block() == 0 && tid() == 0)
        m.state = *f.before;
    if (!f.before->stopped && !f.before->not_finite)
        run_steps(f, m);
    if (m.dense_awaited)
        take_dense_weights(f, m); /* the last update's */
    store(f, m);
#ifdef FUSED_CLOCKS
    if (f.clocks != nullptr && tid() < PHASES)
        f.clocks[block() * PHASES + tid()] = m.clocks[tid()];
#endif
}

/* --- predict mode
 * ------------------------------------------------------------------------------------------------------ */

/* The first warp: losses and hits of the seat's samples. */
DEVICE void evaluate_head(const memory &m, fused_evaluation *sum)
{
    unsigned k = tid() % 16;
    logit l = classify(m);
    bool fits = fits_fixed_point(l.loss);
    unsigned best = k < 10 && l.z == l.largest ? k : 16; /* the first of the largest */
#pragma unroll
    for (unsigned apart = 8; apart > 0; apart /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffffu, best, apart);
        best = other < best ? other : best;
    }
    if (k != 0 || l.label < 0)
        return;
    add_units(&sum->loss, fits ? __float2ll_rn(l.loss * 0x1p36f) : 0);
    add_units(&sum->refused, !fits);
    add_units(&sum->correct, (int)best == l.label);
}

static __global__ void __launch_bounds__(THREADS, 1)
    fused_evaluate_kernel(const __grid_constant__ fused_run f, fused_evaluation *sum)
{
    memory &m = shared();
    unsigned samples = f.last - f.position;
    load(f, m, false);
#pragma unroll 1
    for (unsigned number = group_of(); number * SAMPLES < samples; number += f.groups) {
        prepare_tile(f, m, tile_of(0, f.position, samples, number));
        forward(f, m);
        if (tid() < LANES)
            evaluate_head(m, sum);
        group_barrier(f, m); /* the mail has been read */
    }
}

/* --- launches
 * ---------------------------------------------------------------------------------------------------------- */

/* LAUNCH_TOGETHER(kernel, blocks, threads, shared bytes, stream, arguments...): all blocks on the GPU at once, or an
 * error. */
#ifndef LAUNCH_TOGETHER
template <typename... Arguments>
static cudaError_t launch_together(void (*kernel)(Arguments...), unsigned blocks, unsigned threads, size_t bytes,
                                   cudaStream_t stream, Arguments... arguments)
{
    void *pointers[] = {&arguments...};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void *>(kernel), dim3(blocks), dim3(threads), pointers,
                                       bytes, stream);
}
#define LAUNCH_TOGETHER launch_together
#endif

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
    const void *kernels[] = {reinterpret_cast<const void *>(fused_train_kernel),
                             reinterpret_cast<const void *>(fused_evaluate_kernel)};
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < 2 && error == cudaSuccess; i++)
        error = cudaFuncSetAttribute(kernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(memory));
    return error;
}

extern "C" cudaError_t fused_train(const fused_run *run, cudaStream_t stream)
{
    return LAUNCH_TOGETHER(fused_train_kernel, run->groups * SEATS, (unsigned)THREADS, sizeof(memory), stream, *run);
}

extern "C" cudaError_t fused_evaluate(const fused_run *run, fused_evaluation *sum, cudaStream_t stream)
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

/* Every tile of a group and every update begins one. */
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
