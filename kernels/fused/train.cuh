/* train.cuh - the loop over steps, and the kernel that trains. clocks.cu has the same with FUSED_CLOCKS. */
#ifndef DTRAIN_FUSED_TRAIN_CUH
#define DTRAIN_FUSED_TRAIN_CUH

#include "gradient.cuh"
#include "launch.cuh"
#include "peers.cuh"
#include "state.cuh"

/* All that there is to know of step i of a launch follows from i, which lies in shared memory over the step: a thread
 * has no register to spare. */
DEVICE unsigned position_of(const memory &m, unsigned i)
{
    return m.run.position + i * m.run.batch;
}

/* Samples of step i's batch; 0: there is no such step. */
DEVICE unsigned samples_of(const memory &m, unsigned i)
{
    unsigned position = position_of(m, i), left = i < m.run.steps && position < m.run.end ? m.run.end - position : 0;
    return left < m.run.batch ? left : m.run.batch;
}

/* Tiles of a batch of `samples` that the ranks before `rank` have (sampler.h). */
DEVICE unsigned tiles_before(const memory &m, unsigned samples, unsigned rank)
{
    return (samples + SAMPLES - 1) / SAMPLES * rank / m.run.ranks; /* at most 4,096 tiles: 32 bits do */
}

/* This group's tiles of step i: every groups-th from first_tile on, before end_tile, where this rank's end. */
DEVICE unsigned first_tile(const memory &m, unsigned i)
{
    return tiles_before(m, samples_of(m, i), m.run.rank) + m.group;
}

DEVICE unsigned end_tile(const memory &m, unsigned i)
{
    return tiles_before(m, samples_of(m, i), m.run.rank + 1);
}

/* Tile `number` of step i; without samples if this rank does not have it. */
DEVICE tile tile_of_step(const memory &m, unsigned i, unsigned number)
{
    return tile_of(m.run.step + i, position_of(m, i), number < end_tile(m, i) ? samples_of(m, i) : 0, number);
}

/* Puts the pictures of tile `number` of step i, which is in m.now, in their place, and the group's next tile in
 * m.coming. */
DEVICE void place(memory &m, unsigned i, unsigned number)
{
    place_pictures();
    if (tid() == THREADS - 3 * LANES) { /* not of the first warp, which then waits for the grid, nor of the last */
        unsigned next = number + m.run.groups;
        m.coming = next < end_tile(m, i) ? tile_of_step(m, i, next) : tile_of_step(m, i + 1, first_tile(m, i + 1));
    }
}

/* Whether the tile in m.now is of step i. No division is asked: that of all threads would take 200 clocks. */
DEVICE bool has_tile(const memory &m, unsigned i)
{
    return (m.now.tile.count != 0) & ((uint32_t)m.now.tile.step == (uint32_t)m.run.step + i); /* both read at once */
}

/* Tells the others that this block has added its terms of the step, which takes a while: so the last thread does it,
 * not one that all wait for. Called after a barrier that follows the last of these terms. */
DEVICE void tell_sums(memory &m)
{
    if (tid() != THREADS - 1)
        return;
    if (m.refused)
        add_sum(m.sums + FUSED_REFUSED, 1);
    m.refused = 0;
    if (m.run.peers != nullptr)
        tell_peers(m);
    else
        add_release(grid_counter(m));
}

/* The gradient of step i: this group's tiles, the first of which is in place. On return m.now has the group's first
 * tile of the next step. */
DEVICE void step_gradient(memory &m, unsigned i, bool more)
{
    if (!more) {
        zero_next_sums(m, i);
        draw_tile(tile_of_step(m, i + 1, first_tile(m, i + 1)));
        if (m.dense_awaited)
            finish_update(m);
        __syncthreads();
        draw_dense_masks(m, 0);
        take_masks(m);
    }
#pragma unroll 1
    while (more) {
        tile_gradient(m);
        take_masks(m);
        more = has_tile(m, m.step);
        if (more)
            place(m, m.step, m.now.tile.number);
    }
    tell_sums(m);
}

/* The update of the step before step i. True: the run is over. */
DEVICE bool finish_before(memory &m, unsigned i)
{
    update_from from = update_from_sums(m, sums_of(m, i + 2), i > 0 ? samples_of(m, i - 1) : m.run.pending);
    if (i > 0 && m.run.peers != nullptr) {
        sum_over_peers(sums_of(m, i + 2));
    } else if (i > 0) { /* all blocks have added to the sums */
        if (tid() == 0)
            wait_for_count(grid_counter(m), i * m.run.groups * SEATS);
        __syncthreads();
    }
    phase_ends(m, PHASE_GRID);
    bool over = finish_step(m, m.run.round + i, from);
    phase_ends(m, PHASE_UPDATE);
    return over;
}

/* Step after step: while others still work on the one before, this block puts its pictures in their place; then all
 * wait for the sums of the step before, and update. */
DEVICE void run_steps(memory &m)
{
    take_masks(m);
#pragma unroll 1
    for (unsigned i = 0;; i = m.step + 1) {
        bool exists = samples_of(m, i) != 0, more = has_tile(m, i); /* asked before all wait */
        if (more)
            place(m, i, m.now.tile.number);
        phase_ends(m, PHASE_TILE);
        if (i == 0 ? m.run.pending != 0 : exists || m.run.closes)
            if (finish_before(m, i))
                break;
        if (!exists)
            break;
        if (tid() == THREADS - 3 * LANES)
            m.step = i, m.sums = sums_of(m, i); /* after a barrier since they were last read: finish_before's */
        if (tid() == THREADS - LANES && block_of(m) == 0 && m.wish) /* by the thread that writes it (masks.cuh) */
            add_sum(sums_of(m, i) + FUSED_STOP, 1);
        step_gradient(m, i, more);
    }
}

/* The runs of a launch, a net each. The nets share nothing. */
struct launch {
    fused_run runs[FUSED_NETS];
};
static_assert(sizeof(launch) <= 4096, "what a kernel's arguments may take");

static __global__ void __launch_bounds__(THREADS, 1) fused_train_kernel(const __grid_constant__ launch launch)
{
    memory &m = shared();
    take_run(m, launch.runs);
    draw_tile(tile_of_step(m, 0, first_tile(m, 0)));
    load(m, true);
    draw_dense_masks(m, 0);
    open_peers(m);
    if (is_first(m))
        m.state = *m.run.before;
    if (!m.run.before->stopped && !m.run.before->not_finite)
        run_steps(m);
    if (m.dense_awaited)
        finish_update(m); /* the last step's */
    close_peers(m);
    store(m);
#ifdef FUSED_CLOCKS
    if (m.run.clocks != nullptr && tid() < PHASES)
        m.run.clocks[block_of(m) * PHASES + tid()] = m.clocks[tid()];
#endif
}

static cudaError_t launch_training(const fused_run *runs, uint32_t nets, cudaStream_t stream)
{
    launch launch = {};
    memcpy(launch.runs, runs, nets * sizeof *runs);
    return LAUNCH_TOGETHER(fused_train_kernel, nets * runs->groups * SEATS, (unsigned)THREADS, sizeof(memory), stream,
                           launch);
}

#endif
