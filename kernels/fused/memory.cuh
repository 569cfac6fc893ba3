/* memory.cuh - who holds what: a block's shared memory, a block's mail, and the order of the numbers in them.
 *
 * A group is FUSED_SEATS blocks, here seats, and has a tile of 16 samples. A seat has two of the samples through the
 * convolutions and the dense layers, and two of conv3's sixteen input channels for all of the tile. It owns, that is
 * keeps the velocity of and updates, conv3's weights of its two channels and an eighth of the other, small parameters,
 * of which every seat has a copy. Every group does the same to copies of its own.
 *
 * In the comments of these files FFMA is the GPU's instruction for a fused multiply-add, LDS its read of shared memory.
 */
#ifndef DTRAIN_FUSED_MEMORY_CUH
#define DTRAIN_FUSED_MEMORY_CUH

#ifdef __CUDACC__
#include "machine.cuh"
#else
#include "machine.h" /* tests/support/together */
#endif

#include "exact_sum.h"
#include "kernels/definition/exp_log.h"
#include "philox.h"

#define DEVICE static __device__ __forceinline__

constexpr unsigned SEATS = FUSED_SEATS, EACH = 2, /* samples of a seat, and its channels of conv3's input */
    SAMPLES = SEATS * EACH,                       /* of a tile */
    LANES = 32, WARPS = 16, THREADS = WARPS * LANES;
constexpr unsigned RECORD = 3073;
constexpr unsigned SMALL = FUSED_SMALL, OWN = SMALL / SEATS; /* small parameters of a seat */
constexpr unsigned INPUTS =
                       50, /* of conv3 that a seat has: number 2 * cell + channel, in the order of kernels/README.md */
    WEIGHTS3 = FUSED_CONV3;
/* conv3's 120 outputs go backward, and into fc1, in eight chunks of 15. */
constexpr unsigned CONV3_CHUNKS = 8, CONV3_CHUNK = 15, CONV3_CHUNK_PITCH = 16;

/* Rows in shared memory are padded so that what the lanes of a warp read at once lies in different banks. */
constexpr unsigned PITCH_IMAGE = 37;
/* pool1's planes lie three side by side, so that the 25 taps of each input channel follow those of the one before, bank
 * by bank. */
constexpr unsigned PITCH_POOL1 = 69, ASIDE_POOL1 = 25, THREE_POOL1 = 14 * PITCH_POOL1 + 5;
/* In conv2's weights every row and every plane ends in zeros, and zeros stand before the first plane: a number that a
 * window saw, but its winner did not (outside of the winner's 5x5), meets a zero. */
constexpr unsigned ROW2 = 6, PLANE2 = 6 * ROW2;
constexpr unsigned PITCH_CONV3 = 52; /* two zeros at the end */
constexpr unsigned PITCH_FC1 = 124;
constexpr unsigned PITCH_D3 = 132;  /* output o is at d3_at(o) */
constexpr unsigned PATCH = 36, PITCH_SEEN = 6 * PATCH + 2;

/* A number of a pool: its gradient d, and where in the plane of the convolution's input (base) its winner's 5x5 numbers
 * begin; NOWHERE: no gradient passes. */
struct alignas(8) winner {
    float d;
    int base;
};
constexpr int NOWHERE = -1;

/* 2p - 255 of the three planes, as floats, of which the upper 16 bits say all: red_green is green's, then red's. */
struct alignas(8) pixel {
    uint32_t red_green;
    float blue;
};

/* A slot of conv2's weights (conv2_back.cuh): where its tap is in pool1, in bytes, and its number among the weights of
 * an output channel. */
struct conv2_tap {
    uint16_t pool1, weight;
};
constexpr uint16_t NO_WEIGHT = 0xffff;
constexpr unsigned TAP_SLOTS = 5 * LANES, PATCH_SLOTS = 7 * LANES; /* at least 6 * 25, and 6 * 36 */

/* A number for each of the seat's samples. Not an array, which would lie in local memory. */
struct both {
    unsigned first, second;
    __device__ __forceinline__ unsigned operator[](unsigned e) const { return e != 0 ? second : first; }
};

