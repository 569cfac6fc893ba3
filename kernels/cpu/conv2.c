/* conv2: pool1 (6, 14, 14) -> 16 channels of 10x10 -> ReLU, dropout, max-pool -> (16, 5, 5).
 *
 * Forward. Lanes are output channels: all of them, or the kept ones alone if they are half of them at most. Four
 * neighbours of a row share work by winograd.h, 10 outputs in three fours: 115,200 multiply-adds a sample instead of
 * 240,000, less those of dropped channels. The factors of columns are made once a sample, those of weights once a step.
 *
 * Backward. Of the four numbers of a pool window one, the winner, gets a gradient, and that only when its
 * ReLU was open: at most 60,000 multiply-adds for the weights and as many for the input, less those of dropped input
 * channels (for the input, with 512 bits, where at most two are kept). The live winners are listed.
 *   weights: output channel by channel, the sums in registers over the winners of its 25 windows; lanes are the columns
 *   and kept input channels of a block's row, which lie in a run;
 *   input: window by window, the sums of all it saw (6x8 of each input channel, as many as fit) in registers over the
 *   winners of the 16 output channels; lanes are neighbouring columns, 5 or 6 of 8 used.
 */
#include <string.h>

#include "exact.h"
#include "kernels.h"
#include "winograd.h"

enum {
    RIGHT = 1,                 /* where 16 columns are kept: from one to the next */
    BELOW = 16,                /* and from a row to the next */
    ROW = 6 * 8,               /* in conv2_packed's windows, from a row to the next */
    SIDE = (16 * 6 + 1) * ROW, /* and from the weights of a left winner to those of a right one */
};

void conv2_pack(const struct layout *w, struct conv2_packed *packed)
{
    for (int out = 0; out < 16; out++)
        for (int in = 0; in < 6; in++)
            for (int ky = 0; ky < 5; ky++) {
                float g[5];
                for (int kx = 0; kx < 5; kx++)
                    g[kx] = w->conv2[out][ky][kx * 6 + in];
                float factors[WINOGRAD_PRODUCTS], *row = packed->windows + (out * 6 + 1 + ky) * ROW + in * 8;
                memcpy(row, g, 5 * sizeof *g);
                memcpy(row + SIDE + 1, g, 5 * sizeof *g);
                winograd_weights(g, factors);
                for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    packed->forward[k][in][ky][out] = factors[k];
            }
}

/* The factors of columns: [product][in][y][i] are of the columns 2i to 2i + 7 of row y. i = 1 is not used. */
struct pool1_columns {
    _Alignas(64) float at[WINOGRAD_PRODUCTS][6][14][4];
};

/* A row's ten outputs are computed by fours: columns 0 to 3, 4 to 7, and 6 to 9, of which the last two are taken. */
enum { QUADS = 3 };
static const int quad_at[QUADS] = {0, 2, 3}; /* in pool1_columns */

/* Rows y and y + 7 of channel `in` at once. */
static inline void two_rows(const float *plane, int in, int y, struct pool1_columns *columns)
{
    wide d[8], factors[WINOGRAD_PRODUCTS];
    UNROLL for (int k = 0; k < 8; k++)
        if (LANES == 16) /* the rows lie side by side */
            memcpy(&d[k], plane + POOL1_PLACE(y, k), sizeof d[k]);
        else
            wide_pair(plane + POOL1_PLACE(y, k), plane + POOL1_PLACE(y + 7, k), &d[k]);
    winograd_columns(d, factors);
    UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++) {
        float(*rows)[4] = columns->at[k][in];
        memcpy(rows[y], &factors[k], sizeof *rows);
        memcpy(rows[y + 7], (const char *)&factors[k] + sizeof factors[k] / 2, sizeof *rows);
    }
}

static void make_columns(const float pool1[6][POOL1_PLANE], unsigned kept, struct pool1_columns *columns)
{
    for (; kept != 0; kept &= kept - 1)
        for (int in = __builtin_ctz(kept), y = 0; y < 7; y++)
            two_rows(pool1[in], in, y, columns);
}

