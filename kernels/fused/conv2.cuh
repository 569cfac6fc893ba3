/* conv2.cuh - conv2 forward, with ReLU, dropout and pool. A seat's two samples; dropped channels on either side are
 * left out.
 *
 * pool1 (6, 14, 14) -> pool2 (16, 5, 5), which goes to the seats that have these channels of conv3: 6.4 KB of words. A
 * warp 15 pairs of windows, 30 of 32 lanes, of up to two or four channels. 15 pairs x 80 FFMA for each kept channel of
 * pool1 and of pool2: net A 230,000 of a seat's two samples by 8 of 16 warps, D a quarter by 5 to 9.
 */
#ifndef DTRAIN_FUSED_CONV2_CUH
#define DTRAIN_FUSED_CONV2_CUH

#include "exchange.cuh"
#include "winograd.cuh"

/* sample: in the order of the tile. */
DEVICE void send_pool2(mailbox *mail, unsigned round, unsigned sample, unsigned channel, unsigned cell, float v)
{
    send_word(&mail[channel / EACH].pool2[sample][2 * cell + channel % EACH], v, round);
}

/* pool1 and its factors, of what conv1 left, a thread a stretch; and the zeros that end the rows of pool2. */
static __device__ void prepare_conv2(memory &m, both kept1)
{
    constexpr unsigned STRETCHES = 14 * ACROSS2;
    unsigned e = tid() / (6 * STRETCHES), in = tid() / STRETCHES % 6, row = tid() / ACROSS2 % 14, x = tid() % ACROSS2;
    if (tid() < EACH * 6 * STRETCHES && (kept1[e] >> in & 1) != 0) {
        unsigned column = x < 2 ? 4 * x : 6, at = row / 2 * ACROSS2 + x;
        const float2 *two = reinterpret_cast<const float2 *>(&m.win1[e][in].d[row * 14 + column]);
        float *pool1 = &m.pool1[e][pool1_at(in) + row * PITCH_POOL1 + column];
        float d[8];
#pragma unroll
        for (int q = 0; q < 8; q += 2)
            d[q] = two[q / 2].x, d[q + 1] = two[q / 2].y;
#pragma unroll
        for (int q = 0; q < 8; q++)
            if (x < 2 ? q < 4 : q > 1) /* columns 0..3, 4..7, 8..13 */
                pool1[q] = d[q];
        auto &factors = m.factors2[e][in];
        make_factors(d, &factors.low[row % 2][at], &factors.high[row % 2][at]);
    }
    if (tid() < 2 * SAMPLES)
        m.pool2[tid() / 2][INPUTS + tid() % 2] = 0;
}
static_assert(EACH * 6 * 14 * ACROSS2 <= THREADS, "a thread has one stretch");

/* A warp: all windows of up to 2 * KT kept channels, from number `first` of n on, in 15 pairs of windows: two lanes a
 * pair, which have the channels in turn. Of a row's five windows the last pair has the last two, and only the second
 * counts. */
template <int KT>
static __device__ void conv2_channels(memory &m, unsigned round, unsigned e, unsigned kept1,
                                      unsigned first, unsigned n)
{
    unsigned lane = tid() % LANES, pair = lane < 30 ? lane / 2 : 14;
    unsigned y = pair / ACROSS2, x = pair % ACROSS2 < 2 ? pair % ACROSS2 * 2 : 3, channel[KT];
    pair_chains pairs[KT] = {};
    const float4 *taps[KT];
#pragma unroll
    for (unsigned k = 0; k < KT; k++) {
        unsigned number = first + 2 * k + lane % 2;
        channel[k] = m.now.channels2[e][number < n ? number : first];
    }
#pragma unroll 1
    for (unsigned rest = kept1; rest != 0; rest &= rest - 1) {
        unsigned in = (unsigned)__ffs((int)rest) - 1;
#pragma unroll
        for (int k = 0; k < KT; k++)
            taps[k] = m.taps2[channel[k]].rows[in * 5];
        convolve_plane<KT>(m.factors2[e][in], pair, taps, pairs);
    }
    unsigned sample = sample_of(m, e);
    mailbox *mail = m.mail;
#pragma unroll
    for (unsigned k = 0; k < KT; k++) {
        pair_outputs outputs = outputs_of(pairs[k]);
#pragma unroll
        for (unsigned window = 0; window < 2; window++) {
            int from;
            float v = pool(outputs, window, m.b2[channel[k]], m.run.scale[1], &from);
            if (lane >= 30 || first + 2 * k + lane % 2 >= n || (x == 3 && window == 0))
                continue;
            unsigned cell = y * 5 + x + window;
            auto &win2 = m.win2[e][channel[k]][cell];
            win2.base = (int16_t)winner_base(from, y, x + window, PITCH_POOL1);
            /* Winner 1 meets them a column later, 2 a row, 3 both. Of no meaning where it is NOWHERE. */
            win2.met = (int16_t)((int)(channel[k] * 6 * PLANE2) - from / 2 * (int)ROW2 - from % 2);
            send_pool2(mail, round, sample, channel[k], cell, v);
        }
    }
}

/* Two channels a lane, four a warp, if both samples together keep more than there are warps. What is dropped is sent as
 * 0. Returns the first warp that had nothing to compute: at least the last seven. */
static __device__ unsigned conv2_forward(memory &m, unsigned round, both kept1, both kept2)
{
    both n = {(unsigned)__popc(kept2.first), (unsigned)__popc(kept2.second)};
    unsigned at_once = n.first + n.second > WARPS ? 4 : 2;
    both units = {(n.first + at_once - 1) / at_once, (n.second + at_once - 1) / at_once};
    unsigned warp = tid() / LANES;
    if (warp < units.first + units.second) {
        unsigned e = warp >= units.first, first = at_once * (warp - e * units.first);
        if (at_once == 4 && first + 2 < n[e])
            conv2_channels<2>(m, round, e, kept1[e], first, n[e]);
        else
            conv2_channels<1>(m, round, e, kept1[e], first, n[e]);
    }
    unsigned channel = tid() / 25, cell = tid() % 25;
    for (unsigned e = 0; e < EACH; e++)
        if (channel < 16 && (kept2[e] >> channel & 1) == 0)
            send_pool2(m.mail, round, sample_of(m, e), channel, cell, 0);
    return units.first + units.second;
}

#endif
