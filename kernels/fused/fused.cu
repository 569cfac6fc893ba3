/* fused.cu - the step, and the loop over steps. README.md tells the whole. */
#include "conv1.cuh"
#include "conv2.cuh"
#include "conv3.cuh"
#include "head.cuh"
#include "peers.cuh"
#include "tile.cuh"
#include "update.cuh"

/* --- the gradient of a tile ------------------------------------------------------------------- */

/* This seat's samples, and what their masks keep. */
DEVICE both kept_of(const memory &m, int layer)
{
    unsigned first = m.sample[EACH * seat_of()], second = m.sample[EACH * seat_of() + 1];
    return layer == 1 ? both{m.keep1[first], m.keep1[second]} : both{m.keep2[first], m.keep2[second]};
}

DEVICE void forward_to_pool2(memory &m)
{
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    if (tid() == 0)
        m.round++; /* the one before has been read behind a barrier */
    make_taps(m);
    __syncthreads();
    ends(m, PHASE_TAPS);
    conv1_forward(m, kept1);
    __syncthreads();
    ends(m, PHASE_CONV1);
    conv2_forward(m, m.round, kept1, kept2);
    ends(m, PHASE_CONV2);
    await_dense_weights(m);
    receive_pool2(m, m.round);
}

/* Forward as far as fc1. */
DEVICE void forward(memory &m)
{
    forward_to_pool2(m);
    fetch_dense_weights(m); /* while conv3 goes forward */
    ends(m, PHASE_POOL2);
    conv3_forward(m, m.round);
    settle_dense_weights(m);
    ends(m, PHASE_CONV3);
    head_forward(m, m.round);
}

/* conv3's input, on which others wait, by the first warps; then what is left of the dense layers' weights, by all. */
DEVICE void dense_back(memory &m)
{
    constexpr unsigned FIRST = CONV3_INPUT_WARPS, OTHERS = WARPS - FIRST;
    unsigned warp = tid() / LANES;
    if (warp < FIRST)
        conv3_input(m, m.round);
    else
        conv3_weights(warp - FIRST);
    ends(m, PHASE_CONV3_BACK);
    if (warp < FIRST)
        conv3_weights(OTHERS + warp);
#pragma unroll 1
    for (unsigned unit = warp; unit < DENSE_UNITS; unit += warp < FIRST ? DENSE_UNITS : OTHERS)
        dense_weights(m, unit);
    ends(m, PHASE_DENSE);
}
static_assert(CONV3_UNITS == WARPS && CONV3_INPUT_WARPS * LANES >= SAMPLES * 14 - 16, "every unit is somebody's");

DEVICE void tile_gradient(memory &m)
{
    forward(m);
    head_back(m, m.round);
    ends(m, PHASE_HEAD);
    receive_rows(m, m.round);
    ends(m, PHASE_ROWS);
    dense_back(m);
    both kept1 = kept_of(m, 1), kept2 = kept_of(m, 2);
    conv2_weights(m, m.round, kept1, kept2);
    ends(m, PHASE_CONV2_WEIGHTS);
    __syncthreads(); /* pool1 and the rows have been read */
    conv2_input(m, kept1, kept2);
    __syncthreads();
    ends(m, PHASE_CONV2_INPUT);
    conv1_weights(m, kept1);
    ends(m, PHASE_CONV1_WEIGHTS);
}

/* --- between memory and the blocks ------------------------------------------------------------ */

/* The run of this block's net: every net has as many groups, one net's after the other's. */
static __device__ void take_run(memory &m, const fused_run *runs)
{
    unsigned number = block() / SEATS, group = number % runs->groups;
    const fused_run &run = runs[number / runs->groups];
    char *to = reinterpret_cast<char *>(&m.run);
    for (unsigned i = 8 * tid(); i < sizeof run; i += 8 * THREADS)
        memcpy(to + i, reinterpret_cast<const char *>(&run) + i, 8);
    if (tid() == 0)
        m.group = group, m.mail = static_cast<mailbox *>(run.mail) + group * SEATS;
    __syncthreads();
}
static_assert(sizeof(fused_run) % 8 == 0, "it is copied by eight bytes");

