/* conv2 backward. Of the four numbers of a pool window one, the winner, gets a gradient, and that only when its ReLU
 * was open: at most 60,000 multiply-adds a sample for the weights and as many for the input, less those of dropped
 * input channels (for the input, with 512 bits, of pairs of them). The live winners are listed.
 *   weights: output channel by channel, the sums in registers over the winners of its 25 windows; lanes are the columns
 *   and kept input channels of a block's row, which lie in a run;
 *   input: window by window, the sums of all it saw (6x8 of each input channel, as many as fit) in registers over the
 *   winners of the 16 output channels; lanes are neighbouring columns, 5 or 6 of 8 used, with 512 bits of two channels.
 */
#include <string.h>

#include "exact.h"
#include "kernels.h"
#include "vector.h"

enum {
    ROW = 6 * 8,               /* in conv2_windows, from a row to the next */
    SIDE = (16 * 6 + 1) * ROW, /* and from the weights of a left winner to those of a right one */
};

/* Where column x of input channel `in` stands in a row of conv2_windows. Vectors of 512 bits take two channels, others
 * one. */
KERNEL int window_place(int in, int x)
{
    return LANES == 16 ? in / 2 * 16 + x * 2 + in % 2 : in * 8 + x;
}

void conv2_pack_windows(const struct layout *w, struct conv2_windows *windows)
{
    for (int out = 0; out < 16; out++)
        for (int ky = 0; ky < 5; ky++)
            for (int in = 0; in < 6; in++)
                for (int kx = 0; kx < 5; kx++) {
                    float *row = windows->at + (out * 6 + 1 + ky) * ROW, weight = w->conv2[out][ky][kx * 6 + in];
                    row[window_place(in, kx)] = weight;
                    row[SIDE + window_place(in, kx + 1)] = weight;
                }
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
 * Where they are not separate this is pool1 as make_pixels leaves it. Vectors read on behind a row, and what they find
 * is not used. */
struct pool1_rows {
    _Alignas(64) float at[14 * 16 * (LANES == 16 ? BLOCK_ROW : 6)];
};

/* pool1 with its kept channels side by side, [y][x][channel]; the room for columns 14 and 15 has no meaning. */
KERNEL void make_pixels(int channels, const float pool1[6][POOL1_PLANE], const int *list, float *pixels)
{
    for (int y = 0; y < 14; y++) {
        eight columns[2][8]; /* even ones and odd ones; lanes: channels */
        UNROLL for (int odd = 0; odd < 2; odd++) {
            UNROLL for (int k = 0; k < 8; k++)
                columns[odd][k] = (eight){0};
            UNROLL for (int k = 0; k < channels; k++)
                eight_load(pool1[list[k]] + POOL1_PLACE(y, odd), &columns[odd][k]);
            transpose_eight(columns[odd]);
        }
        UNROLL for (int x = 0; x < 14; x++) /* over the channels that are not there the next number is written */
            eight_store(pixels + (y * 16 + x) * channels, &columns[x % 2][x / 2]);
    }
}

/* The same of few channels: a vector takes a permutation for each of them. */
KERNEL void pick_pixels(int channels, const float pool1[6][POOL1_PLANE], const int *list, float *pixels)
{
#if defined(__AVX512F__)
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int y = 0; y < 7; y++) { /* and y + 7, eight lanes further on */
        vec even[6], odd[6];
        UNROLL for (int k = 0; k < channels; k++) {
            even[k] = vec_load(pool1[list[k]] + POOL1_PLACE(y, 0));
            odd[k] = vec_load(pool1[list[k]] + POOL1_PLACE(y, 1));
        }
        UNROLL for (int i = 0; i < channels; i++) {
            ivec number = lanes + i * LANES, x = number * (1024 / channels + 1) >> 10; /* number / channels */
            ivec channel = number - x * channels, place = x >> 1 | (x & 1) << 4;
            ivec upper = place, lower = place + 8;
            UNROLL for (int k = 0; k < channels; k++) {
                vec_pick(even[k], odd[k], channel == k, &upper);
                vec_pick(even[k], odd[k], channel == k, &lower);
            }
            vec_store(pixels + y * 16 * channels + i * LANES, (vec)upper);
            vec_store(pixels + (y + 7) * 16 * channels + i * LANES, (vec)lower);
        }
    }
#else
    make_pixels(channels, pool1, list, pixels);
#endif
}