enum {
    SPAN = LANES == 16 ? 1 : 2,               /* vectors of channels computed together */
    FEW = 8,                                  /* so many kept channels, or fewer, are computed without the others, */
    FEW_SPAN = LANES == 16 ? 1 : FEW / LANES, /* in so many vectors: half of one if it has 16 lanes */
    ROWS = LANES == 16 ? 10 : 1,              /* of outputs, computed together: all if their sums fit into registers */
    POOLED = ROWS > 2 ? ROWS : 2,             /* rows whose sums are kept until they are pooled */
};

/* Winograd's sums of a row of ten outputs: [product][four outputs][vector of channels]. */
typedef vec row_sums[WINOGRAD_PRODUCTS][QUADS][SPAN];

/* `count` of the sums of ROWS rows from y on, from number `first` on. weights: their factors,
 * [product][in][ky][channels], from the first of the `span` vectors of channels on; or half a vector. */
KERNEL void sum_some(int first, int count, const float *weights, int channels, int span,
                     const struct pool1_columns *columns, unsigned kept, int y, row_sums out[ROWS])
{
    enum { OUTPUTS = ROWS * QUADS };
    vec sum[WINOGRAD_PRODUCTS * OUTPUTS * SPAN];
    eight half_sum[WINOGRAD_PRODUCTS * OUTPUTS];
    UNROLL for (int i = 0; i < count * OUTPUTS * span; i++) {
        sum[i] = (vec){0};
        half_sum[i / span] = (eight){0};
    }
    for (unsigned rest = kept; rest != 0; rest &= rest - 1)
        ROLLED for (int ky = 0, in = __builtin_ctz(rest); ky < 5; ky++) {
            const float *lines = separate_address(columns->at[first][in][y + ky]);
            const float *factors = separate_address(weights + ((first * 6 + in) * 5 + ky) * channels);
            UNROLL for (int k = 0; k < count; k++)
                UNROLL for (int v = 0; v < span; v++) {
                    const float *at = factors + k * 6 * 5 * channels + v * LANES;
                    vec factor = channels < LANES ? (vec){0} : vec_keep(vec_load(at));
                    UNROLL for (int i = 0; i < OUTPUTS; i++) {
                        float column = lines[(k * 6 * 14 + i / QUADS) * 4 + quad_at[i % QUADS]];
                        if (channels < LANES)
                            eight_add_product(at, column, &half_sum[k * OUTPUTS + i]);
                        else
                            add_product(factor, column, &sum[(k * OUTPUTS + i) * span + v]);
                    }
                }
        }
    UNROLL for (int i = 0; i < count * OUTPUTS * span; i++) {
        int k = i / span / OUTPUTS, row = i / span % OUTPUTS / QUADS, quad = i / span % QUADS;
        vec_spill(&out[row][first + k][quad][i % span], channels < LANES ? eight_widen(&half_sum[i]) : sum[i]);
    }
}

/* All eight, in as many passes as the registers ask for. */
KERNEL void sum_products(const float *weights, int channels, int span, const struct pool1_columns *columns,
                         unsigned kept, int y, row_sums out[ROWS])
{
    const int together = winograd_together(ROWS * QUADS * span);
    ROLLED for (int first = 0; first < WINOGRAD_PRODUCTS; first += together)
        sum_some(first, together, weights, channels, span, columns, kept, y, out);
}

/* Max-pool of a row of windows, bias, ReLU and scale for vector v of channels. */
KERNEL void pool_row(row_sums rows[2], int v, vec bias, float scale, vec values[5], ivec winners[5])
{
    UNROLL for (int quad = 0; quad < QUADS; quad++) {
        vec sums[2][WINOGRAD_PRODUCTS], windows[2][4];
        UNROLL for (int k = 0; k < 2 * WINOGRAD_PRODUCTS; k++)
            sums[k % 2][k / 2] = rows[k % 2][k / 2][quad][v];
        winograd_windows(sums, windows);
        UNROLL for (int side = quad == 2; side < 2; side++) {
            int x = quad_at[quad] + side;
            vec best = vec_pool(windows[side], RIGHT, BELOW, &winners[x]);
            values[x] = vec_relu(best + bias) * scale;
        }
    }
}