static __device__ void load(memory &m, bool velocity)
{
    unsigned seat = seat_of();
    for (unsigned i = tid(); i < 120 * (PITCH_CONV3 - INPUTS); i += THREADS)
        m.w3[i / 2][INPUTS + i % 2] = 0;
    for (unsigned i = tid(); i < WEIGHTS3; i += THREADS) {
        m.w3[i / INPUTS][i % INPUTS] = m.run.weights[canonical_conv3(seat, i)];
        m.v3[i] = velocity ? m.run.velocity[canonical_conv3(seat, i)] : 0;
    }
    for (unsigned i = tid(); i < SMALL; i += THREADS)
        *small_parameter(m, i) = canonical_small(i) < 0 ? 0 : m.run.weights[canonical_small(i)];
    for (unsigned i = tid(); i < OWN; i += THREADS) {
        int at = canonical_small(seat * OWN + i);
        m.v_small[i] = at < 0 || !velocity ? 0 : m.run.velocity[at];
    }
    make_patch(m);
    if (tid() == 0)
        m.round = m.run.round, m.arrivals = m.dense_awaited = m.refused = 0;
#ifdef FUSED_CLOCKS
    if (tid() < 32)
        m.clocks[tid()] = 0;
    m.since = clock64();
#endif
    __syncthreads();
}

/* The first group. */
static __device__ void store(memory &m)
{
    unsigned seat = seat_of();
    if (m.group != 0)
        return;
    for (unsigned i = tid(); i < WEIGHTS3; i += THREADS) {
        m.run.new_weights[canonical_conv3(seat, i)] = m.w3[i / INPUTS][i % INPUTS];
        m.run.new_velocity[canonical_conv3(seat, i)] = m.v3[i];
    }
    for (unsigned i = tid(); i < OWN; i += THREADS) {
        int at = canonical_small(seat * OWN + i);
        if (at >= 0)
            m.run.new_weights[at] = *small_parameter(m, seat * OWN + i), m.run.new_velocity[at] = m.v_small[i];
    }
    if (is_first(m))
        *m.run.after = m.state;
}

/* --- the loop --------------------------------------------------------------------------------- */

/* What there is to know of step i of a launch follows from i, which lies in shared memory over the step: a thread has
 * no register to spare. */
DEVICE unsigned position_of(const memory &m, unsigned i)
{
    return m.run.position + i * m.run.batch;
}

/* Samples of the batch; 0: there is none. */
DEVICE unsigned samples_of(const memory &m, unsigned i)
{
    unsigned position = position_of(m, i), left = i < m.run.steps && position < m.run.end ? m.run.end - position : 0;
    return left < m.run.batch ? left : m.run.batch;
}

DEVICE int64_t *sums_of(const memory &m, unsigned i)
{
    return m.run.sums + (m.run.buffer + i) % 3 * (size_t)m.run.sums_pitch;
}

/* This rank's tiles of a batch are those from first_tile on, before end_tile; this group has every groups-th. */
DEVICE unsigned tiles_before(const memory &m, unsigned samples, unsigned rank)
{
    return (samples + SAMPLES - 1) / SAMPLES * rank / m.run.ranks; /* at most 4,096 tiles: 32 bits do */
}

DEVICE unsigned first_tile(const memory &m, unsigned i)
{
    return tiles_before(m, samples_of(m, i), m.run.rank) + m.group;
}

DEVICE unsigned end_tile(const memory &m, unsigned i)
{
    return tiles_before(m, samples_of(m, i), m.run.rank + 1);
}

DEVICE tile tile_of(uint64_t step, unsigned position, unsigned samples, unsigned number)
{
    unsigned left = samples - number * SAMPLES;
    return tile{step, number, position + number * SAMPLES, left < SAMPLES ? left : SAMPLES};
}

DEVICE void prepare(const memory &m, unsigned i, unsigned number)
{
    prepare_tile(tile_of(m.run.step + i, position_of(m, i), samples_of(m, i), number));
}

/* The tiles of this group, the first of which is prepared. */
DEVICE void step_gradient(memory &m, unsigned i)
{
#pragma unroll 1
    for (bool more = first_tile(m, i) < end_tile(m, i); more;) {
        tile_gradient(m);
        more = m.tile + m.run.groups < end_tile(m, m.step);
        if (more)
            prepare(m, m.step, m.tile + m.run.groups);
    }
    if (m.dense_awaited)
        take_dense_weights(m); /* of a group that had no tile */
    __syncthreads();
    if (tid() == THREADS - 1) { /* not one of the first warps, which go on meanwhile */
        if (m.refused)
            add_sum(m.sums + FUSED_REFUSED, 1);
        m.refused = 0;
        if (m.run.peers != nullptr)
            tell_peers(m);
        else
            add_release(grid_counter(m));
    }
}

