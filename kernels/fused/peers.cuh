/* peers.cuh - the sums of a step over ranks whose GPUs reach each other's memory, within the kernel: a launch need not
 * end with the step. The n ranks have a GPU each, of one host, and as many blocks, B.
 *
 * A rank's sums, and a counter, lie where all n GPUs see them. When a block has added its terms
 *   1. it tells all n counters so, and waits until its own rank's has heard from all n B blocks;
 *   2. its warps take chunks of 32 pairs, which are dealt out over the n B blocks: they read the n ranks' pairs, and
 *      write the total back to all n;
 *   3. it tells and waits once more. Then every rank has the totals where its sums were.
 * Integers, so the order in which they are added does not matter. Stops and refusals are among the sums, so all ranks
 * end after the same step; and launches of all ranks have the same nets, steps and blocks.
 *
 * Nothing is overwritten too early. Between 1 and 3 a pair is read and written by one thread alone, and by none
 * outside. Totals are read before the block tells that it has added the next step's terms. A buffer is zeroed in the
 * step after the one in which it was read, and added to in the one after that. Counters only grow, also from launch to
 * launch, each of which remembers for the next one how far it came: a rank may begin a launch while others are still in
 * the last one's end. A counter may have been told of the next round before it is told of all of this one; but who told
 * that had heard of all.
 *
 * Bytes: 508 KB (n - 1)/n read from peers and as many written to them, at once from and to all. By the model (H100,
 * NVLink at 370 GB/s a way, 2.3 us to tell and to hear, 1.5 us to read) a step takes 6.5 us more on 2 GPUs, 7.1 on 4,
 * 7.5 on 8, where launches with NCCL in between take 15 to 25. If every rank read all of all others, and waited once:
 * 5.2, 7.9 and 13.3. None of it was measured. Sums by the switch itself (multimem) are left out, as they cannot be
 * tried here.
 */
#ifndef DTRAIN_FUSED_PEERS_CUH
#define DTRAIN_FUSED_PEERS_CUH

#include "exchange.cuh"

constexpr unsigned SUM_PAIRS = FUSED_SUMS_PITCH / 2, SUM_CHUNKS = (SUM_PAIRS + LANES - 1) / LANES;
static_assert(FUSED_SUMS_PITCH % 2 == 0, "pairs");

/* Of the net, on each rank. */
DEVICE unsigned blocks_of(const memory &m)
{
    return m.run.groups * SEATS;
}

/* One thread, behind a barrier: what this block has done is seen by all blocks that have heard it. */
DEVICE void tell_peers(const memory &m)
{
    add_release_to_peers(m.peers.arrived, m.run.ranks);
}

/* How a wait for other GPUs goes on: what the host said at the last look, and looks since it said something new. */
struct watched {
    unsigned turns, alive, silent;
};

/* As waited_too_long, but such a wait may be long. Whether the other ranks live is for the host to see: if not, it
 * ends, and with it this kernel. While it watches it says so. Where it does not, it may have been stopped with all its
 * job, to go on in hours; after as many looks in a row as it allowed, ten seconds each, nobody watches any more. */
DEVICE bool waited_too_long_for_peers(const memory &m, watched *w)
{
    if (!waited_too_long(&w->turns))
        return false;
    unsigned now = *m.peers.alive;
    w->silent = now == w->alive ? w->silent + 1 : 0;
    w->alive = now, w->turns = 0;
    return w->silent >= m.peers.patience;
}

/* The first thread: until all blocks have told once more. */
static __device__ __noinline__ void hear_peers()
{
    memory &m = shared();
    const uint32_t *counter = m.peers.arrived[m.run.rank];
    unsigned wanted = m.awaited += m.run.ranks * blocks_of(m), found = load_acquire_of_peers(counter);
    watched w = {0, 0, 0};
#pragma unroll 1
    for (; (int)(found - wanted) < 0; found = load_acquire_of_peers(counter))
        if (waited_too_long_for_peers(m, &w))
            give_up(m.run.trouble, FUSED_FOR_RANKS, wanted, found);
}

/* A pair of each rank becomes their total. */
DEVICE void total_pair(const memory &m, size_t at)
{
    longlong2 pairs[FUSED_PEERS], total = {0, 0}; /* all are asked for at once */
#pragma unroll
    for (unsigned r = 0; r < FUSED_PEERS; r++)
        pairs[r] = r < m.run.ranks ? load_pair_of_peer(m.peers.sums[r] + at) : longlong2{0, 0};
#pragma unroll
    for (unsigned r = 0; r < FUSED_PEERS; r++)
        total.x += pairs[r].x, total.y += pairs[r].y;
#pragma unroll
    for (unsigned r = 0; r < FUSED_PEERS; r++)
        if (r < m.run.ranks)
            store_pair_of_peer(m.peers.sums[r] + at, total);
}

/* Of this rank's sums; all have told that theirs are complete, or will. */
static __device__ __noinline__ void sum_over_peers(int64_t *sums)
{
    memory &m = shared();
    size_t begin = (size_t)(sums - m.peers.sums[m.run.rank]);
    unsigned all = m.run.ranks * blocks_of(m), mine = m.run.rank * blocks_of(m) + block_of(m);
    if (tid() == 0)
        hear_peers();
    __syncthreads();
#pragma unroll 1
    for (unsigned chunk = tid() / LANES * all + mine; chunk < SUM_CHUNKS; chunk += WARPS * all) {
        unsigned pair = chunk * LANES + tid() % LANES;
        if (pair < SUM_PAIRS)
            total_pair(m, begin + 2 * pair);
    }
    __syncthreads();
    if (tid() == 0) {
        tell_peers(m);
        hear_peers();
    }
    __syncthreads();
}

/* --- from launch to launch -------------------------------------------------------------------- */

/* A rank's second number is how often its counter had been told when the last launch ended. Other threads read m.peers
 * behind the barrier at the end of the first step's gradient. */
DEVICE void open_peers(memory &m)
{
    if (m.run.peers != nullptr && tid() == 0) {
        m.peers = *m.run.peers;
        m.awaited = m.peers.arrived[m.run.rank][1];
    }
}

DEVICE void close_peers(const memory &m)
{
    if (m.run.peers != nullptr && is_first(m))
        m.peers.arrived[m.run.rank][1] = m.awaited; /* the rank's blocks have all read it: they told since */
}

#endif