APART void pool_all(row_sums rows[2], int group, const float bias[16], unsigned kept, float scale, int y,
                    float pool2[5][16], uint16_t from2[5][16])
{
    UNROLL for (int v = 0; v < SPAN; v++) {
        int channel = group + v * LANES;
        vec values[5];
        ivec winners[5];
        pool_row(rows, v, vec_load(bias + channel), scale, values, winners);
        UNROLL for (int x = 0; x < 5; x++) {
            vec_store(&pool2[x][channel], vec_select(vec_from_bits(kept >> channel), values[x], (vec){0}));
            vec_store_words(&from2[x][channel], winners[x] + 2 * y * BELOW + 2 * x * RIGHT);
        }
    }
}

/* All sixteen channels, of which those that are dropped become zero. */
static void forward_all(const struct layout *w, const struct conv2_packed *packed, const struct pool1_columns *columns,
                        unsigned kept1, unsigned kept2, float scale, float pool2[25][16], uint16_t from2[25][16])
{
    for (int group = 0; group < 16; group += SPAN * LANES)
        for (int first = 0; first < 10; first += POOLED) {
            row_sums rows[POOLED];
            ROLLED for (int row = 0; row < POOLED; row += ROWS)
                sum_products(packed->forward[0][0][0] + group, 16, SPAN, columns, kept1, first + row, rows + row);
            for (int row = 0, y = first / 2; row < POOLED; row += 2, y++)
                pool_all(rows + row, group, w->conv2_bias, kept2, scale, y, pool2 + y * 5, from2 + y * 5);
        }
}

/* places: where each of the 16 channels stands among those computed; FEW, where a zero stands, if it is dropped. */
APART void pool_few(row_sums rows[2], const float bias[16], const eight_ints places[2], float scale, int y,
                    float pool2[5][16], uint16_t from2[5][16])
{
    _Alignas(64) float values[5][16] = {{0}};
    _Alignas(64) int32_t winners[5][16] = {{0}};
    UNROLL for (int v = 0; v < FEW_SPAN; v++) {
        vec value[5];
        ivec winner[5];
        pool_row(rows, v, vec_load(bias + v * LANES), scale, value, winner);
        UNROLL for (int x = 0; x < 5; x++) {
            winner[x] += 2 * y * BELOW + 2 * x * RIGHT;
            memcpy(values[x] + v * LANES, &value[x], FEW / FEW_SPAN * sizeof(float));
            memcpy(winners[x] + v * LANES, &winner[x], FEW / FEW_SPAN * sizeof(int32_t));
        }
    }
    UNROLL for (int x = 0; x < 5; x++)
        UNROLL for (int half = 0; half < 2; half++) {
            eight_pick(values[x], &places[half], &pool2[x][half * 8]);
            eight_pick_words(winners[x], &places[half], &from2[x][half * 8]);
        }
}