/* The update of the step before step i. True: the run is over. */
DEVICE bool finish_before(memory &m, unsigned i)
{
    if (i > 0 && m.run.peers != nullptr) {
        sum_over_peers(sums_of(m, i + 2));
    } else if (i > 0) { /* all blocks have added to the sums */
        if (tid() == 0)
            wait_for_count(grid_counter(m), i * m.run.groups * SEATS);
        __syncthreads();
    }
    ends(m, PHASE_GRID);
    bool over = finish_step(m, m.run.round + i, sums_of(m, i + 2), i > 0 ? samples_of(m, i - 1) : m.run.pending);
    ends(m, PHASE_UPDATE);
    return over;
}

/* Step after step: while others still work on the one before, the tile is prepared; then all wait for its sums, and
 * update. */
DEVICE void run_steps(memory &m)
{
#pragma unroll 1
    for (unsigned i = 0;; i = m.step + 1) {
        if (first_tile(m, i) < end_tile(m, i))
            prepare(m, i, first_tile(m, i));
        if (is_first(m))
            m.wish = m.run.stop != nullptr && *m.run.stop; /* a way to the host: before the wait */
        ends(m, PHASE_TILE);
        if (i == 0 ? m.run.pending != 0 : samples_of(m, i) != 0 || m.run.closes)
            if (finish_before(m, i))
                break;
        if (samples_of(m, i) == 0)
            break;
        if (tid() == 0)
            m.step = i, m.sums = sums_of(m, i); /* behind a barrier after they were last read: finish_before's */
        int64_t *next = sums_of(m, i + 1);      /* those of two steps ago, which nobody reads any more */
        for (unsigned k = block_of(m) * THREADS + tid(); k < FUSED_SUMS_PITCH; k += m.run.groups * SEATS * THREADS)
            next[k] = 0;
        if (is_first(m) && m.wish)
            add_sum(sums_of(m, i) + FUSED_STOP, 1);
        step_gradient(m, i);
    }
}

/* The nets side by side; nothing is between them. */
struct launch {
    fused_run runs[FUSED_NETS];
};
static_assert(sizeof(launch) <= 4096, "what a kernel's arguments may take");

static __global__ void __launch_bounds__(THREADS, 1) fused_train_kernel(const __grid_constant__ launch launch)
{
    memory &m = shared();
    take_run(m, launch.runs);
    load(m, true);
    open_peers(m);
    if (is_first(m))
        m.state = *m.run.before;
    if (!m.run.before->stopped && !m.run.before->not_finite)
        run_steps(m);
    if (m.dense_awaited)
        take_dense_weights(m); /* the last update's */
    close_peers(m);
    store(m);
#ifdef FUSED_CLOCKS
    if (m.run.clocks != nullptr && tid() < PHASES)
        m.run.clocks[block_of(m) * PHASES + tid()] = m.clocks[tid()];
#endif
}

/* --- launches --------------------------------------------------------------------------------- */

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

/* The kernel may have as much shared memory as it wants. */
template <typename Kernel> static cudaError_t fit(Kernel kernel)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(memory));
}

static cudaError_t launch_training(const fused_run *runs, uint32_t nets, cudaStream_t stream)
{
    launch launch = {};
    memcpy(launch.runs, runs, nets * sizeof *runs);
    return LAUNCH_TOGETHER(fused_train_kernel, nets * runs->groups * SEATS, (unsigned)THREADS, sizeof(memory), stream,
                           launch);
}

#ifndef FUSED_CLOCKS

/* --- predict mode ----------------------------------------------------------------------------- */

/* The first warp: losses and hits of the seat's samples. */
DEVICE void evaluate_head(const memory &m, evaluation *sum)
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
    fused_evaluate_kernel(const __grid_constant__ fused_run run, evaluation *sum)
{
    memory &m = shared();
    take_run(m, &run);
    unsigned samples = m.run.end - m.run.position;
    load(m, false);
#pragma unroll 1
    for (unsigned number = m.group; number * SAMPLES < samples; number = m.tile + m.run.groups) {
        prepare_tile(tile_of(0, m.run.position, samples, number));
        forward(m);
        if (tid() < LANES)
            evaluate_head(m, sum); /* what it reads is written again behind a barrier */
    }
}

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

#endif
