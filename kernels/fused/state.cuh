/* state.cuh - what a block takes from memory when a launch begins, and leaves there when it ends. */
#ifndef DTRAIN_FUSED_STATE_CUH
#define DTRAIN_FUSED_STATE_CUH

#include "memory.cuh"

/* Copies the run of this block's net into shared memory. Every net has the same number of groups, one net's after the
 * other's. */
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

/* velocity: false where nothing is trained. */
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
        int at = canonical_small(own_parameter(seat, i));
        m.v_small[i] = at < 0 || !velocity ? 0 : m.run.velocity[at];
    }
    if (tid() == 0)
        m.round = m.run.round, m.arrivals = m.dense_awaited = m.refused = 0, m.conv3_sums = nullptr;
#ifdef FUSED_CLOCKS
    if (tid() < 32)
        m.clocks[tid()] = 0;
    m.since = clock64();
#endif
    __syncthreads();
}

/* By the first group, as all have the same weights. */
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
        int at = canonical_small(own_parameter(seat, i));
        if (at >= 0)
            m.run.new_weights[at] = *small_parameter(m, own_parameter(seat, i)), m.run.new_velocity[at] = m.v_small[i];
    }
    if (is_first(m))
        *m.run.after = m.state;
}

#endif
