/* conv2_back.cuh - the gradients of conv2's weights and of its input. A seat's two samples; dropped channels on either
 * side are left out.
 *
 *   weights   a warp a channel, of a sample or both, a lane every 32nd tap of all kept input channels; 150 FFMA a live
 *             window and channel, half with D
 *   input     a warp a window: 36 numbers of pool1 an input channel that it saw; 36 FFMA a live window and pair of kept
 *             channels, of which 25 count; then up to nine windows are added to each number of pool1
 */
#ifndef DTRAIN_FUSED_CONV2_BACK_CUH
#define DTRAIN_FUSED_CONV2_BACK_CUH

#include "exchange.cuh"
#include "reduce.cuh"
#include "winograd.cuh"

/* --- slots ------------------------------------------------------------------------------------ */

/* On the way back a sample's taps, 25 of each kept input channel, are numbered one after the other, and so are the 6x6
 * numbers of each that a window saw. A lane has every 32nd of these, its *slots*. A slot beyond the `count` that there
 * are is a copy of the first lane's, which reads the same, so that no bank has two words to give. */
DEVICE unsigned number_of(unsigned slot, unsigned count)
{
    unsigned first = slot - slot % LANES;
    return slot < count ? slot : first < count ? first : 0;
}

/* The input channel to which `number` belongs, n to each; 0 where none is kept, as the list of the kept ones may then
 * hold anything. */
DEVICE unsigned channel_of(const memory &m, unsigned e, unsigned number, unsigned n, both kept1)
{
    return kept1[e] != 0 ? m.now.channels1[e][number / n] : 0;
}

/* Fills in m.taps and m.met, the slots of both samples, by the warps from `first` on but for the last. */
static __device__ void number_slots(memory &m, unsigned first, both kept1)
{
    unsigned begin = tid() - first * LANES, threads = THREADS - LANES - first * LANES;
    if (begin >= threads)
        return;
#pragma unroll 1
    for (unsigned i = begin; i < EACH * TAP_SLOTS; i += threads) {
        unsigned e = i / TAP_SLOTS, slot = i % TAP_SLOTS, count = 25 * (unsigned)__popc(kept1[e]);
        unsigned number = number_of(slot, count), channel = channel_of(m, e, number, 25, kept1), y = number % 25 / 5,
                 x = number % 5, weight = channel * PLANE2 + y * ROW2 + x;
        m.taps[e][slot].pool1 = (uint16_t)((pool1_at(channel) + y * PITCH_POOL1 + x) * sizeof(float));
        m.taps[e][slot].weight = slot < count ? (uint16_t)weight : NO_WEIGHT;
    }
#pragma unroll 1
    for (unsigned i = begin; i < EACH * PATCH_SLOTS; i += threads) {
        unsigned e = i / PATCH_SLOTS, slot = i % PATCH_SLOTS;
        unsigned number = number_of(slot, PATCH * (unsigned)__popc(kept1[e]));
        unsigned weight = channel_of(m, e, number, PATCH, kept1) * PLANE2 + number % PATCH;
        m.met[e][slot] = (uint16_t)(weight * sizeof(float));
    }
}
static_assert(PATCH == PLANE2, "numbers and weights lie alike");

/* A chain over a list's live winners for each slot. slots[r] is where the number that winners of base 0 multiply lies;
 * base counts floats from there. */
template <int SLOTS>
DEVICE void slot_chains(const char *const *slots, const winner *list, unsigned count, float *chains)
{
#pragma unroll 1
    for (unsigned i = 0; i < count; i += 4) {
        float d[4];
        int base[4];
        four_of(list, i, d, base);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int r = 0; r < SLOTS; r++)
                chains[r] = fmaf(reinterpret_cast<const float *>(slots[r])[base[j]], d[j], chains[r]);
    }
}

/* --- the weights' gradient -------------------------------------------------------------------- */

