/* head.cuh - what follows conv3's chains: fc1, fc2, the loss, and back to conv3's outputs, for a seat's two samples;
 * then the gradients of the dense layers' weights, of which a seat makes its share over all of the tile.
 *
 *   forward, back   2 x (10,080 + 840) FFMA each; 15.4 KB of words come in
 *   weights         11,136 sums over 16 samples in the group, a lane each
 */
#ifndef DTRAIN_FUSED_HEAD_CUH
#define DTRAIN_FUSED_HEAD_CUH

#include "reduce.cuh"
#include "rows.cuh"
#include "update.cuh"

/* ReLU, dropout and its scale. */
DEVICE float activate(float sum, unsigned kept, float scale)
{
    return kept != 0 ? (sum < 0 ? 0 : sum) * scale : 0;
}

/* --- forward ---------------------------------------------------------------------------------- */

DEVICE void conv3_sum(memory &m, unsigned round)
{
    unsigned e = tid() / 120, o = tid() % 120;
    if (e >= EACH)
        return;
    float parts[SEATS], bias = m.b3[o], scale = m.run.scale[2];
    unsigned kept = m.now.drawn3[e][o / 4] >> o % 4 & 1; /* read while the words are on their way */
    receive_words<SEATS>(&mail_of(m, seat_of()).parts3[0][e][o], EACH * 120, round, parts);
    float sum = parts[0];
#pragma unroll
    for (unsigned r = 1; r < SEATS; r++)
        sum += parts[r];
    m.y3[e][o] = activate(sum + bias, kept, scale);
}

/* Adds up the 2N chains of sample `half`, of which this lane has N and the lane 16 further on, whose half is the other
 * one, has N: each gives the other its chains of the sample that the other adds up. chains[sample]: of half 0 the first
 * N, of half 1 the last N. By whole warps. */
template <unsigned N> DEVICE float sum_of_halves(unsigned half, const float (*chains)[N])
{
    float all[2 * N];
#pragma unroll
    for (unsigned r = 0; r < N; r++) {
        float mine = half != 0 ? chains[1][r] : chains[0][r];
        float given = __shfl_xor_sync(0xffffffffu, half != 0 ? chains[0][r] : chains[1][r], 16);
        all[r] = half != 0 ? given : mine, all[N + r] = half != 0 ? mine : given;
    }
    float sum = all[0];
#pragma unroll
    for (unsigned r = 1; r < 2 * N; r++)
        sum += all[r];
    return sum;
}

/* The first three warps: a lane has two outputs of both samples, and of each half of the eight chains of 15. So a
 * number is read for two products. */
