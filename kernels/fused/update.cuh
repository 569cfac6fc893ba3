/* update.cuh - the end of a step: its sums are complete, and become new weights.
 *
 * Every group does all of it for itself, a seat what it owns: conv3's weights of its two channels, which nobody else
 * has, and an eighth of the small parameters, which it sends to its group: up to fc1 by lines, as the next convolutions
 * wait for them; fc1 and fc2 (45 KB) plainly, to be fetched behind the group's barrier while conv3 goes forward.
 * In: 62 KB of sums a seat. 15,672 FFMA and half as many products of doubles.
 */
#ifndef DTRAIN_FUSED_UPDATE_CUH
#define DTRAIN_FUSED_UPDATE_CUH

#include "exchange.cuh"

constexpr unsigned OWN_TURNS = 2, CONV3_TURNS = 6, CONV_LINES = AT_WF1 / 2, LINE_TURNS = 4;
static_assert(OWN_TURNS * THREADS >= OWN / 2 && CONV3_TURNS * THREADS >= WEIGHTS3 / 2 &&
                  LINE_TURNS * THREADS >= CONV_LINES && OWN % 2 == 0 && INPUTS % 2 == 0 && PITCH_FC1 % 4 == 0,
              "pairs of numbers, and a thread has few of them");

/* A thread's part of the sums. */
struct own_sums {
    longlong2 small[OWN_TURNS], conv3[CONV3_TURNS];
};

/* All at once: one way to the L2 and back. */
DEVICE own_sums read_sums(const int64_t *sums)
{
    const longlong2 *small = reinterpret_cast<const longlong2 *>(sums + SUMS_SMALL + seat_of() * OWN);
    const longlong2 *conv3 = reinterpret_cast<const longlong2 *>(sums + seat_of() * WEIGHTS3);
    own_sums own;
#pragma unroll
    for (unsigned r = 0; r < OWN_TURNS; r++)
        own.small[r] = __ldcg(small + (tid() + r * THREADS < OWN / 2 ? tid() + r * THREADS : 0));
#pragma unroll
    for (unsigned r = 0; r < CONV3_TURNS; r++)
        own.conv3[r] = __ldcg(conv3 + (tid() + r * THREADS < WEIGHTS3 / 2 ? tid() + r * THREADS : 0));
    return own;
}

/* Two neighbours. */
DEVICE float2 update_pair(const memory &m, longlong2 sums, double unit, float2 *velocity, float2 w)
{
    float2 v = *velocity;
    v.x = fmaf(m.run.momentum, v.x, (float)((double)sums.x * unit)),
    v.y = fmaf(m.run.momentum, v.y, (float)((double)sums.y * unit));
    *velocity = v;
    return make_float2(fmaf(-m.run.learning_rate, v.x, w.x), fmaf(-m.run.learning_rate, v.y, w.y));
}

DEVICE void update_small(memory &m, const own_sums &own, double unit, unsigned round)
{
    mailbox &mail = mail_of(m, 0);
#pragma unroll
    for (unsigned r = 0; r < OWN_TURNS; r++) {
        unsigned k = 2 * (tid() + r * THREADS), i = seat_of() * OWN + k;
        if (k >= OWN)
            continue;
        float2 w = update_pair(m, own.small[r], unit, reinterpret_cast<float2 *>(&m.v_small[k]),
                               *reinterpret_cast<float2 *>(small_parameter(m, i)));
        if (i < AT_WF1)
            store_line(&mail.conv[i / 2], ulonglong2{pair_of(w.x, w.y), pair_of(0u, round)});
        else
            __stcg(reinterpret_cast<float2 *>(&mail.dense[i]), w);
    }
}

DEVICE void update_conv3(memory &m, const own_sums &own, double unit)
{
#pragma unroll
    for (unsigned r = 0; r < CONV3_TURNS; r++) {
        unsigned pair = tid() + r * THREADS;
        if (pair >= WEIGHTS3 / 2)
            continue;
        float2 *w = reinterpret_cast<float2 *>(&m.w3[pair / (INPUTS / 2)][pair % (INPUTS / 2) * 2]);
        *w = update_pair(m, own.conv3[r], unit, reinterpret_cast<float2 *>(&m.v3[2 * pair]), *w);
    }
}

DEVICE void receive_conv_weights(memory &m, unsigned round)
{
    const ulonglong2 *from[LINE_TURNS];
    ulonglong2 lines[LINE_TURNS];
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++)
        from[k] = mail_of(m, 0).conv + (tid() + k * THREADS < CONV_LINES ? tid() + k * THREADS : tid());
    receive_lines<LINE_TURNS>(from, round, lines);
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++) {
        unsigned line = tid() + k * THREADS;
        if (line < CONV_LINES)
            *reinterpret_cast<float2 *>(small_parameter(m, 2 * line)) =
                make_float2(low_of(lines[k].x), high_of(lines[k].x));
    }
}

/* --- fc1's and fc2's new weights -------------------------------------------------------------- */

/* One thread waits until all of the group have written them. */
DEVICE void await_dense_weights(const memory &m)
{
    if (m.dense_awaited && tid() == THREADS - 1)
        wait_for_group(m);
}

/* To be called after a barrier that follows await_dense_weights. */
DEVICE void fetch_dense_weights(memory &m)
{
    if (!m.dense_awaited)
        return;
    const float *dense = mail_of(m, 0).dense;
    for (unsigned i = AT_WF1 + 4 * tid(); i < SMALL; i += 4 * THREADS)
        copy_later(small_parameter(m, i), dense + i);
}

/* On return the weights are in shared memory. */
DEVICE void settle_dense_weights(memory &m)
{
    await_copies();
    __syncthreads();
    if (tid() == 0)
        m.dense_awaited = 0;
}

/* The whole of it, for a group that has no tile, and at the end. */
static __device__ void take_dense_weights(memory &m)
{
    await_dense_weights(m);
    __syncthreads();
    fetch_dense_weights(m);
    settle_dense_weights(m);
}

/* --- together --------------------------------------------------------------------------------- */

/* The sums of a batch of `samples` are complete: the update, unless a number in them was refused. True if the run
 * is over: a number was refused, and the step is not applied; or a rank asked to stop, and it is. round: of the new
 * weights' lines. */
static __device__ bool finish_step(memory &m, unsigned round, const int64_t *sums, unsigned samples)
{
    own_sums own = read_sums(sums);
    bool refused = __ldcg(reinterpret_cast<const long long *>(sums + FUSED_REFUSED)) != 0;
    bool stopped = __ldcg(reinterpret_cast<const long long *>(sums + FUSED_STOP)) != 0;
    if (is_first(m)) {
        m.state.not_finite = refused;
        m.state.stopped = stopped && !refused;
        if (!refused)
            m.state.loss += __ldcg(reinterpret_cast<const long long *>(sums + FUSED_LOSS)), m.state.applied++;
    }
    if (refused)
        return true;
    double unit = m.run.unit[samples == m.run.batch ? 0 : 1];
    update_small(m, own, unit, round);
    group_arrive(m);
    if (tid() == 0)
        m.dense_awaited = 1;
    update_conv3(m, own, unit);
    receive_conv_weights(m, round);
    __syncthreads();
    return stopped;
}

#endif
