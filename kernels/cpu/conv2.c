/* conv2: pool1 (6, 14, 14) -> 16 channels of 10x10 -> ReLU, dropout, max-pool -> (16, 5, 5).
 *
 * Forward. Lanes are output channels. The two neighbours of a row share work by winograd.h: 168,000 multiply-adds a
 * sample instead of 240,000, less those of dropped input channels. The sums of columns are made once a sample, those
 * of weights once a step.
 *
 * Backward. Of the four numbers of a pool window one, the winner, gets a gradient, and that only when its
 * ReLU was open: at most 60,000 multiply-adds for the weights and as many for the input. The live winners are
 * listed. Lanes are input channels, 6 of 8 used, and two neighbouring pixels in a 512-bit vector.
 *   weights: channel by channel, its sums (5x5x8) in registers over the winners of its 25 windows;
 *   input: window by window, the sums of all it saw (6x6x8) in registers over the winners of the 16 channels.
 */
#include <stdbool.h>
#include <string.h>

#include "exact.h"
#include "kernels.h"
#include "winograd.h"

/* Places in pool1 and among the weights of windows, in floats. Both are read from even and from odd pixels on. So that
 * no 512-bit vector straddles two cache lines, they then lie in memory twice, the second time one pixel further;
 * narrower vectors need them once, which leaves room in the first-level cache. */
enum {
    PLANE = 14 * 16 * 8,               /* numbers in pool1 */
    ODD = LANES == 16 ? PLANE : 8,     /* from an even column of pool1 to the odd one beside it */
    WINDOWS = (16 * 6 + 1) * 6 * 8,    /* numbers in the first copy, where there are two */
    PITCH = (LANES == 16 ? 6 : 7) * 8, /* from one row of a window to the next */
    LEFT = LANES == 16 ? 0 : 8,        /* where a row begins for a winner of the left column */
    RIGHT = LANES == 16 ? WINDOWS : 0, /* and of the right one, which sees a pixel of zeros first */
};

void conv2_pack(const struct layout *w, struct conv2_packed *packed)
{
    for (int out = 0; out < 16; out++)
        for (int ky = 0; ky < 5; ky++)
            for (int in = 0; in < 6; in++) {
                float g[5], factors[WINOGRAD_PRODUCTS], *row = packed->windows + (out * 6 + 1 + ky) * PITCH;
                for (int kx = 0; kx < 5; kx++) {
                    g[kx] = w->conv2[out][ky][kx][in];
                    row[LEFT + kx * 8 + in] = g[kx];
                    row[RIGHT + (1 + kx) * 8 + in] = g[kx];
                }
                winograd_weights(g, factors);
                for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    packed->forward[in][ky][k][out] = factors[k];
            }
}

/* The first factors: [in][y][product][x] are of the outputs 2x and 2x + 1. Five are used, the others made of what lies
 * beyond the row. */
struct pool1_columns {
    _Alignas(64) float at[6][14][WINOGRAD_PRODUCTS][8];
};

static inline void plane_columns(const float *even, const float *odd, float columns[WINOGRAD_PRODUCTS][8])
{
    eight d[6], factors[WINOGRAD_PRODUCTS];
    UNROLL for (int k = 0; k < 6; k++)
        eight_load((k % 2 ? odd : even) + k / 2, &d[k]);
    WINOGRAD_COLUMNS(d, factors);
    UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
        eight_store(columns[k], &factors[k]);
}

static void make_columns(const struct pool1_planes *planes, unsigned kept, struct pool1_columns *columns)
{
    for (; kept != 0; kept &= kept - 1)
        for (int in = __builtin_ctz(kept), y = 0; y < 14; y++)
            plane_columns(planes->at[in][y], planes->at[in][y] + POOL1_LANE(1), columns->at[in][y]);
}

enum { SPAN = LANES == 16 ? 1 : 2 }; /* vectors of channels computed together */

/* Winograd's sums of a row of ten outputs: [A to D][neighbours][vector of channels]. */
typedef vec row_sums[WINOGRAD_SUMS][5][SPAN];

KERNEL void row_forward(const struct conv2_packed *packed, const struct pool1_columns *columns, unsigned kept, int y,
                        int channel, row_sums out)
{
    const int together = winograd_together(5 * SPAN);
    UNROLL for (int first = 0; first < WINOGRAD_SUMS; first += together) {
        row_sums sum;
        UNROLL for (int which = first; which < first + together; which++)
            UNROLL for (int k = 0; k < 5 * SPAN; k++)
                sum[which][k / SPAN][k % SPAN] = (vec){0};
        for (unsigned rest = kept; rest != 0; rest &= rest - 1)
            ROLLED for (int ky = 0, in = __builtin_ctz(rest); ky < 5; ky++) {
                const float *line = separate_address(columns->at[in][y + ky][0]);
                const float *weights = separate_address(&packed->forward[in][ky][0][channel]);
                UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++) {
                    if (winograd_sum[k] < first || winograd_sum[k] >= first + together)
                        continue;
                    UNROLL for (int x = 0; x < 5; x++)
                        UNROLL for (int v = 0; v < SPAN; v++)
                            add_product(vec_load(weights + k * 16 + v * LANES), line[k * 8 + x],
                                        &sum[winograd_sum[k]][x][v]);
                }
            }
        UNROLL for (int which = first; which < first + together; which++)
            UNROLL for (int k = 0; k < 5 * SPAN; k++)
                vec_spill(&out[which][k / SPAN][k % SPAN], sum[which][k / SPAN][k % SPAN]);
    }
}