DEVICE void fc1_forward(memory &m)
{
    constexpr unsigned EACH_OUTPUTS = 2, APART = 84 / EACH_OUTPUTS, HALF = 60;
    unsigned lane = tid() % LANES, half = lane / 16, q = tid() / LANES * 16 + lane % 16, o = q < APART ? q : APART - 1;
    float chains[EACH_OUTPUTS][EACH][4] = {}, scale = m.run.scale[3], bias[EACH_OUTPUTS];
    unsigned kept[EACH_OUTPUTS];
    if (tid() >= 3 * LANES)
        return;
#pragma unroll
    for (unsigned i = 0; i < EACH_OUTPUTS; i++) {
        unsigned output = o + i * APART;
        bias[i] = m.bf1[output], kept[i] = m.now.drawn1[half][output / 4] >> output % 4 & 1;
    }
#pragma unroll
    for (unsigned k = 0; k < HALF; k += 4) {
        float4 x[EACH];
#pragma unroll
        for (unsigned e = 0; e < EACH; e++)
            x[e] = *reinterpret_cast<const float4 *>(&m.y3[e][half * HALF + k]);
#pragma unroll
        for (unsigned i = 0; i < EACH_OUTPUTS; i++) {
            float4 w = *reinterpret_cast<const float4 *>(&m.wf1[o + i * APART][half * HALF + k]);
#pragma unroll
            for (unsigned e = 0; e < EACH; e++) {
                float *chain = chains[i][e];
                chain[k / CONV3_CHUNK] = fmaf(x[e].x, w.x, chain[k / CONV3_CHUNK]);
                chain[(k + 1) / CONV3_CHUNK] = fmaf(x[e].y, w.y, chain[(k + 1) / CONV3_CHUNK]);
                chain[(k + 2) / CONV3_CHUNK] = fmaf(x[e].z, w.z, chain[(k + 2) / CONV3_CHUNK]);
                chain[(k + 3) / CONV3_CHUNK] = fmaf(x[e].w, w.w, chain[(k + 3) / CONV3_CHUNK]);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < EACH_OUTPUTS; i++) { /* of sample `half` */
        float y = activate(sum_of_halves<4>(half, chains[i]) + bias[i], kept[i], scale);
        if (q < APART)
            m.y1[half][o + i * APART] = y;
    }
}

/* Half a warp has a sample, a lane a logit; lanes 10..15 have the last logit once more. Four chains of 21. */
DEVICE float fc2_forward(const memory &m, unsigned e, unsigned row)
{
    float chains[4] = {};
#pragma unroll
    for (int o = 0; o < 84; o += 4) {
        float4 w = *reinterpret_cast<const float4 *>(&m.wf2[row][o]),
               x = *reinterpret_cast<const float4 *>(&m.y1[e][o]);
        chains[o / 21] = fmaf(x.x, w.x, chains[o / 21]);
        chains[(o + 1) / 21] = fmaf(x.y, w.y, chains[(o + 1) / 21]);
        chains[(o + 2) / 21] = fmaf(x.z, w.z, chains[(o + 2) / 21]);
        chains[(o + 3) / 21] = fmaf(x.w, w.w, chains[(o + 3) / 21]);
    }
    return chains[0] + chains[1] + chains[2] + chains[3] + m.bf2[row];
}

struct logit {
    float z, largest, numerator, denominator, rest; /* the loss is log(denominator) + rest */
    int label;                                      /* -1: there is no such sample */
};

/* By the first warp. */
DEVICE logit classify(const memory &m)
{
    unsigned e = tid() / 16, k = tid() % 16;
    logit l;
    l.label = m.label[e];
    l.z = l.largest = fc2_forward(m, e, k < 10 ? k : 9);
#pragma unroll
    for (unsigned apart = 8; apart > 0; apart /= 2) { /* where one is NaN the loss will be, whatever this finds */
        float other = __shfl_xor_sync(0xffffffffu, l.largest, apart);
        l.largest = other > l.largest ? other : l.largest;
    }
    l.numerator = defined_exp(l.z - l.largest);
    l.denominator = 0;
#pragma unroll
    for (unsigned j = 0; j < 10; j++)
        l.denominator += __shfl_sync(0xffffffffu, l.numerator, e * 16 + j);
    float z_label = __shfl_sync(0xffffffffu, l.z, e * 16 + (unsigned)(l.label < 0 ? 0 : l.label));
    l.rest = l.largest - z_label;
    return l;
}

DEVICE float loss_of(float denominator, float rest)
{
    return defined_log(denominator) + rest;
}

/* --- back ------------------------------------------------------------------------------------- */

/* A thread has a unit of fc1: a chain over the logits. */
DEVICE void fc1_back(memory &m)
{
    unsigned e = tid() / 84, o = tid() % 84;
    float chain = 0;
    if (e >= EACH)
        return;
#pragma unroll
    for (int k = 0; k < 10; k++)
        chain = fmaf(m.dz[e][k], m.wf2[k][o], chain);
    m.d1[e][o] = m.y1[e][o] > 0 ? chain * m.run.scale[3] : 0;
}

/* The first four warps: a lane has two outputs of conv3 of both samples, and of each two of the four chains of 21 units
 * of fc1. */
DEVICE void conv3_back(memory &m)
{
    constexpr unsigned PAIRS = 60, HALF = 42;
    unsigned lane = tid() % LANES, half = lane / 16, pair = tid() / LANES * 16 + lane % 16;
    unsigned k = pair < PAIRS ? 2 * pair : 2 * PAIRS - 2;
    float chains[2][EACH][2] = {};
    if (tid() >= 4 * LANES)
        return;
    float2 y = *reinterpret_cast<const float2 *>(&m.y3[half][k]); /* of sample `half` */
    float scale = m.run.scale[2];
#pragma unroll
    for (unsigned o = 0; o < HALF; o += 2) {
        float2 d[EACH];
#pragma unroll
        for (unsigned e = 0; e < EACH; e++)
            d[e] = *reinterpret_cast<const float2 *>(&m.d1[e][half * HALF + o]);
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            float2 w = *reinterpret_cast<const float2 *>(&m.wf1[half * HALF + o + i][k]);
#pragma unroll
            for (unsigned e = 0; e < EACH; e++) {
                float di = i == 0 ? d[e].x : d[e].y, *first = chains[0][e], *second = chains[1][e];
                first[(o + i) / 21] = fmaf(di, w.x, first[(o + i) / 21]);
                second[(o + i) / 21] = fmaf(di, w.y, second[(o + i) / 21]);
            }
        }
    }
    float first = sum_of_halves<2>(half, chains[0]), second = sum_of_halves<2>(half, chains[1]);
    if (pair < PAIRS)
        *reinterpret_cast<float2 *>(&m.d3[half][k]) =
            make_float2(y.x > 0 ? first * scale : 0, y.y > 0 ? second * scale : 0);
}

/* By the last threads, which conv3_back leaves idle: nobody waits for the logarithm. */
DEVICE void add_losses(memory &m)
{
    unsigned e = THREADS - 1 - tid();
    if (e < EACH && m.label[e] >= 0)
        add_term(m, FUSED_LOSS, loss_of(m.losses[e].x, m.losses[e].y));
}

/* --- together --------------------------------------------------------------------------------- */

DEVICE void head_forward(memory &m, unsigned round)
{
    conv3_sum(m, round);
    __syncthreads();
    fc1_forward(m);
    __syncthreads();
}

/* After head_forward. */
static __device__ void head_back(memory &m)
{
    if (tid() < LANES) {
        unsigned e = tid() / 16, k = tid() % 16;
        logit l = classify(m);
        /* By all lanes: no branch before the barrier. */
        float part = l.numerator / l.denominator, *dz = &m.dz[0][0] + e * 12 + k;
        part = (int)k == l.label ? part - 1 : part;
        if (k < 12)
            *dz = l.label >= 0 && k < 10 ? part : 0;
        if (k == 0)
            m.losses[e] = make_float2(l.denominator, l.rest);
    } else if (tid() >= 2 * LANES)
        send_outputs(m, 2 * LANES, m.round);
    __syncthreads();
    fc1_back(m);
    __syncthreads();
    conv3_back(m);
    add_losses(m);
    zero_next_sums(m, m.step);
    __syncthreads();
    send_gradients(m, m.round);
}

/* --- the dense layers' weights' gradient ------------------------------------------------------ */

/* A warp has the seat's slice of fc1, twelve outputs, of half of its inputs that are 60 apart, two a lane. */
constexpr unsigned FC1_UNITS = 2;
DEVICE void fc1_weight_gradient(memory &m, unsigned unit)
{
    constexpr unsigned APART = 60;
    unsigned k = unit * LANES + tid() % LANES;
    float chains[2][SLICE] = {};
    if (k >= APART)
        return;
#pragma unroll 2
    for (unsigned s = 0; s < SAMPLES; s++) {
        float x[2] = {m.rows.y3[s][k], m.rows.y3[s][k + APART]};
#pragma unroll
        for (unsigned o = 0; o < SLICE; o += 4) {
            float4 d = *reinterpret_cast<const float4 *>(&m.rows.d1[s][o]);
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                float *chain = chains[i] + o;
                chain[0] = fmaf(x[i], d.x, chain[0]), chain[1] = fmaf(x[i], d.y, chain[1]);
                chain[2] = fmaf(x[i], d.z, chain[2]), chain[3] = fmaf(x[i], d.w, chain[3]);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < 2; i++)
        add_terms_to_sums<SLICE>(m, SUMS_SMALL + AT_WF1 + seat_of() * SLICE * PITCH_FC1 + k + i * APART, PITCH_FC1,
                                 chains[i]);
}

DEVICE float sum_of_samples(const float *d, unsigned pitch)
{
    float sum = 0;
#pragma unroll
    for (unsigned s = 0; s < SAMPLES; s++)
        sum += d[s * pitch];
    return sum;
}

/* A warp has 32 of the seat's other sums, a lane each: fc2's weights of the slice, 12 of each logit, and the slice's
 * biases; in the last seat, which has no slice, conv3's and fc2's biases. */
constexpr unsigned REST = 120 + SLICE, REST_UNITS = (REST + LANES - 1) / LANES;
static_assert(AT_BF2 + SLICE <= SMALL, "behind fc2's biases are zeros enough");
DEVICE void rest_gradient(memory &m, unsigned unit)
{
    const struct rows &r = m.rows;
    unsigned j = unit * LANES + tid() % LANES, seat = seat_of(), i;
    float term = 0;
    if (j >= REST)
        return;
    if (seat == SEATS - 1) {
        i = j < 120 ? AT_B3 + j : AT_BF2 + j - 120; /* two zeros follow the logits */
        term = j < 120 ? sum_of_samples(&r.d3[0][d3_at(j)], PITCH_D3) : sum_of_samples(&r.dz[0][j - 120], 12);
    } else if (j < 120) {
        unsigned o = j / SLICE, k = j % SLICE;
        i = AT_WF2 + o * 84 + seat * SLICE + k;
#pragma unroll
        for (unsigned s = 0; s < SAMPLES; s++)
            term = fmaf(r.y1[s][k], r.dz[s][o], term);
    } else {
        i = AT_BF1 + seat * SLICE + j - 120;
        term = sum_of_samples(&r.d1[0][j - 120], SLICE);
    }
    add_term(m, SUMS_SMALL + i, term);
}

/* What warps share out besides conv3's; fc1's are empty in the last seat. */
constexpr unsigned DENSE_UNITS = FC1_UNITS + REST_UNITS;
DEVICE void dense_weight_gradient(memory &m, unsigned unit)
{
    if (unit >= FC1_UNITS)
        rest_gradient(m, unit - FC1_UNITS);
    else if (seat_of() != SEATS - 1)
        fc1_weight_gradient(m, unit);
}

#endif