/* A channel's winners in sample e, a lane each: waits for their gradients, and leaves these in win2. */
DEVICE winner conv2_winner(memory &m, unsigned round, unsigned e, unsigned channel)
{
    unsigned lane = tid() % LANES;
    winner w = {0, 0};
    if (lane < 25) {
        auto *win2 = &m.win2[e][channel][lane];
        /* Volatile, or it would be read after what is on its way. */
        w.base = static_cast<const volatile int16_t &>(win2->base);
        float scale = static_cast<const volatile float &>(m.run.scale[1]), v;
        receive_words<1>(&mail_of(m, seat_of()).dpool2[e][channel / EACH][2 * lane + channel % EACH], 0, round, &v);
        w.d = win2->d = w.base < 0 ? 0 : v * scale;
    }
    return w;
}

/* An output channel of samples from .. to - 1, by a warp. Two keep the same input channels: the terms of each are
 * rounded by themselves, and added up before they join the batch's sums. */
template <int SLOTS>
DEVICE void conv2_channel(memory &m, unsigned round, unsigned channel, unsigned from, unsigned to)
{
    unsigned lane = tid() % LANES;
    winner *list = m.list[tid() / LANES];
    long long units[SLOTS] = {}, bias = 0;
    bool refused = false;
    conv2_tap taps[SLOTS];
#pragma unroll
    for (unsigned r = 0; r < SLOTS; r++)
        taps[r] = m.taps[from][lane + LANES * r];
#pragma unroll 1
    for (unsigned e = from; e < to; e++) {
        const char *pool1[SLOTS];
        float chains[SLOTS] = {};
#pragma unroll
        for (unsigned r = 0; r < SLOTS; r++)
            pool1[r] = reinterpret_cast<const char *>(m.pool1[e]) + taps[r].pool1;
        winner w = conv2_winner(m, round, e, channel);
        bias += fixed_point(warp_tree(w.d), &refused);
        slot_chains<SLOTS>(pool1, list, list_live(list, w), chains);
#pragma unroll
        for (int r = 0; r < SLOTS; r++)
            units[r] += fixed_point(taps[r].weight != NO_WEIGHT ? chains[r] : 0, &refused);
    }
    int64_t *weights = m.sums + SUMS_SMALL + AT_W2 + channel * 6 * PLANE2;
#pragma unroll
    for (int r = 0; r < SLOTS; r++)
        if (units[r] != 0)
            add_sum(weights + taps[r].weight, units[r]);
    if (lane == 0)
        add_sum(m.sums + SUMS_SMALL + AT_B2 + channel, bias);
    refuse_if(m, refused);
}

/* The kept channels of both samples, one after the other, in turns of all warps, of which the first two of every four
 * come first: the others are in dense_back longer. Where both samples keep all, and the same of conv1, a channel of
 * both at once. */
static __device__ void conv2_weight_gradient(memory &m, unsigned round, both kept1, both kept2)
{
    unsigned warp = tid() / LANES, n0 = (unsigned)__popc(kept2.first), all = n0 + (unsigned)__popc(kept2.second);
    bool at_once = (kept2.first & kept2.second) == 0xffff && kept1.first == kept1.second;
#pragma unroll 1
    for (unsigned i = warp % 4 / 2 * (WARPS / 2) + warp / 4 * 2 + warp % 2; i < (at_once ? WARPS : all); i += WARPS) {
        unsigned e = i >= n0, channel = m.now.channels2[e][i - e * n0], end = at_once ? EACH : e + 1;
        if (__popc(kept1[e]) > 3)
            conv2_channel<5>(m, round, channel, e, end);
        else
            conv2_channel<3>(m, round, channel, e, end);
    }
}

/* --- the input's gradient --------------------------------------------------------------------- */

/* The windows of one sample, a warp each in turn; n: how many input channels are kept. If these are ALL, the numbers
 * that windows saw lie like the weights. Leaves chains over the live channels in m.seen. */