/* Max-pool of the windows of two rows, bias, ReLU and dropout for one vector of channels. */
KERNEL void pool(row_sums rows[2], int v, vec bias, ivec keeps, float scale, int y, float *pool2,
                 uint16_t *from)
{
    UNROLL for (int x = 0; x < 5; x++) {
        vec window[4];
        UNROLL for (int k = 0; k < 4; k++) {
            vec(*sums)[5][SPAN] = rows[k / 2];
            window[k] = winograd_output(k % 2, sums[0][x][v], sums[1][x][v], sums[2][x][v], sums[3][x][v]);
        }
        ivec winner;
        vec best = vec_pool(window, ODD, 16 * 8, &winner);
        vec_store(pool2 + x * 16, vec_select(keeps, vec_relu(best + bias) * scale, (vec){0}));
        vec_store_words(from + x * 16, winner + (2 * y * 16 + 2 * x) * 8);
    }
}

void conv2_forward(const struct layout *w, const struct conv2_packed *packed, const struct pool1_planes *planes,
                   unsigned kept1, unsigned kept2, float scale, float pool2[25][16],
                   struct features *features)
{
    struct pool1_columns columns;
    _Alignas(64) int32_t keeps[16]; /* 0 or -1 */
    make_columns(planes, kept1, &columns);
    for (int c = 0; c < 16; c++)
        keeps[c] = -(int32_t)(kept2 >> c & 1);
    for (int group = 0; group < 16; group += SPAN * LANES)
        for (int y = 0; y < 5; y++) {
            row_sums rows[2];
            ROLLED for (int row = 0; row < 2; row++)
                row_forward(packed, &columns, kept1, 2 * y + row, group, rows[row]);
            UNROLL for (int v = 0; v < SPAN; v++) {
                int channel = group + v * LANES;
                pool(rows, v, vec_load(w->conv2_bias + channel), (ivec)vec_load((const float *)keeps + channel), scale,
                     y, &pool2[y * 5][channel], &features->from2[y * 5][channel]);
            }
        }
}

/* The sums of a pass are in registers. A winner's 5x5x8 or 6x6x8 numbers take as many passes as they must. */
enum {
    AT_ONCE = VECTOR_REGISTERS - 3,          /* the others hold a gradient and what it multiplies */
    PATCH_ROW = (5 * 8 + LANES - 1) / LANES, /* vectors */
    PATCH = 5 * PATCH_ROW,
    PATCH_PASSES = (PATCH + AT_ONCE - 1) / AT_ONCE,
    WINDOW_ROW = 6 * 8 / LANES,
    WINDOW = 6 * WINDOW_ROW,
    WINDOW_PASSES = (WINDOW + AT_ONCE - 1) / AT_ONCE,
};

/* Winners whose ReLU was open: a bit each. At i * apart, number i has its gradient and where the block that this
 * multiplies starts. */
struct winners {
    unsigned live;
    int apart;
    const float *gradients;
    const uint16_t *starts;
};

/* Vectors [first, end) of a block of rows, `row` vectors each, in pitches given in floats: the sum of the winners'
 * gradients times the blocks they start, which becomes `sums` or, if `add`, is added to them. */
KERNEL void sum_winners(bool add, int first, int end, int row, struct winners winners, const float *blocks, int pitch,
                        float *sums, int sums_pitch)
{
    vec sum[AT_ONCE];
    UNROLL for (int k = first; k < end; k++)
        sum[k - first] = (vec){0};
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        const float *block = blocks + winners.starts[i];
        UNROLL for (int k = first; k < end; k++)
            add_product(vec_load(block + k / row * pitch + k % row * LANES), winners.gradients[i], &sum[k - first]);
    }
    UNROLL for (int k = first; k < end; k++) {
        float *to = sums + k / row * sums_pitch + k % row * LANES;
        vec_store(to, add ? vec_load(to) + sum[k - first] : sum[k - first]);
    }
}