/* What factors.cuh makes of a convolution's input and of its weights. Of each row of a plane ACROSS1 or ACROSS2
 * stretches, f0 to f3 in low and f4 to f7 in high; of each channel five rows of taps a plane, h0 to h3 and h4 to h7,
 * and four numbers that put the next channel's into other banks. In conv1 a lane has four rows of outputs, so rows 0,
 * 4, 8, ... of the factors come first, then 1, 5, 9, ...: what neighbouring lanes read at once lies side by side. */
constexpr unsigned ROWS1 = 4, ACROSS1 = 7, ACROSS2 = 3; /* conv2's stretches begin at columns 0, 4 and 6 */
struct conv1_factors {
    float4 low[ROWS1][32 / ROWS1 * ACROSS1], high[ROWS1][32 / ROWS1 * ACROSS1];
};
struct conv2_factors {
    float4 low[14][ACROSS2], gap[2], high[14][ACROSS2]; /* low and high are read at once, from different banks */
};
template <unsigned PLANES> struct channel_taps {
    float4 low[PLANES * 5], high[PLANES * 5], padding;
};

/* Of all samples of the tile, in its order: y3, conv3's outputs; y1 and d1, a slice of fc1's outputs and of their
 * gradients; dz, the gradients of the logits; d3, those of conv3's outputs. d1 and d3 are the gradients before the
 * activation. The last seat has no slice: it would begin where fc1's outputs end. */
constexpr unsigned SLICE = 12;
struct rows {
    float y3[SAMPLES][120], y1[SAMPLES][SLICE], d1[SAMPLES][SLICE], dz[SAMPLES][12], d3[SAMPLES][PITCH_D3];
};
static_assert(SLICE * (SEATS - 1) == 84, "all seats but the last have a slice of fc1");

/* A tile of a step's global batch. Only its first `count` samples exist. */
struct tile {
    uint64_t step;
    uint32_t number;   /* in the global batch */
    uint32_t position; /* of its first sample in the epoch's order */
    uint32_t count;
};

/* What is drawn for a tile, and what follows from it for this seat. */
struct draws {
    struct tile tile;
    uint32_t record[SAMPLES];
    uint8_t drawn[SAMPLES][6], drawn3[EACH][30], drawn1[EACH][21]; /* masks, four elements in each */
    uint8_t keep1[SAMPLES];
    uint16_t keep2[SAMPLES];
    uint8_t place[SAMPLES], sample[SAMPLES];         /* sample s is seat place[s] / 2's; sample: the inverse */
    uint8_t channels1[EACH][8], channels2[EACH][16]; /* kept channels of the seat's samples, ascending */
};

struct mailbox;

struct alignas(16) memory {
    /* the small parameters, FUSED_SMALL numbers one after the other */
    float w1[6][3][25], zeros[30], w2[16][6][PLANE2], b1[8], b2[16], b3[120], wf1[84][PITCH_FC1], wf2[10][84], bf1[84],
        bf2[12], more_zeros[24];
    float w3[120][PITCH_CONV3], v3[WEIGHTS3], v_small[OWN];

    struct {
        float d[196]; /* forward, pool1's number; later its gradient */
        int16_t base[196];
    } win1[EACH][6]; /* winners, in two arrays: conv2's factors are made of the numbers */
    pixel image[EACH][32][PITCH_IMAGE];
    struct {
        float d;
        int16_t base, met; /* met: the weight that the first of the 6x6 numbers that the window saw meets */
    } win2[EACH][16][28];  /* winners: base for the weights' gradient, met for the input's */
    union {
        struct { /* from the pictures until conv1 is done */
            conv1_factors factors1[EACH][3];
            channel_taps<3> taps1[6];
            channel_taps<6> taps2[16]; /* until conv2 is done */
        };
        struct { /* from there until the gradient of conv2's input */
            float pool1[EACH][2 * THREE_POOL1]; /* pool1_at */
            float pool2[SAMPLES][PITCH_CONV3]; /* this seat's two channels, of all samples */
            union {
                conv2_factors factors2[EACH][6]; /* forward through conv2 */
                struct { /* from conv3 on */
                    struct rows rows;
                    float y3[EACH][120], y1[EACH][SEATS * SLICE], d1[EACH][SEATS * SLICE], d3[EACH][120],
                        dz[EACH][12]; /* this seat's */
                    float2 losses[EACH];
                };
            };
        };
        float seen[EACH][25][PITCH_SEEN]; /* conv2's input */
        float parts[WARPS][6][76];        /* conv1's weights: by sample and chunk, a kept channel each */
    };
    alignas(16) winner list[WARPS][LANES]; /* a warp's own */

