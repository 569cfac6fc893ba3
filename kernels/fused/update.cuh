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

constexpr unsigned OWN_TURNS = 2, CONV_LINES = AT_WF1 / 3, LINE_TURNS = 3;
static_assert(OWN_TURNS * THREADS >= OWN / 2 && LINE_TURNS * THREADS >= CONV_LINES && OWN % 6 == 0 &&
                  INPUTS % 2 == 0 && PITCH_FC1 % 4 == 0,
              "pairs of numbers, and a thread has few of them");

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

/* Reads every `pitch`-th of `count` pairs of sums from `first` on, TURNS at most: one way to the L2 and back, since the
 * compiler leaves strong loads where they stand. Plain ones it would put off until each is needed. */
template <unsigned TURNS>
DEVICE void read_sums(const int64_t *sums, unsigned first, unsigned pitch, unsigned count, longlong2 *pairs)
{
#pragma unroll
    for (unsigned r = 0; r < TURNS; r++) {
        unsigned pair = first + r * pitch < count ? first + r * pitch : 0;
        ulonglong2 line = load_line(reinterpret_cast<const ulonglong2 *>(sums) + pair);
        pairs[r] = longlong2{(long long)line.x, (long long)line.y};
    }
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

/* New velocities v and weights w of N pairs: all are converted side by side. */
template <unsigned N> DEVICE void update_pairs(const longlong2 *sums, update_by by, float2 *v, float2 *w)
{
#pragma unroll
    for (unsigned r = 0; r < N; r++) {
        v[r].x = fmaf(by.momentum, v[r].x, (float)((double)sums[r].x * by.unit));
        v[r].y = fmaf(by.momentum, v[r].y, (float)((double)sums[r].y * by.unit));
        w[r] = make_float2(fmaf(-by.rate, v[r].x, w[r].x), fmaf(-by.rate, v[r].y, w[r].y));
    }
}

/* Updates the small parameters that this seat owns. Those of the convolutions are then sent to the group from shared
 * memory; those of fc1 and fc2 are only stored in the group's mail, from where this block fetches them, too. */
DEVICE void update_small(memory &m, const longlong2 *own, update_by by, unsigned round)
{
    mailbox &mail = mail_of(m, 0);
    unsigned t = tid(), first = seat_of() * OWN;
    float2 v[OWN_TURNS], w[OWN_TURNS];
#pragma unroll
    for (unsigned r = 0; r < OWN_TURNS; r++) {
        unsigned k = 2 * (t + r * THREADS) < OWN ? 2 * (t + r * THREADS) : 0;
        v[r] = *reinterpret_cast<float2 *>(&m.v_small[k]);
        w[r] = *reinterpret_cast<float2 *>(small_parameter(m, first + k));
    }
    update_pairs<OWN_TURNS>(own, by, v, w);
#pragma unroll
    for (unsigned r = 0; r < OWN_TURNS; r++) {
        unsigned k = 2 * (t + r * THREADS), i = first + k;
        if (k >= OWN)
            continue;
        *reinterpret_cast<float2 *>(&m.v_small[k]) = v[r];
        if (i < AT_WF1)
            *reinterpret_cast<float2 *>(small_parameter(m, i)) = w[r];
        else
            __stcg(reinterpret_cast<float2 *>(&mail.dense[i]), w[r]);
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned i = first + 3 * t; i < first + OWN && i < AT_WF1; i += 3 * THREADS) {
        const float *w = small_parameter(m, i);
        send_line(&mail.conv[i / 3], w[0], w[1], w[2], round);
    }
}

DEVICE void receive_conv_weights(memory &m, unsigned round)
{
    unsigned t = tid(), own = seat_of() * OWN;
    const ulonglong2 *from[LINE_TURNS], *conv = mail_of(m, 0).conv;
    ulonglong2 lines[LINE_TURNS];
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++)
        from[k] = conv + (t + k * THREADS < CONV_LINES ? t + k * THREADS : t);
    receive_lines<LINE_TURNS>(from, round, lines);
#pragma unroll
    for (unsigned k = 0; k < LINE_TURNS; k++) {
        unsigned line = t + k * THREADS;
        if (line < CONV_LINES && 3 * line - own >= OWN) { /* the seat's own are in place */
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
        read_sums<TURNS>(m.conv3_sums, begin, threads, PAIRS, sums);
#pragma unroll
        for (unsigned r = 0; r < TURNS; r += 2) { /* two at once */
            float2 v[2], w[2];
            unsigned pairs[2];
#pragma unroll
            for (unsigned k = 0; k < 2; k++) {
                pairs[k] = begin + (r + k) * threads;
                unsigned pair = pairs[k] < PAIRS ? pairs[k] : begin;
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

/* The update by the complete sums of a batch of `samples`, unless a number in them was refused. True if the run is
 * over: a number was refused, and the step is not applied; or a rank asked to stop, and the step is applied. round: of
 * the lines that carry new weights. On return those of conv1 and conv2 and the three convolutions' biases are in shared
 * memory; finish_update says what is left to do. */
static __device__ bool finish_step(memory &m, unsigned round, const int64_t *sums, unsigned samples)
{
    longlong2 own[OWN_TURNS];
    read_sums<OWN_TURNS>(sums + SUMS_SMALL + seat_of() * OWN, tid(), THREADS, OWN / 2, own);
    const uint64_t *words = reinterpret_cast<const uint64_t *>(sums);
    bool refused = load_word(words + FUSED_REFUSED) != 0, stopped = load_word(words + FUSED_STOP) != 0;
    long long loss = (long long)load_word(words + FUSED_LOSS); /* here, not where it is used: one way to the L2 */
    /* Volatile, or it would be read after what is on its way. */
    double unit = static_cast<const volatile double &>(m.run.unit[samples == m.run.batch ? 0 : 1]);
    if (is_first(m)) {
        m.state.not_finite = refused;
        m.state.stopped = stopped && !refused;
        if (!refused)
            m.state.loss += loss, m.state.applied++;
    }
    if (refused)
        return true;
    update_small(m, own, updated_by(m, unit), round);
    if (tid() == 0)
        m.dense_awaited = 1, m.conv3_sums = sums + seat_of() * WEIGHTS3, m.conv3_unit = unit;
    receive_conv_weights(m, round);
    __syncthreads();
    return stopped;
}

#endif