template <int SLOTS, bool ALL> DEVICE void conv2_windows(memory &m, unsigned e, unsigned kept2, unsigned n)
{
    unsigned lane = tid() % LANES, warp = tid() / LANES;
    const char *weights[SLOTS]; /* that the slots' numbers meet, of channel 0 and winner 0 */
#pragma unroll
    for (int r = 0; r < SLOTS; r++) {
        unsigned slot = lane + LANES * (unsigned)r;
        uint16_t at = ALL ? (uint16_t)(slot * sizeof(float)) : m.met[e][slot];
        weights[r] = reinterpret_cast<const char *>(&m.w2[0][0][0]) + at;
    }
    winner *list = m.list[warp];
#pragma unroll 1
    for (unsigned u = (warp - 9 * e) % WARPS; u < 25; u += WARPS) { /* the first sample's 25 end with warp 8 */
        winner w = {0, 0};
        if (lane < 16 && (kept2 >> lane & 1) != 0)
            w = winner{m.win2[e][lane][u].d, m.win2[e][lane][u].met};
        unsigned count = list_live(list, w);
        float chains[SLOTS] = {};
        slot_chains<SLOTS>(weights, list, count, chains);
#pragma unroll
        for (int r = 0; r < SLOTS; r++)
            if (lane + LANES * (unsigned)r < n * PATCH)
                m.seen[e][u][lane + LANES * (unsigned)r] = chains[r];
    }
}

/* A thread has 2x2 numbers of pool1, which the same windows saw, up to three in each direction; where there is no such
 * window, what lies there is read, but not used. The sums become the gradients of conv1's winners. */
static __device__ void conv2_gather(memory &m, both kept1)
{
    constexpr unsigned FOURS = 49;
    unsigned n0 = (unsigned)__popc(kept1.first), n1 = (unsigned)__popc(kept1.second);
    float scale = m.run.scale[0];
#pragma unroll 1
    for (unsigned i = tid(); i < (n0 + n1) * FOURS; i += THREADS) {
        unsigned e = i >= n0 * FOURS, j = i - e * n0 * FOURS, in = j / FOURS, y = j % FOURS / 7, x = j % FOURS % 7;
        const float *seen = &m.seen[0][0][0];
        int place = (int)((e * 25 + y * 5 + x) * PITCH_SEEN + in * PATCH);
        float sum[2][2] = {};
        auto &win1 = m.win1[e][m.now.channels1[e][in]];
        unsigned at = 2 * y * 14 + 2 * x, bases[2]; /* of two neighbours, read at once, before anything is stored */
#pragma unroll
        for (unsigned row = 0; row < 2; row++)
            memcpy(&bases[row], &win1.base[at + row * 14], sizeof bases[row]);
#pragma unroll
        for (int a = 2; a >= 0; a--)
#pragma unroll
            for (int b = 2; b >= 0; b--) {
                bool saw = y - (unsigned)a < 5 && x - (unsigned)b < 5;
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    float2 v = *reinterpret_cast<const float2 *>(
                        seen + (place - (a * 5 + b) * (int)PITCH_SEEN + (2 * a + row) * 6 + 2 * b));
                    if (saw)
                        sum[row][0] += v.x, sum[row][1] += v.y;
                }
            }
#pragma unroll
        for (unsigned row = 0; row < 2; row++)
            *reinterpret_cast<float2 *>(&win1.d[at + row * 14]) =
                make_float2((bases[row] & 0x8000u) != 0 ? 0 : sum[row][0] * scale,
                            (bases[row] & 0x80000000u) != 0 ? 0 : sum[row][1] * scale);
    }
}

static __device__ void conv2_input_gradient(memory &m, both kept1, both kept2)
{
#pragma unroll 1
    for (unsigned e = 0; e < EACH; e++) {
        unsigned n = (unsigned)__popc(kept1[e]);
        if (n == 6)
            conv2_windows<7, true>(m, e, kept2[e], n);
        else if (n > 3)
            conv2_windows<6, false>(m, e, kept2[e], n);
        else if (n > 2)
            conv2_windows<4, false>(m, e, kept2[e], n);
        else if (n > 0)
            conv2_windows<3, false>(m, e, kept2[e], n);
    }
    __syncthreads();
    conv2_gather(m, kept1);
}

#endif