/* The same for a patch where vectors have 512 bits: a row is two of them and half a one. */
KERNEL void sum_patches(struct winners winners, const float *pool1, float gradient[5][6][8])
{
    enum { WHOLE = 5 * 8 / LANES };
    vec whole[5][WHOLE];
    eight half[5];
    UNROLL for (int ky = 0; ky < 5; ky++) {
        UNROLL for (int k = 0; k < WHOLE; k++)
            whole[ky][k] = (vec){0};
        half[ky] = (eight){0};
    }
    for (unsigned rest = winners.live; rest != 0; rest &= rest - 1) {
        int i = __builtin_ctz(rest) * winners.apart;
        const float *patch = pool1 + winners.starts[i];
        UNROLL for (int ky = 0; ky < 5; ky++) {
            UNROLL for (int k = 0; k < WHOLE; k++)
                add_product(vec_load(patch + ky * 16 * 8 + k * LANES), winners.gradients[i], &whole[ky][k]);
            eight_add_product(patch + ky * 16 * 8 + WHOLE * LANES, winners.gradients[i], &half[ky]);
        }
    }
    UNROLL for (int ky = 0; ky < 5; ky++) {
        UNROLL for (int k = 0; k < WHOLE; k++)
            vec_store(gradient[ky][0] + k * LANES, whole[ky][k]);
        eight_store(gradient[ky][0] + WHOLE * LANES, &half[ky]);
    }
}

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

/* pool1 in the layout that from2's offsets point into. */
static const float *copy_twice(const float *pool1, struct pool1_twice *twice)
{
    if (ODD != PLANE)
        return pool1;
    memcpy(twice->at[0], pool1, PLANE * sizeof(float));
    memcpy(twice->at[1], pool1 + 8, (PLANE - 8) * sizeof(float));
    return twice->at[0];
}

/* Adds a channel's gradient, of which the sixth column is padding, to the exact sums; returns their room (exact.h).
 * Inlined it takes registers from the sums of the winners. */
static __attribute__((noinline)) ivec add_channel(float gradient[5][6][8], int64_t *sums)
{
    enum { USED = (5 * 8 + LANES - 1) / LANES * LANES };
    ivec room = {0};
    for (int ky = 0; ky < 5; ky++)
        memset(gradient[ky][5], 0, sizeof gradient[ky][5]);
    for (int ky = 0; ky < 5; ky++)
        for (int k = 0; k < USED; k += LANES)
            exact_add(gradient[ky][0] + k, sums + ky * 6 * 8 + k, &room);
    return room;
}

size_t conv2_weights(const struct features *features, float pool2[25][16], unsigned kept2, float scale,
                     float dpool2[25][16], struct pool1_twice *twice, int64_t *sums)
{
    _Alignas(64) float bias[16], gradient[5][6][8];
    _Alignas(64) int32_t live[16];
    const float *pool1 = copy_twice(features->pool1[0][0], twice);
    activation_backward(pool2, scale, dpool2, bias, live);
    ivec room = {0};
    UNROLL for (int k = 0; k < 16; k += LANES)
        exact_add(bias + k, sums + LAYOUT_OF(conv2_bias) + k, &room);
    for (; kept2 != 0; kept2 &= kept2 - 1) {
        int c = __builtin_ctz(kept2);
        struct winners winners = {(unsigned)live[c], 16, &dpool2[0][c], &features->from2[0][c]};
        if (LANES == 16)
            sum_patches(winners, pool1, gradient);
        else UNROLL for (int pass = 0; pass < PATCH_PASSES; pass++)
            sum_winners(false, PATCH * pass / PATCH_PASSES, PATCH * (pass + 1) / PATCH_PASSES, PATCH_ROW, winners,
                        pool1, 16 * 8, gradient[0][0], 6 * 8);
        room |= add_channel(gradient, sums + LAYOUT_OF(conv2) + c * (5 * 6 * 8));
    }
    return (size_t)exact_refused(room);
}

/* Where the weights of each winner of a window start in conv2_packed's windows. */
static void find_weights(const uint16_t from[16], int first, uint16_t starts[16])
{
    enum { BELOW = 16 * 8 };
    for (int c = 0; c < 16; c++) {
        uint16_t at = (uint16_t)(from[c] - first);
        uint16_t right = at == ODD || at == BELOW + ODD, below = at == BELOW || at == BELOW + ODD;
        starts[c] = (uint16_t)(LEFT + (c * 6 + 1) * PITCH + right * (RIGHT - LEFT) - below * PITCH);
    }
}

void conv2_input(const struct conv2_packed *packed, const struct features *features, float dpool2[25][16],
                 float dpool1[14][16][8])
{
    memset(dpool1, 0, 14 * sizeof *dpool1);
    for (int cell = 0; cell < 25; cell++) {
        int first = (2 * (cell / 5) * 16 + 2 * (cell % 5)) * 8;
        uint16_t starts[16];
        struct winners winners = {0, 1, dpool2[cell], starts};
        UNROLL for (int c = 0; c < 16; c += LANES)
            winners.live |= vec_bits(vec_load(&dpool2[cell][c]) != 0) << c;
        if (winners.live == 0)
            continue;
        find_weights(features->from2[cell], first, starts);
        UNROLL for (int pass = 0; pass < WINDOW_PASSES; pass++)
            sum_winners(true, WINDOW * pass / WINDOW_PASSES, WINDOW * (pass + 1) / WINDOW_PASSES, WINDOW_ROW,
                        winners, packed->windows, PITCH, dpool1[0][0] + first, 16 * 8);
    }
}