/* At most FEW channels: their weights are picked, and what comes out is spread over the sixteen. */
static void forward_few(const struct layout *w, const struct conv2_packed *packed, const struct pool1_columns *columns,
                        unsigned kept1, unsigned kept2, float scale, float pool2[25][16], uint16_t from2[25][16])
{
    eight_ints list = {0}, places[2];
    _Alignas(64) float weights[WINOGRAD_PRODUCTS][6][5][FEW], bias[16] = {0};
    int count = 0;
    for (int c = 0; c < 16; c++) {
        places[c / 8][c % 8] = kept2 >> c & 1 ? count : FEW;
        if (kept2 >> c & 1)
            list[count++] = c;
    }
    for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
        for (unsigned rest = kept1; rest != 0; rest &= rest - 1)
            UNROLL for (int in = __builtin_ctz(rest), ky = 0; ky < 5; ky++)
                eight_pick(packed->forward[k][in][ky], &list, weights[k][in][ky]);
    eight_pick(w->conv2_bias, &list, bias);
    for (int first = 0; first < 10; first += POOLED) {
        row_sums rows[POOLED];
        ROLLED for (int row = 0; row < POOLED; row += ROWS)
            sum_products(weights[0][0][0], FEW, FEW_SPAN, columns, kept1, first + row, rows + row);
        for (int row = 0, y = first / 2; row < POOLED; row += 2, y++)
            pool_few(rows + row, bias, places, scale, y, pool2 + y * 5, from2 + y * 5);
    }
}

void conv2_forward(const struct layout *w, const struct conv2_packed *packed, unsigned kept1, unsigned kept2,
                   float scale, float pool2[25][16], struct features *features)
{
    struct pool1_columns columns;
    make_columns(features->pool1, kept1, &columns);
    (__builtin_popcount(kept2) <= FEW ? forward_few : forward_all)(w, packed, &columns, kept1, kept2, scale, pool2,
                                                                   features->from2);
}

/* Winners: bit i of `live` says whether the ReLU of number i was open. Its gradient is gradients[i * apart]; the block
 * of numbers that this multiplies starts at starts[i * apart]. */
struct winners {
    unsigned live;
    int apart;
    const float *gradients;
    const uint16_t *starts;
};

/* dpool2 becomes the gradient before ReLU and dropout, at the winners. The bias's is their sum: cells 16, 8, 4, 2 and
 * 1 apart. */
static void activation_backward(float pool2[25][16], float scale, float dpool2[25][16], float bias[16],
                                int32_t live[16])
{
    for (int channel = 0; channel < 16; channel += LANES) {
        vec cells[32] = {{0}};
        ivec bits = {0};
        UNROLL for (int cell = 0; cell < 25; cell++) {
            vec d = vec_load(&dpool2[cell][channel]) * scale;
            d = vec_select(vec_load(&pool2[cell][channel]) > 0, d, (vec){0});
            vec_store(&dpool2[cell][channel], d);
            cells[cell] = d;
            bits |= (d != 0) & 1 << cell;
        }
        vec_store((float *)live + channel, (vec)bits);
        UNROLL for (int apart = 16; apart > 0; apart /= 2)
            UNROLL for (int cell = 0; cell < apart; cell++)
                cells[cell] += cells[cell + apart];
        vec_store(bias + channel, cells[0]);
    }
}

/* The numbers of the bits that are set; returns how many. */
static int list_channels(unsigned kept, int list[6])
{
    int count = 0;
    for (; kept != 0; kept &= kept - 1)
        list[count++] = __builtin_ctz(kept);
    return count;
}

enum { BLOCK_ROW = 32 }; /* room for a block's row: 5 * channels numbers, the others without a meaning or not written */

/* Vectors that those take. */
KERNEL int row_vectors(int channels)
{
    return (5 * channels + LANES - 1) / LANES;
}

/* Whether each block's row has vectors of its own, so that none straddles cache lines. Else neighbours overlap. */
KERNEL int separate(int channels)
{
    return LANES == 16 && channels >= 5;
}

/* Numbers from a block's row to that of its neighbour. */
KERNEL int apart(int channels)
{
    return separate(channels) ? row_vectors(channels) * LANES : channels;
}

/* The rows of all blocks that a winner's gradient may multiply, [y][x][kx][kept channel]; of 16 columns 10 have one.
 * Where they are not separate this is pool1 as make_some leaves it. Vectors read on behind a row, and what they find is
 * not used. */
struct pool1_rows {
    _Alignas(64) float at[14 * 16 * (LANES == 16 ? BLOCK_ROW : 6)];
};

