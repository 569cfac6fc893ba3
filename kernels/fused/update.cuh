/* update.cuh - the end of a step: its sums are complete, and become new weights.
 *
 * Every group does all of it for itself, a seat what it owns: an eighth of the small parameters, which it sends to its
 * group, and conv3's weights of its two channels, which nobody else has. conv1, conv2 and conv3's biases go by lines,
 * as conv1 and conv2 wait for them; fc1 and fc2 (45 KB) plainly, to be fetched, once the group's counter allows it,
 * while conv3 goes forward; and conv3's weights are updated by warps that conv2 leaves idle.
 * In: 63 KB of sums a seat. 15,864 FFMA and half as many products of doubles.
 */
#ifndef DTRAIN_FUSED_UPDATE_CUH
#define DTRAIN_FUSED_UPDATE_CUH

#include "exchange.cuh"

/* A thread of the first warps has a line of the convolutions' numbers, or none; one of the others two or three pairs of
 * the dense layers'. */
constexpr unsigned OWN_LINES = OWN_CONV / 3, LINE_THREADS = (OWN_LINES + LANES - 1) / LANES * LANES,
                   OWN_PAIRS = OWN_DENSE / 2, PAIR_THREADS = THREADS - LINE_THREADS, PAIR_TURNS = 3,
                   CONV_LINES = AT_WF1 / 3, LINE_TURNS = 3;
static_assert(OWN_CONV % 6 == 0 && OWN_DENSE % 2 == 0 && AT_WF1 % 2 == 0 && PAIR_TURNS * PAIR_THREADS >= OWN_PAIRS &&
                  LINE_TURNS * THREADS >= CONV_LINES && INPUTS % 2 == 0 && PITCH_FC1 % 4 == 0,
              "lines and pairs of numbers, and a thread has few of them");

DEVICE int64_t *sums_of(const memory &m, unsigned i)
{
    return m.run.sums + (m.run.buffer + i) % 3 * (size_t)m.run.sums_pitch;
}

/* Sets the sums of step i + 1 to zero, a block its share: those of two steps ago, which nobody reads any more. By the
 * threads that conv3_back leaves idle, in a block whose group has no tile too: all divide the sums alike. */
DEVICE void zero_next_sums(const memory &m, unsigned i)
{
    constexpr unsigned FIRST = 4 * LANES, SHARE = THREADS - FIRST;
    longlong2 *next = reinterpret_cast<longlong2 *>(sums_of(m, i + 1));
    if (tid() >= FIRST)
        for (unsigned k = block_of(m) * SHARE + tid() - FIRST; k < FUSED_SUMS_PITCH / 2;
             k += m.run.groups * SEATS * SHARE)
            next[k] = longlong2{0, 0};
}

/* Sums are read by strong loads, which the compiler leaves where they stand: so all that a thread needs takes one way
 * to the L2 and back. Plain ones it would put off until each is needed. */
DEVICE long long load_sum(const int64_t *from)
{
    return (long long)load_word(reinterpret_cast<const uint64_t *>(from));
}

DEVICE longlong2 load_pair(const int64_t *from)
{
    ulonglong2 line = load_line(reinterpret_cast<const ulonglong2 *>(from));
    return longlong2{(long long)line.x, (long long)line.y};
}

/* What all weights of an update share; unit: as in struct fused_run. Read once, before anything is stored. */
struct update_by {
    float momentum, rate;
    double unit;
};
DEVICE update_by updated_by(const memory &m, double unit)
{
    return {m.run.momentum, m.run.learning_rate, unit};
}

/* New velocity *v and weight *w. */
DEVICE void update_number(long long sum, update_by by, float *v, float *w)
{
    *v = fmaf(by.momentum, *v, (float)((double)sum * by.unit));
    *w = fmaf(-by.rate, *v, *w);
}

/* Those of N pairs: all are converted side by side. */
template <unsigned N> DEVICE void update_pairs(const longlong2 *sums, update_by by, float2 *v, float2 *w)
{
#pragma unroll
    for (unsigned r = 0; r < N; r++) {
        update_number(sums[r].x, by, &v[r].x, &w[r].x);
        update_number(sums[r].y, by, &v[r].y, &w[r].y);
    }
}

/* Turn r of `pairs` pairs, of which every `pitch`-th is this thread's, from `first` on; beyond the last, the first. */
DEVICE unsigned pair_of_turn(unsigned first, unsigned r, unsigned pitch, unsigned pairs)
{
    return first + r * pitch < pairs ? first + r * pitch : first;
}

/* What an update is made of: the sums, where in them this thread's line or first pair is, and their unit. Known before
 * the sums are complete, so that they are asked for at once. */