    fused_run run;  /* of this block's net, a copy: a thread has no register for which of the launch's runs that is */
    fused_peers peers;
    mailbox *mail;  /* of the group's seats */
    uint32_t group; /* its number among the net's */
    conv2_tap taps[EACH][TAP_SLOTS];
    uint16_t met[EACH][PATCH_SLOTS]; /* by slot: the byte in w2 of what it meets, for channel 0 and winner 0 */
    draws now, next;    /* of this group's tile, and of its next one */
    tile coming;        /* the next one; no samples: there is none */
    int8_t label[EACH]; /* -1: the tile lacks this sample */
    uint32_t step;      /* number in the launch */
    int64_t *sums;      /* of this step */
    uint32_t round;     /* of the tile's mail; the first thread counts it */
    uint32_t arrivals;  /* what the group's counter is to reach; thread TELLER (update.cuh) counts it */
    /* What is left to do of an update (update.cuh): 1 if fc1 and fc2 have new weights that this block has yet to fetch;
     * and the sums from which this seat's weights of conv3 are to be updated, or NULL, with their unit. */
    uint32_t dense_awaited;
    const int64_t *conv3_sums;
    double conv3_unit;
    uint32_t refused;  /* 1: a term of this step was */
    int32_t wish;      /* of the host, to stop, as the net's first block has last seen it */
    uint32_t awaited;  /* what this rank's counter (peers.cuh) is to reach; the first thread counts it */
    fused_state state; /* what the run has done; the thread that is_first has it */
#ifdef FUSED_CLOCKS
    long long since, clocks[32];
#endif
};

/* What other seats write to a seat. A word is a float and, above it, the round; a line is three floats and the round.
 * The reader reads until all have its round. */
struct alignas(16) mailbox {
    uint64_t pool2[SAMPLES][INPUTS];   /* of the two channels, for all samples */
    uint64_t parts3[SEATS][EACH][120]; /* of conv3's sums, for the seat's samples */
    uint64_t dpool2[EACH][SEATS][PITCH_CONV3]; /* pool2's gradient, of the seat's samples, by channels' seat */
    ulonglong2 rows[SAMPLES * (120 + 2 * SLICE + 12 + 120) / 3]; /* struct rows, without padding */
    /* of the group, in seat 0's mail: the new small parameters, three a line up to fc1, plain from there on */
    ulonglong2 conv[4080 / 3];
    float dense[SMALL];
};

DEVICE memory &shared()
{
    return *reinterpret_cast<memory *>(shared_bytes());
}

DEVICE unsigned seat_of()
{
    return block() % SEATS;
}

/* This block's number in its net. */
DEVICE unsigned block_of(const memory &m)
{
    return m.group * SEATS + seat_of();
}

/* Whether this is the thread that does what one thread of a net does. */
DEVICE bool is_first(const memory &m)
{
    return block_of(m) == 0 && tid() == 0;
}

DEVICE mailbox &mail_of(const memory &m, unsigned seat)
{
    return m.mail[seat];
}

/* The seat's sample e, in the order of the tile. */
DEVICE unsigned sample_of(const memory &m, unsigned e)
{
    return m.now.sample[EACH * seat_of() + e];
}

/* Where in a sample's pool1 a channel's plane begins. */
DEVICE unsigned pool1_at(unsigned channel)
{
    return channel / 3 * THREE_POOL1 + channel % 3 * ASIDE_POOL1;
}

/* Where output o of conv3 is in a row of gradients. */
DEVICE unsigned d3_at(unsigned o)
{
    return o / CONV3_CHUNK * CONV3_CHUNK_PITCH + o % CONV3_CHUNK;
}

/* --- the order of the numbers ----------------------------------------------------------------- */

/* Where in the small parameters each tensor begins. */
constexpr unsigned AT_W1 = 0, AT_W2 = 480, AT_B1 = 3936, AT_B2 = 3944, AT_B3 = 3960, AT_WF1 = 4080, AT_WF2 = 14496,
                   AT_BF1 = 15336, AT_BF2 = 15420;
constexpr unsigned SUMS_SMALL = SEATS * WEIGHTS3; /* where the small parameters begin in the sums */