/* pool1 with its kept channels side by side, [y][x][channel]: `channels` of them, `most` at most. */
KERNEL void make_some(int most, const float pool1[6][POOL1_PLANE], int channels, const int *list, float *pixels)
{
    for (int y = 0; y < 14; y++) {
        eight columns[2][8]; /* even ones and odd ones; lanes: channels */
        UNROLL for (int odd = 0; odd < 2; odd++) {
            UNROLL for (int k = 0; k < 8; k++)
                columns[odd][k] = (eight){0};
            UNROLL for (int k = 0; k < most; k++)
                eight_load(pool1[list[k]] + POOL1_PLACE(y, odd), &columns[odd][k]);
            transpose_eight(columns[odd]);
        }
        UNROLL for (int x = 0; x < 14; x++) /* over the channels that are not there the next number is written */
            eight_store(pixels + (y * 16 + x) * channels, &columns[x % 2][x / 2]);
    }
}

KERNEL void make_rows(int channels, const float pool1[6][POOL1_PLANE], const int *list, struct pool1_rows *rows)
{
    _Alignas(64) float pixels[14 * 16 * 6];
    make_some(channels <= 4 ? 4 : 6, pool1, channels, list, separate(channels) ? pixels : rows->at);
    if (separate(channels))
        for (int y = 0; y < 14; y++)
            UNROLL for (int k = 0; k < 10 * row_vectors(channels); k++) {
                int x = k / row_vectors(channels), part = k % row_vectors(channels) * LANES;
                vec_store(rows->at + (y * 16 + x) * apart(channels) + part,
                          vec_load(pixels + (y * 16 + x) * channels + part));
            }
}

/* Sums over the live winners of gradient times block: `rows` rows from number `first` on, if they are there. */
KERNEL void sum_rows(int first, int rows, int channels, struct winners winners, const struct pool1_rows *pool1,
                     float sums[5][BLOCK_ROW])
{
    const int vectors = row_vectors(channels), count = (5 - first < rows ? 5 - first : rows) * vectors;
    vec sum[5 * BLOCK_ROW / LANES];
    if (first >= 5)
        return;
    UNROLL for (int k = 0; k < count; k++)
        sum[k] = (vec){0};
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        const float *block = separate_address(pool1->at + (winners.starts[i] + first * BELOW) * apart(channels));
        UNROLL for (int k = 0; k < count; k++)
            add_product(vec_load(block + k / vectors * BELOW * apart(channels) + k % vectors * LANES),
                        winners.gradients[i], &sum[k]);
    }
    UNROLL for (int k = 0; k < count; k++)
        vec_store(sums[first + k / vectors] + k % vectors * LANES, sum[k]);
}

/* All five, as many at once as the registers hold, of which one is left for a gradient. Not a loop: Clang would then
 * leave the sums in memory. */
KERNEL void sum_blocks(int channels, struct winners winners, const struct pool1_rows *pool1, float sums[5][BLOCK_ROW])
{
    const int rows = (VECTOR_REGISTERS - 1) / row_vectors(channels);
    sum_rows(0, rows, channels, winners, pool1, sums);
    sum_rows(rows, rows, channels, winners, pool1, sums);
    sum_rows(2 * rows, rows, channels, winners, pool1, sums);
    sum_rows(3 * rows, rows, channels, winners, pool1, sums);
    sum_rows(4 * rows, rows, channels, winners, pool1, sums);
}

/* How a row of the weights' gradient, [kx][in] with zeros for dropped channels, is made of a block's row of sums,
 * vector by vector: */
enum { SPREAD = CONV2_ROW / LANES };
struct spread {
    unsigned used;       /* a bit for each number of the row: whether it comes from the block */
    int from[SPREAD];    /* where in the block's row those of a vector begin */
    ivec places[SPREAD]; /* from there on: which of them */
};

