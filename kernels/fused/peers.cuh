/* peers.cuh - the sums of a step over ranks whose GPUs reach each other's memory, within the kernel: a launch need not
 * end with the step. The n ranks have a GPU each, on one host, and the same number of blocks, B.
 *
 * A rank's sums, and a counter, lie where all n GPUs see them. When a block has added its terms
 *   1. it tells all n counters so, and waits until its own rank's counter has heard from all n B blocks;
 *   2. its warps take chunks of 32 pairs, which are dealt out over the n B blocks: they read the n ranks' pairs, and
 *      write the total back to all n;
 *   3. it tells and waits once more. Then every rank has the totals where its sums were.
 * The sums are integers, so the order in which they are added does not matter. Stops and refusals are among them, so
 * all ranks end after the same step; and launches of all ranks have the same nets, steps and blocks.
 *
 * Nothing is overwritten too early. Between 1 and 3 a pair is read and written by one thread alone, of all ranks, at
 * other times by its own rank alone. Totals are read before the block tells that it has added the next step's terms. A
 * buffer is zeroed in the step after the one in which it was read, and added to in the one after that. Counters only
 * grow, also from launch to launch, each of which leaves to the next how far it came: a rank may begin a launch while
 * others are still at the end of the last one. A rank's counter may be told of the next round before all blocks have
 * told it of this one; but a block that tells of the next round has heard from all in this one.
 *
 * Bytes: 508 KB (n - 1)/n read from peers and as many written to them, from and to all at once. By a model (H100,
 * NVLink at 370 GB/s a way, 2.3 us to tell and to hear, 1.5 us to read) a step takes 6.5 us more on 2 GPUs, 7.1 on 4,
 * 7.5 on 8, where launches with NCCL in between take 15 to 25. If every rank read all sums of all others, and waited
 * once: 5.2, 7.9 and 13.3. None of this was measured. Sums by the switch itself (multimem) are left out, as they cannot
 * be tried here.
 */
#ifndef DTRAIN_FUSED_PEERS_CUH
#define DTRAIN_FUSED_PEERS_CUH

#include "exchange.cuh"

constexpr unsigned SUM_PAIRS = FUSED_SUMS_PITCH / 2, SUM_CHUNKS = (SUM_PAIRS + LANES - 1) / LANES;
static_assert(FUSED_SUMS_PITCH % 2 == 0, "pairs");

/* Blocks of the net on each rank. */
DEVICE unsigned blocks_of(const memory &m)
{
    return m.run.groups * SEATS;
}

/* By one thread, after a barrier: all blocks of all ranks that have heard it see what this block has done. */
DEVICE void tell_peers(const memory &m)
{
    add_release_to_peers(m.peers.arrived, m.run.ranks);
}

/* The state of a wait for other GPUs: turns since the last look at the host's *alive, what it was then, and how many
 * looks in a row have found it unchanged. */
struct watched {
    unsigned turns, alive, silent;
};

/* As waited_too_long, but such a wait may be long. Whether the other ranks live is for the host to see: if one is lost
 * the host's process ends, and this kernel with it. While the host watches, *alive grows. Where it does not, that
 * process may have been stopped with its whole job, to go on in hours; after `patience` such looks in a row, ten
 * seconds apart, nobody is taken to watch any more. */
DEVICE bool waited_too_long_for_peers(const memory &m, watched *w)
{
    if (!waited_too_long(&w->turns))
        return false;
    unsigned now = *m.peers.alive;
    w->silent = now == w->alive ? w->silent + 1 : 0;
    w->alive = now, w->turns = 0;
    return w->silent >= m.peers.patience;
}

/* By the block's first thread: waits until all blocks of all ranks have told once more. */
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

/* The pair at `at` of each rank's sums becomes the total of these pairs. */
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

/* Replaces a step's sums, on this rank and its peers, by their totals, together with all other blocks: every block has
 * told that it has added its terms, or will. Afterwards this block may read the totals. */
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

/* A rank's second number in `arrived` is how often its counter had been told when the last launch ended. Other threads
 * read m.peers only after the barrier at the end of the first step's gradient. */
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
        m.peers.arrived[m.run.rank][1] = m.awaited; /* all blocks of the rank have read it: they have told since */
}

#endif