struct update_from {
    const int64_t *sums, *own;
    double unit;
};
DEVICE update_from update_from_sums(const memory &m, const int64_t *sums, unsigned samples)
{
    unsigned t = tid(), k = t < LINE_THREADS ? 3 * t : OWN_CONV + 2 * (t - LINE_THREADS);
    return {sums, sums + SUMS_SMALL + own_parameter(seat_of(), k), m.run.unit[samples == m.run.batch ? 0 : 1]};
}

/* Updates a line of the convolutions' parameters, and sends it to the group. */
DEVICE void update_line(memory &m, const long long *sums, update_by by, unsigned round)
{
    unsigned line = tid(), i = own_parameter(seat_of(), 3 * line);
    float v[3], w[3];
    if (line >= OWN_LINES)
        return;
#pragma unroll
    for (unsigned k = 0; k < 3; k++)
        v[k] = m.v_small[3 * line + k], w[k] = *small_parameter(m, i + k);
#pragma unroll
    for (unsigned k = 0; k < 3; k++)
        update_number(sums[k], by, &v[k], &w[k]);
    send_line(&mail_of(m, 0).conv[i / 3], w[0], w[1], w[2], round);
#pragma unroll
    for (unsigned k = 0; k < 3; k++)
        m.v_small[3 * line + k] = v[k], *small_parameter(m, i + k) = w[k];
}

/* Updates pairs of fc1 and fc2, and stores them in the group's mail, from where this block fetches them, too. */
DEVICE void update_dense(memory &m, const longlong2 *sums, update_by by)
{
    unsigned i = own_parameter(seat_of(), OWN_CONV), first = tid() - LINE_THREADS;
    float *velocity = m.v_small + OWN_CONV, *mail = mail_of(m, 0).dense + i;
    float2 v[PAIR_TURNS], w[PAIR_TURNS];
#pragma unroll
    for (unsigned r = 0; r < PAIR_TURNS; r++) {
        unsigned k = 2 * pair_of_turn(first, r, PAIR_THREADS, OWN_PAIRS);
        v[r] = *reinterpret_cast<float2 *>(&velocity[k]);
        w[r] = *reinterpret_cast<float2 *>(small_parameter(m, i + k));
    }
    update_pairs<PAIR_TURNS>(sums, by, v, w);
#pragma unroll
    for (unsigned r = 0; r < PAIR_TURNS; r++) {
        unsigned pair = first + r * PAIR_THREADS;
        if (pair >= OWN_PAIRS)
            continue;
        *reinterpret_cast<float2 *>(&velocity[2 * pair]) = v[r];
        __stcg(reinterpret_cast<float2 *>(&mail[2 * pair]), w[r]);
    }
}

DEVICE void receive_conv_weights(memory &m, unsigned round)
{
    unsigned t = tid(), own = seat_of() * OWN_LINES;
    const ulonglong2 *from[LINE_TURNS], *conv = mail_of(m, 0).conv;
    ulonglong2 lines[LINE_TURNS];
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++)
        from[k] = conv + (t + k * THREADS < CONV_LINES ? t + k * THREADS : t);
    receive_lines<LINE_TURNS>(from, round, lines);
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++) {
        unsigned line = t + k * THREADS;
        if (line < CONV_LINES && line - own >= OWN_LINES) { /* the seat's own are in place */
            float *to = small_parameter(m, 3 * line);
            to[0] = low_of(lines[k].x), to[1] = high_of(lines[k].x), to[2] = low_of(lines[k].y);
        }
    }
}

/* --- fc1's and fc2's new weights -------------------------------------------------------------- */

/* Of the last warp but one, as the last one draws masks meanwhile. */
constexpr unsigned TELLER = THREADS - LANES - 1;

/* This thread tells the group that this block has written its part of the new weights: later than it could, as
 * others wait for the update. Out of line, for want of registers. */
static __device__ __noinline__ void tell_dense_weights()
{
    memory &m = shared();
    if (m.dense_awaited && tid() == TELLER)
        tell_group(m);
}

/* The same thread waits until all blocks of the group have written theirs. */
DEVICE void await_dense_weights(const memory &m)
{
    if (m.dense_awaited && tid() == TELLER)
        wait_for_group(m);
}

/* Begins to copy the group's new weights into shared memory. Called after a barrier that follows
 * await_dense_weights. */
DEVICE void fetch_dense_weights(memory &m, unsigned first)
{
    if (tid() < first || !m.dense_awaited)
        return;
    const float *dense = mail_of(m, 0).dense;
    for (unsigned i = AT_WF1 + 4 * (tid() - first); i < SMALL; i += 4 * (THREADS - first))
        copy_later(small_parameter(m, i), dense + i);
}