static void find_spread(unsigned kept, int channels, const int *list, struct spread *spread)
{
    int32_t places[CONV2_ROW] = {0};
    spread->used = kept * 0x1041041; /* five times six bits */
    for (int k = 0; k < SPREAD; k++)
        spread->from[k] = __builtin_popcount(spread->used & ((1u << k * LANES) - 1));
    for (int kx = 0; kx < 5; kx++)
        for (int k = 0; k < channels; k++)
            places[kx * 6 + list[k]] = kx * channels + k - spread->from[(kx * 6 + list[k]) / LANES];
    memcpy(spread->places, places, sizeof places);
}

/* Adds an output channel's gradient to the exact sums; returns their room (exact.h). Numbers without a meaning are
 * replaced, not multiplied, by zeros. Inlined it takes registers from the sums of the winners. */
static __attribute__((noinline)) ivec add_channel(const float gradient[5][BLOCK_ROW], const struct spread *spread,
                                                  int64_t *sums)
{
    ivec room = {0};
    for (int row = 0; row < 5; row++)
        UNROLL for (int k = 0; k < SPREAD; k++) {
            float terms[LANES];
            vec v = vec_permute(vec_load(gradient[row] + spread->from[k]), spread->places[k]);
            vec_store(terms, vec_select(vec_from_bits(spread->used >> k * LANES), v, (vec){0}));
            exact_add(terms, sums + row * CONV2_ROW + k * LANES, &room);
        }
    return room;
}

/* The gradient of the kept output channels' weights. */
KERNEL ivec add_channels(int channels, const struct features *features, const int *list, const struct spread *spread,
                         unsigned kept2, const int32_t live[16], float dpool2[25][16], int64_t *sums)
{
    struct pool1_rows pool1;
    make_rows(channels, features->pool1, list, &pool1);
    _Alignas(64) float gradient[5][BLOCK_ROW];
    ivec room = {0};
    for (; kept2 != 0; kept2 &= kept2 - 1) {
        int c = __builtin_ctz(kept2);
        struct winners winners = {(unsigned)live[c], 16, &dpool2[0][c], &features->from2[0][c]};
        sum_blocks(channels, winners, &pool1, gradient);
        room |= add_channel(gradient, spread, sums + c * 5 * CONV2_ROW);
    }
    return room;
}

size_t conv2_weights(const struct features *features, float pool2[25][16], unsigned kept1, unsigned kept2, float scale,
                     float dpool2[25][16], int64_t *sums)
{
    _Alignas(64) float bias[16];
    _Alignas(64) int32_t live[16];
    struct spread spread;
    int list[6] = {0}, channels = list_channels(kept1, list); /* make_some reads all six, to no effect */
    find_spread(kept1, channels, list, &spread);
    activation_backward(pool2, scale, dpool2, bias, live);
    ivec room = {0};
    UNROLL for (int k = 0; k < 16; k += LANES)
        exact_add(bias + k, sums + LAYOUT_OF(conv2_bias) + k, &room);
/* Not a loop over `count`: Clang would then leave the sums in memory. */
#define TAKE(count) \
    if ((count) == channels) \
    room |= add_channels(count, features, list, &spread, kept2, live, dpool2, sums + LAYOUT_OF(conv2))
    TAKE(1);
    TAKE(2);
    TAKE(3);
    TAKE(4);
    TAKE(5);
    TAKE(6);
#undef TAKE
    return (size_t)exact_refused(room);
}

/* Where the weights of each winner of a window start in conv2_packed's windows. Windows begin at even rows and columns,
 * so that the lowest bits of row and column tell which number won. */
static void find_weights(const uint16_t from[16], uint16_t starts[16])
{
    for (int c = 0; c < 16; c++)
        starts[c] = (uint16_t)((c * 6 + 1) * ROW + (-(from[c] & RIGHT) & SIDE) - (from[c] & BELOW) / BELOW * ROW);
}

/* Adds the sums over the live winners of gradient times block, six rows of eight floats in a channel's plane, for each
 * of `channels` input channels at once: weights[k], whose rows are ROW apart, to planes[k] from number `first` on. */
