/* conv3.cuh - conv3, which is a dense layer of 400 inputs and 120 outputs. A seat has two of the 16 input channels, for
 * all 16 samples of the tile, and the weights that belong to them.
 *
 *   forward   pool2 (16, 50) -> one of the eight chains of each of 120 outputs: 1,920 words to the seats that have the
 *             samples. 96,000 FFMA
 *   input     d3 (16, 120) -> the gradient of pool2 (16, 50), 6.4 KB of words. 96,000 FFMA
 *   weights   d3 and pool2 -> 6,000 sums over the tile's samples. 96,000 FFMA
 */
#ifndef DTRAIN_FUSED_CONV3_CUH
#define DTRAIN_FUSED_CONV3_CUH

#include "exchange.cuh"
#include "reduce.cuh"

DEVICE void receive_pool2(memory &m, unsigned round)
{
    constexpr unsigned HALF = SAMPLES / 2 * INPUTS;
    if (tid() < HALF) {
        float v[2], *to = &m.pool2[tid() / INPUTS][tid() % INPUTS];
        receive_words<2>(&mail_of(m, seat_of()).pool2[0][0] + tid(), HALF, round, v);
        to[0] = v[0], to[SAMPLES / 2 * PITCH_CONV3] = v[1];
    }
    __syncthreads();
}

DEVICE float4 four_at(const float *from)
{
    return *reinterpret_cast<const float4 *>(from);
}

/* Warps 0 to 3: a warp has four samples, a lane four outputs of each, 30 apart. Rows of weights and of pool2 end in two
 * zeros, so that they are read by fours. */
static __device__ void conv3_forward(memory &m, unsigned round)
{
    constexpr unsigned APART = 30;
    unsigned o = tid() % LANES, quarter = tid() / LANES;
    float chains[4][4] = {};
    if (quarter >= SAMPLES / 4 || o >= APART)
        return;
#pragma unroll 2
    for (unsigned i = 0; i < PITCH_CONV3; i += 4) {
        float4 w[4];
#pragma unroll
        for (unsigned k = 0; k < 4; k++)
            w[k] = four_at(&m.w3[o + k * APART][i]);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            float4 x = four_at(&m.pool2[4 * quarter + j][i]);
#pragma unroll
            for (unsigned k = 0; k < 4; k++) {
                chains[k][j] = fmaf(x.x, w[k].x, chains[k][j]), chains[k][j] = fmaf(x.y, w[k].y, chains[k][j]);
                chains[k][j] = fmaf(x.z, w[k].z, chains[k][j]), chains[k][j] = fmaf(x.w, w[k].w, chains[k][j]);
            }
        }
    }
    unsigned seat = seat_of();
    mailbox *mail = m.mail;
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        unsigned place = m.now.place[4 * quarter + j];
        uint64_t *to = mail[place / EACH].parts3[seat][place % EACH];
#pragma unroll
        for (unsigned k = 0; k < 4; k++)
            send_word(to + o + k * APART, chains[k][j], round);
    }
}

/* Warps 0 and 1: a thread has four inputs of four samples, which are four apart. Eight chains of 15 outputs, added up
 * in order. */
constexpr unsigned CONV3_INPUT_WARPS = 2;
DEVICE void conv3_input_gradient(memory &m, unsigned round)
{
    unsigned first = tid() % 4, i = tid() / 4 * 4;
    float sum[4][4] = {};
    if (i >= PITCH_CONV3)
        return;
#pragma unroll 1
    for (unsigned chunk = 0; chunk < CONV3_CHUNKS; chunk++) {
        float chains[4][4] = {}, d[4][4];
#pragma unroll
        for (unsigned j = 0; j < CONV3_CHUNK; j++) {
            float4 w = four_at(&m.w3[chunk * CONV3_CHUNK + j][i]);
#pragma unroll
            for (unsigned s = 0; s < 4 && j % 4 == 0; s++) {
                float4 v = four_at(&m.rows.d3[first + 4 * s][chunk * CONV3_CHUNK_PITCH + j]);
                d[s][0] = v.x, d[s][1] = v.y, d[s][2] = v.z, d[s][3] = v.w;
            }
#pragma unroll
            for (unsigned s = 0; s < 4; s++) {
                float v = d[s][j % 4];
                chains[s][0] = fmaf(v, w.x, chains[s][0]), chains[s][1] = fmaf(v, w.y, chains[s][1]);
                chains[s][2] = fmaf(v, w.z, chains[s][2]), chains[s][3] = fmaf(v, w.w, chains[s][3]);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < 16; k++)
            sum[k / 4][k % 4] += chains[k / 4][k % 4];
    }
#pragma unroll
    for (unsigned s = 0; s < 4; s++) {
        unsigned place = m.now.place[first + 4 * s];
        uint64_t *to = &mail_of(m, place / EACH).dpool2[place % EACH][seat_of()][i];
#pragma unroll
        for (unsigned k = 0; k < 4; k++)
            send_word(to + k, sum[s][k], round);
    }
}

/* A warp has a chunk of all inputs: half a warp, 13 lanes, has eight outputs or the seven that are left, a lane four
 * inputs, 13 apart, so that a number is read for four or eight products. Inputs 50 and 51 are zeros. */
static __device__ __noinline__ void conv3_weight_gradient(unsigned chunk)
{
    constexpr unsigned APART = PITCH_CONV3 / 4;
    memory &m = shared();
    unsigned lane = tid() % LANES < 2 * APART ? tid() % LANES : 2 * APART - 1;
    unsigned half = lane / APART, first = lane % APART;
    float chains[4][8] = {};
#pragma unroll 4
    for (unsigned s = 0; s < SAMPLES; s++) {
        const float4 *row = reinterpret_cast<const float4 *>(&m.rows.d3[s][chunk * CONV3_CHUNK_PITCH + half * 8]);
        float4 a = row[0], b = row[1];
        float d[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            float x = m.pool2[s][first + i * APART];
#pragma unroll
            for (unsigned j = 0; j < 8; j++)
                chains[i][j] = fmaf(x, d[j], chains[i][j]);
        }
    }
    if (tid() % LANES >= 2 * APART)
        return;
    unsigned at = seat_of() * WEIGHTS3 + (chunk * CONV3_CHUNK + half * 8) * INPUTS + first;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        if (i == 3 && first + 3 * APART >= INPUTS)
            break;
        add_terms_to_sums<7>(m, at + i * APART, INPUTS, chains[i]);
        if (half == 0)
            add_term(m, at + i * APART + 7 * INPUTS, chains[i][7]);
    }
}

#endif