static_assert(sizeof(memory) <= 227 * 1024, "what a block of sm_90 may have");
static_assert(offsetof(memory, factors2) + sizeof(memory::factors2) <= offsetof(memory, taps1),
              "taps lie behind what is made of conv1's outputs");
static_assert(AT_WF1 % 3 == 0 && sizeof(mailbox::conv) == AT_WF1 / 3 * sizeof(ulonglong2), "three a line up to fc1");
static_assert(offsetof(memory, w2) == sizeof(float) * AT_W2 && offsetof(memory, wf1) == sizeof(float) * AT_WF1 &&
                  offsetof(memory, bf2) == sizeof(float) * AT_BF2 && offsetof(memory, w3) == sizeof(float) * SMALL,
              "the small parameters lie in a row");

/* Of the small parameters a seat owns an eighth of those up to fc1, then an eighth of fc1's and fc2's: its k-th. */
constexpr unsigned OWN_CONV = AT_WF1 / SEATS, OWN_DENSE = OWN - OWN_CONV;
static_assert(AT_WF1 % SEATS == 0 && SMALL % SEATS == 0, "all own as many");
DEVICE unsigned own_parameter(unsigned seat, unsigned k)
{
    return k < OWN_CONV ? seat * OWN_CONV + k : AT_WF1 + seat * OWN_DENSE + k - OWN_CONV;
}

DEVICE float *small_parameter(memory &m, unsigned i)
{
    return reinterpret_cast<float *>(&m) + i; /* w1 is first */
}

/* Number in the canonical layout of small parameter i; -1: padding. */
static __host__ __device__ inline int canonical_small(unsigned i)
{
    if (i < AT_W2)
        return i < 450 ? (int)i : -1;
    if (i < AT_B1) {
        unsigned plane = (i - AT_W2) / PLANE2, y = (i - AT_W2) % PLANE2 / ROW2, x = (i - AT_W2) % ROW2;
        return x < 5 && y < 5 ? (int)(456 + plane * 25 + y * 5 + x) : -1;
    }
    if (i < AT_B2)
        return i < AT_B1 + 6 ? (int)(450 + i - AT_B1) : -1;
    if (i < AT_WF1)
        return (int)(i < AT_B3 ? 2856 + i - AT_B2 : 50872 + i - AT_B3);
    if (i < AT_WF2) {
        unsigned o = (i - AT_WF1) / PITCH_FC1, k = (i - AT_WF1) % PITCH_FC1;
        return k < 120 ? (int)(50992 + o * 120 + k) : -1;
    }
    if (i < AT_BF1)
        return (int)(61156 + i - AT_WF2);
    return i < AT_BF2 ? (int)(61072 + i - AT_BF1) : i < AT_BF2 + 10 ? (int)(61996 + i - AT_BF2) : -1;
}

/* The same of weight i = o * INPUTS + 2 * cell + channel of a seat's weights of conv3. */
static __host__ __device__ __forceinline__ unsigned canonical_conv3(unsigned seat, unsigned i)
{
    unsigned o = i / INPUTS, input = i % INPUTS;
    return 2872 + o * 400 + (EACH * seat + input % 2) * 25 + input / 2;
}

/* --- clocks by phase -------------------------------------------------------------------------- */

enum phase {
    PHASE_TILE,
    PHASE_GRID,
    PHASE_UPDATE,
    PHASE_TAPS,
    PHASE_CONV1,
    PHASE_CONV2,
    PHASE_POOL2,
    PHASE_CONV3,
    PHASE_HEAD,
    PHASE_ROWS,
    PHASE_DENSE_BACK,
    PHASE_CONV2_WEIGHTS,
    PHASE_CONV2_INPUT,
    PHASE_CONV1_WEIGHTS,
    PHASES,
};
static_assert((int)PHASES == (int)FUSED_PHASES && PHASES <= 32, "as the host counts them");

/* Adds the clocks since the end of the phase before to this phase's. Does nothing except in clocks.cu. */
DEVICE void phase_ends(memory &m, phase phase)
{
#ifdef FUSED_CLOCKS
    __syncthreads();
    if (tid() == 0) {
        long long now = clock64();
        m.clocks[phase] += now - m.since, m.since = now;
    }
#else
    (void)m, (void)phase;
#endif
}

#endif