KERNEL void make_rows(int channels, const float pool1[6][POOL1_PLANE], const int *list, struct pool1_rows *rows)
{
    _Alignas(64) float pixels[14 * 16 * 6];
    float *to = separate(channels) ? pixels : rows->at;
    if (channels > 4)
        make_pixels(channels, pool1, list, to);
    else
        pick_pixels(channels, pool1, list, to);
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
        const float *block = separate_address(pool1->at + (winners.starts[i] + first * CONV2_BELOW) * apart(channels));
        UNROLL for (int k = 0; k < count; k++)
            add_product(vec_load(block + k / vectors * CONV2_BELOW * apart(channels) + k % vectors * LANES),
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
    ivec places[SPREAD]; /* from there on: which of them; not filled where VEC_EXPANDS */
};

static void find_spread(unsigned kept, int channels, const int *list, struct spread *spread)
{
    spread->used = kept * 0x1041041; /* five times six bits */
    for (int k = 0; k < SPREAD; k++)
        spread->from[k] = __builtin_popcount(spread->used & ((1u << k * LANES) - 1));
    if (VEC_EXPANDS)
        return;
    int32_t places[CONV2_ROW];
    UNROLL for (int i = 0; i < CONV2_ROW; i++)
        places[i] = -1;
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
            vec v = vec_load(gradient[row] + spread->from[k]);
            vec_store(terms, vec_expand(v, spread->used >> k * LANES, spread->places[k]));
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

size_t conv2_weight_gradient(const struct features *features, float pool2[25][16], unsigned kept1, unsigned kept2,
                             float scale, float dpool2[25][16], int64_t *sums)
{
    _Alignas(64) float bias[16];
    _Alignas(64) int32_t live[16];
    struct spread spread;
    int list[6], channels = list_channels(kept1, list);
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

/* The winners of a window. starts: where in conv2_windows the weights of each begin. Windows begin at even rows and
 * columns, so that the lowest bits of row and column tell which number won. */
KERNEL struct winners find_winners(const float gradients[16], const uint16_t from[16], uint16_t starts[16])
{
    struct winners winners = {0, 1, gradients, starts};
    UNROLL for (int c = 0; c < 16; c += LANES)
        winners.live |= vec_live(vec_load(gradients + c)) << c;
    for (int c = 0; c < 16; c++)
        starts[c] = (uint16_t)((c * 6 + 1) * ROW + (-(from[c] & CONV2_RIGHT) & SIDE) -
                               (from[c] & CONV2_BELOW) / CONV2_BELOW * ROW);
    return winners;
}

/* The first number that the window of a cell saw. */
KERNEL int first_of(int cell)
{
    return cell / 5 * 2 * CONV2_BELOW + cell % 5 * 2 * CONV2_RIGHT;
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
            eight_add_product(weights[k % channels] + winners.starts[i] + k / channels * ROW, winners.gradients[i],
                              &sum[k]);
    }
    UNROLL for (int k = 0; k < channels * 6; k++)
        eight_add(planes[k % channels] + first + k / channels * CONV2_BELOW, &sum[k]);
}

/* The same for all cells. */
KERNEL void sum_cells(int channels, const struct winners winners[25], const float *const *weights,
                      float *const *planes)
{
    for (int cell = 0; cell < 25; cell++)
        if (winners[cell].live != 0)
            sum_winners(channels, winners[cell], weights, first_of(cell), planes);
}

/* By channels, as many at once as the registers hold, of which one is left for a gradient; narrower vectors do it so.
 * All cells before the next channels: their weights stay in the first-level cache. */
static void input_gradient_by_channels(const float *windows, const struct features *features, unsigned kept1,
                                       float dpool2[25][16], float dpool1[6][14][16])
{
    const int most = ((LANES < 8 ? VECTOR_REGISTERS / 2 : VECTOR_REGISTERS) - 1) / 6;
    const float *weights[6];
    float *planes[6];
    int list[6], count = list_channels(kept1, list);
    uint16_t starts[25][16];
    struct winners winners[25];
    for (int g = 0; g < count; g++) {
        weights[g] = windows + list[g] * 8;
        planes[g] = dpool1[list[g]][0];
    }
    memset(dpool1, 0, 6 * sizeof *dpool1);
    for (int cell = 0; cell < 25; cell++)
        winners[cell] = find_winners(dpool2[cell], features->from2[cell], starts[cell]);
    for (int done = 0, next; done < count; done += next) {
        int rest = count - done, groups = (rest + most - 1) / most;
        next = (rest + groups - 1) / groups;
/* Not a loop over `channels`: clang would then leave the sums in memory, which takes five times as long. */
#define TAKE(channels) \
    if ((channels) <= most && (channels) == next) \
    sum_cells(channels, winners, weights + done, planes + done)
        TAKE(1);
        TAKE(2);
        TAKE(3);
        TAKE(4);
        TAKE(5);
        TAKE(6);
#undef TAKE
    }
}

/* By pairs of channels, a vector of 512 bits a row. */
enum { PAIRS = 3 };

/* As sum_winners; planes: [y][x][channel of the pair]. */
KERNEL void sum_pairs(int pairs, struct winners winners, const float *const *weights, int first, float *const *planes)
{
    vec sum[PAIRS * 6];
    UNROLL for (int k = 0; k < pairs * 6; k++)
        sum[k] = (vec){0};
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        UNROLL for (int k = 0; k < pairs * 6; k++)
            add_product(vec_load(weights[k / 6] + winners.starts[i] + k % 6 * ROW), winners.gradients[i], &sum[k]);
    }
    UNROLL for (int k = 0; k < pairs * 6; k++) {
        float *to = planes[k / 6] + 2 * (first + k % 6 * CONV2_BELOW);
        vec_store(to, vec_load(to) + sum[k]);
    }
}

static void input_gradient_by_pairs(const float *windows, const struct features *features, unsigned kept1,
                                    float dpool2[25][16], float dpool1[6][14][16])
{
    _Alignas(64) float sums[PAIRS][14][16][2];
    const float *weights[PAIRS];
    float *planes[PAIRS];
    int count = 0, list[PAIRS];
    for (int pair = 0; pair < PAIRS; pair++)
        if (kept1 >> 2 * pair & 3) {
            weights[count] = windows + pair * 16;
            planes[count] = sums[count][0][0];
            list[count++] = pair;
        }
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (int cell = 0; cell < 25; cell++) {
        uint16_t starts[16];
        struct winners winners = find_winners(dpool2[cell], features->from2[cell], starts);
        if (winners.live == 0)
            continue;
        if (count == 3)
            sum_pairs(3, winners, weights, first_of(cell), planes);
        else if (count == 2)
            sum_pairs(2, winners, weights, first_of(cell), planes);
        else if (count == 1)
            sum_pairs(1, winners, weights, first_of(cell), planes);
    }
    for (int i = 0; i < count; i++)
        for (int y = 0; y < 14; y++)
            vec_separate(sums[i][y][0], dpool1[list[i] * 2][y], dpool1[list[i] * 2 + 1][y]);
}

void conv2_input_gradient(const struct conv2_windows *windows, const struct features *features, unsigned kept1,
                          float dpool2[25][16], float dpool1[6][14][16])
{
    (LANES == 16 ? input_gradient_by_pairs : input_gradient_by_channels)(windows->at, features, kept1, dpool2, dpool1);
}