KERNEL void sum_winners(int channels, struct winners winners, const float *const *weights, int first,
                        float *const *planes)
{
    eight sum[6 * 6];
    UNROLL for (int k = 0; k < channels * 6; k++)
        sum[k] = (eight){0};
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        UNROLL for (int k = 0; k < channels * 6; k++)
            eight_add_product(weights[k / 6] + winners.starts[i] + k % 6 * ROW, winners.gradients[i], &sum[k]);
    }
    UNROLL for (int k = 0; k < channels * 6; k++)
        eight_add(planes[k / 6] + first + k % 6 * BELOW, &sum[k]);
}

/* The same for `count` channels, as many at once as the registers hold, of which one is left for a gradient. */
KERNEL void sum_channels(int count, struct winners winners, const float *const *weights, int first,
                         float *const *planes)
{
    const int most = ((LANES < 8 ? VECTOR_REGISTERS / 2 : VECTOR_REGISTERS) - 1) / 6;
    for (int done = 0, next; done < count; done += next) {
        int rest = count - done, groups = (rest + most - 1) / most;
        next = (rest + groups - 1) / groups;
/* Not a loop over `channels`: clang would then leave the sums in memory, which takes five times as long. */
#define TAKE(channels) \
    if ((channels) <= most && (channels) == next) \
    sum_winners(channels, winners, weights + done, first, planes + done)
        TAKE(1);
        TAKE(2);
        TAKE(3);
        TAKE(4);
        TAKE(5);
        TAKE(6);
#undef TAKE
    }
}

/* The same for all six channels, which lie side by side in the rows of weights, in vectors of 512 bits. */
KERNEL void sum_all_channels(struct winners winners, const float *weights, int first, float dpool1[6][14][16])
{
    enum { PARTS = ROW / LANES };
    vec sum[6][PARTS];
    float rows[6][ROW];
    UNROLL for (int k = 0; k < 6 * PARTS; k++)
        sum[k / PARTS][k % PARTS] = (vec){0};
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        UNROLL for (int k = 0; k < 6 * PARTS; k++)
            add_product(vec_load(weights + winners.starts[i] + k / PARTS * ROW + k % PARTS * LANES),
                        winners.gradients[i], &sum[k / PARTS][k % PARTS]);
    }
    UNROLL for (int k = 0; k < 6 * PARTS; k++)
        vec_store(rows[k / PARTS] + k % PARTS * LANES, sum[k / PARTS][k % PARTS]);
    UNROLL for (int row = 0; row < 6; row++)
        UNROLL for (int in = 0; in < 6; in++) {
            eight part;
            eight_load(rows[row] + in * 8, &part);
            eight_add(dpool1[in][0] + first + row * BELOW, &part);
        }
}

void conv2_input(const struct conv2_packed *packed, const struct features *features, unsigned kept1,
                 float dpool2[25][16], float dpool1[6][14][16])
{
    const float *weights[6];
    float *planes[6];
    int list[6], count = list_channels(kept1, list);
    for (int g = 0; g < count; g++) {
        weights[g] = packed->windows + list[g] * 8;
        planes[g] = dpool1[list[g]][0];
    }
    memset(dpool1, 0, 6 * sizeof *dpool1);
    for (int cell = 0; cell < 25; cell++) {
        int first = cell / 5 * 2 * BELOW + cell % 5 * 2;
        uint16_t starts[16];
        struct winners winners = {0, 1, dpool2[cell], starts};
        UNROLL for (int c = 0; c < 16; c += LANES)
            winners.live |= vec_live(vec_load(&dpool2[cell][c])) << c;
        if (winners.live == 0)
            continue;
        find_weights(features->from2[cell], starts);
        if (LANES == 16 && count > 2)
            sum_all_channels(winners, packed->windows, first, dpool1);
        else
            sum_channels(count, winners, weights, first, planes);
    }
}