/* On return the copies are in shared memory, for all threads. */
DEVICE void settle_dense_weights(memory &m)
{
    await_copies();
    __syncthreads();
    if (tid() == 0)
        m.dense_awaited = 0, m.conv3_sums = nullptr; /* update_conv3 has been called */
}

/* --- conv3's new weights ---------------------------------------------------------------------- */

/* Updates conv3's weights, if finish_step has left that to do, by the warps from `first` on. Called after a barrier
 * that follows finish_step; the new weights are there after the next barrier. */
static __device__ void update_conv3(memory &m, unsigned first)
{
    constexpr unsigned PAIRS = WEIGHTS3 / 2, TURNS = 10;
    unsigned t = tid(), begin = t - first * LANES, threads = THREADS - first * LANES;
    if (m.conv3_sums == nullptr || t < first * LANES)
        return;
    update_by by = updated_by(m, m.conv3_unit);
#pragma unroll 1
    for (; begin < PAIRS; begin += TURNS * threads) {
        longlong2 sums[TURNS];
#pragma unroll
        for (unsigned r = 0; r < TURNS; r++)
            sums[r] = load_pair(m.conv3_sums + 2 * pair_of_turn(begin, r, threads, PAIRS));
#pragma unroll
        for (unsigned r = 0; r < TURNS; r += 2) { /* two at once */
            float2 v[2], w[2];
            unsigned pairs[2];
#pragma unroll
            for (unsigned k = 0; k < 2; k++) {
                pairs[k] = begin + (r + k) * threads;
                unsigned pair = pair_of_turn(begin, r + k, threads, PAIRS);
                v[k] = *reinterpret_cast<float2 *>(&m.v3[2 * pair]);
                w[k] = *reinterpret_cast<float2 *>(&m.w3[pair / (INPUTS / 2)][pair % (INPUTS / 2) * 2]);
            }
            update_pairs<2>(sums + r, by, v, w);
#pragma unroll
            for (unsigned k = 0; k < 2; k++) {
                if (pairs[k] >= PAIRS)
                    continue;
                *reinterpret_cast<float2 *>(&m.v3[2 * pairs[k]]) = v[k];
                *reinterpret_cast<float2 *>(&m.w3[pairs[k] / (INPUTS / 2)][pairs[k] % (INPUTS / 2) * 2]) = w[k];
            }
        }
    }
}

/* --- together --------------------------------------------------------------------------------- */

/* Does what finish_step has left to do, in a group that has no tile, and at the end of a launch. */
static __device__ void finish_update(memory &m)
{
    update_conv3(m, 0);
    tell_dense_weights();
    await_dense_weights(m);
    __syncthreads();
    fetch_dense_weights(m, 0);
    settle_dense_weights(m);
}

/* The update by the complete sums of a batch, unless a number in them was refused. True if the run is over: a number
 * was refused, and the step is not applied; or a rank asked to stop, and the step is applied. round: of the lines that
 * carry new weights. On return those of conv1 and conv2 and the three convolutions' biases are in shared memory;
 * finish_update says what is left to do. */
static __device__ bool finish_step(memory &m, unsigned round, const update_from &from)
{
    unsigned first = tid() - LINE_THREADS; /* pair */
    bool has_line = tid() < LINE_THREADS;
    long long line[3] = {};
    longlong2 pairs[PAIR_TURNS] = {};
    if (has_line)
#pragma unroll
        for (unsigned i = 0; i < 3; i++)
            line[i] = load_sum(from.own + i);
    else
#pragma unroll
        for (unsigned r = 0; r < PAIR_TURNS; r++)
            pairs[r] = load_pair(from.own + 2 * (pair_of_turn(first, r, PAIR_THREADS, OWN_PAIRS) - first));
    bool refused = load_sum(from.sums + FUSED_REFUSED) != 0, stopped = load_sum(from.sums + FUSED_STOP) != 0;
    long long loss = load_sum(from.sums + FUSED_LOSS);
    if (is_first(m)) {
        m.state.not_finite = refused;
        m.state.stopped = stopped && !refused;
        if (!refused)
            m.state.loss += loss, m.state.applied++;
    }
    if (refused)
        return true;
    update_by by = updated_by(m, from.unit);
    if (has_line)
        update_line(m, line, by, round);
    else
        update_dense(m, pairs, by);
    if (tid() == 0)
        m.dense_awaited = 1, m.conv3_sums = from.sums + seat_of() * WEIGHTS3, m.conv3_unit = from.unit;
    receive_conv_weights(m, round);
    __syncthreads();
    return stopped;
}

#endif
