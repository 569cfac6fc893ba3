/* conv2 forward: pool1 (6, 14, 14) -> 16 channels of 10x10 -> ReLU, dropout, max-pool -> (16, 5, 5).
 *
 * Four neighbours of a row share work by winograd.h, 10 outputs in three fours: 115,200 multiply-adds a sample instead
 * of 240,000. The factors of columns are made once a sample, those of weights once a step. Where dropout leaves few
 * output channels, lanes are pool windows (windows.h), and no others are computed; else lanes are output channels.
 */
#include <stdbool.h>
#include <string.h>

#include "exact.h"
#include "kernels.h"
#include "windows.h"

void conv2_pack(const struct layout *w, struct conv2_packed *packed)
{
    for (int out = 0; out < 16; out++)
        for (int in = 0; in < 6; in++)
            for (int ky = 0; ky < 5; ky++) {
                float g[5], factors[WINOGRAD_PRODUCTS];
                for (int kx = 0; kx < 5; kx++)
                    g[kx] = w->conv2[out][ky][kx * 6 + in];
                winograd_weights(g, factors);
                for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    packed->by_channel[k][in][ky][out] = packed->by_window[out][in][ky][k] = factors[k];
            }
}

/* The ten outputs of a row are computed by fours: columns 0 to 3, 4 to 7, and 6 to 9, of which the last two are taken.
 */
enum { QUADS = 3 };
static const int quad_at[QUADS] = {0, 2, 3}; /* in pool1_columns */

/* The factors of columns: [in][product][y][i] are of columns 2i to 2i + 7 of row y. i = 1 is not used. */
struct pool1_columns {
    _Alignas(64) float at[6][WINOGRAD_PRODUCTS][14][4];
};

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
        float(*rows)[4] = columns->at[in][k];
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

/* --- lanes are output channels ---------------------------------------------------------------------------- */

enum {
    CHANNELS = LANES == 16 ? 1 : 2, /* vectors of channels computed together */
    ROWS = LANES == 16 ? 10 : 1,    /* of outputs, computed together: all if their sums fit into registers */
    POOLED = ROWS > 2 ? ROWS : 2,   /* rows whose sums are kept until they are pooled */
};

/* Winograd's sums of a row of ten outputs: [product][four outputs][vector of channels]. */
typedef vec row_sums[WINOGRAD_PRODUCTS][QUADS][CHANNELS];

/* `count` of the sums of ROWS rows from y on, from number `first` on. weights: their factors, [product][in][ky][16],
 * from the first of the vectors of channels on. */
KERNEL void sum_some(int first, int count, const float *weights, const struct pool1_columns *columns, unsigned kept,
                     int y, row_sums out[ROWS])
{
    enum { OUTPUTS = ROWS * QUADS };
    vec sum[WINOGRAD_PRODUCTS * OUTPUTS * CHANNELS];
    UNROLL for (int i = 0; i < count * OUTPUTS * CHANNELS; i++)
        sum[i] = (vec){0};
    for (unsigned rest = kept; rest != 0; rest &= rest - 1)
        ROLLED for (int ky = 0, in = __builtin_ctz(rest); ky < 5; ky++) {
            const float *factors = separate_address(weights + ((first * 6 + in) * 5 + ky) * 16);
            const float *lines = separate_address(columns->at[in][first][y + ky]);
            UNROLL for (int k = 0; k < count; k++)
                UNROLL for (int v = 0; v < CHANNELS; v++) {
                    vec factor = vec_keep(vec_load(factors + k * 6 * 5 * 16 + v * LANES));
                    UNROLL for (int i = 0; i < OUTPUTS; i++) {
                        int row = i / QUADS, quad = i % QUADS;
                        add_product(factor, lines[(k * 14 + row) * 4 + quad_at[quad]],
                                    &sum[(k * OUTPUTS + i) * CHANNELS + v]);
                    }
                }
        }
    UNROLL for (int i = 0; i < count * OUTPUTS * CHANNELS; i++) {
        int k = i / CHANNELS / OUTPUTS, row = i / CHANNELS % OUTPUTS / QUADS, quad = i / CHANNELS % QUADS;
        vec_spill(&out[row][first + k][quad][i % CHANNELS], sum[i]);
    }
}

/* All eight, in as many passes as the registers ask for. */
KERNEL void sum_products(const float *weights, const struct pool1_columns *columns, unsigned kept, int y,
                         row_sums out[ROWS])
{
    const int together = winograd_together(ROWS * QUADS * CHANNELS);
    ROLLED for (int first = 0; first < WINOGRAD_PRODUCTS; first += together)
        sum_some(first, together, weights, columns, kept, y, out);
}

/* Max-pool, bias, ReLU and scale of row y of windows, for vector v of the channels from `first` on. */
APART void pool_row(row_sums rows[2], int v, int first, const float bias[16], unsigned kept, float scale, int y,
                    float pool2[5][16], uint16_t from2[5][16])
{
    int channel = first + v * LANES;
    UNROLL for (int quad = 0; quad < QUADS; quad++) {
        vec sums[2][WINOGRAD_PRODUCTS], windows[2][4];
        UNROLL for (int k = 0; k < 2 * WINOGRAD_PRODUCTS; k++)
            sums[k % 2][k / 2] = rows[k % 2][k / 2][quad][v];
        winograd_windows(sums, windows);
        UNROLL for (int side = quad == 2; side < 2; side++) {
            int x = quad < 2 ? 2 * quad + side : 4;
            ivec winner;
            vec best = vec_pool(windows[side], CONV2_RIGHT, CONV2_BELOW, &winner);
            vec value = vec_relu(best + vec_load(bias + channel)) * scale;
            vec_store(&pool2[x][channel], vec_select(vec_from_bits(kept >> channel), value, (vec){0}));
            vec_store_words(&from2[x][channel], winner + 2 * y * CONV2_BELOW + 2 * x * CONV2_RIGHT);
        }
    }
}

/* All sixteen channels, of which those that are dropped become zero. */
static void forward_channels(const struct layout *w, const struct conv2_packed *packed,
                             const struct pool1_columns *columns, unsigned kept1, unsigned kept2, float scale,
                             float pool2[25][16], uint16_t from2[25][16])
{
    for (int channel = 0; channel < 16; channel += CHANNELS * LANES)
        for (int first = 0; first < 10; first += POOLED) {
            row_sums rows[POOLED];
            ROLLED for (int row = 0; row < POOLED; row += ROWS)
                sum_products(packed->by_channel[0][0][0] + channel, columns, kept1, first + row, rows + row);
            for (int row = 0, y = first / 2; row < POOLED; row += 2, y++)
                UNROLL for (int v = 0; v < CHANNELS; v++)
                    pool_row(rows + row, v, channel, w->conv2_bias, kept2, scale, y, pool2 + y * 5, from2 + y * 5);
        }
}

/* --- lanes are pool windows ------------------------------------------------------------------------------- */

/* What comes out, channel by channel: lane row * QUADS + quad has two windows, left and right. */
struct pooled {
    _Alignas(64) float values[2][16][16];
    _Alignas(64) uint16_t winners[16][16][2];
};

/* The channels of the list. rows, inputs: windows.h. */
KERNEL void forward_group(int channels, const struct layout *w, const struct conv2_packed *packed, int input_count,
                          const int *inputs, const float *const *rows, const int *list, float scale,
                          struct pooled *out)
{
    const float *weights[WINDOW_GROUP];
    UNROLL for (int g = 0; g < channels; g++)
        weights[g] = packed->by_window[list[g]][0][0];
    for (int part = 0; part < PARTS; part += WINDOW_SPAN) {
        window_sums sums;
        window_sum(channels, part * LANES, input_count, inputs, rows, weights, sums);
        UNROLL for (int i = 0; i < WINDOW_SPAN; i++)
            UNROLL for (int g = 0; g < channels; g++) {
                int lane = (part + i) * LANES, c = list[g];
                float *values[2] = {out->values[0][c] + lane, out->values[1][c] + lane};
                window_pool(sums, g, i, w->conv2_bias[c], scale, CONV2_RIGHT, CONV2_BELOW, values,
                            out->winners[c][lane]);
            }
    }
}

/* Of every other row, five of them, the numbers that are used, [row][quad]; the last of 16 has no meaning. */
KERNEL void pick_quads(const float from[9][4], float to[16])
{
#if defined(__AVX512F__)
    const __m512i four = (__m512i)(ivec){0, 2, 3, 8, 10, 11, 16, 18, 19, 24, 26, 27, 0, 0, 0, 0};
    const __m512i fifth = (__m512i)(ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 18, 19, 19};
    __m512 picked = _mm512_permutex2var_ps(_mm512_loadu_ps(from[0]), four, _mm512_loadu_ps(from[4]));
    __m512 last = _mm512_castps128_ps512(_mm_load_ps(from[8]));
    _mm512_store_ps(to, _mm512_permutex2var_ps(picked, fifth, last));
#else
    wide rows;
    UNROLL for (int row = 0; row < 4; row += 2) { /* over the last two numbers the next row is written */
        wide_pair(from[2 * row], from[2 * row + 2], &rows);
        rows = PICK_EIGHT(rows, rows, 0, 2, 3, 4, 6, 7, 7, 7);
        wide_store(to + row * QUADS, &rows);
    }
    wide_pair(from[8], from[8], &rows);
    rows = PICK_EIGHT(rows, rows, 0, 2, 3, 3, 0, 2, 3, 3);
    memcpy(to + 4 * QUADS, &rows, 4 * sizeof *to);
#endif
}

/* Writes eight lanes of eight channels as pool2 and from2 have them: cell by cell the channels. */
KERNEL void spread_block(const struct pooled *pooled, int lane, int channel, float pool2[25][16],
                         uint16_t from2[25][16])
{
    eight winners[8];
    UNROLL for (int c = 0; c < 8; c++)
        eight_load((const float *)pooled->winners[channel + c][lane], &winners[c]);
    transpose_eight(winners);
    UNROLL for (int side = 0; side < 2; side++) {
        eight values[8];
        UNROLL for (int c = 0; c < 8; c++)
            eight_load(pooled->values[side][channel + c] + lane, &values[c]);
        transpose_eight(values);
        UNROLL for (int i = 0; i < 8; i++) {
            int row = (lane + i) / QUADS, quad = (lane + i) % QUADS, x = quad < 2 ? 2 * quad + side : 4;
            if (row == 5 || (quad == 2 && side == 0)) /* not used; or x = 3, which quad 1 has */
                continue;
            eight_store(&pool2[row * 5 + x][channel], &values[i]);
            int start = 2 * row * CONV2_BELOW + 2 * x * CONV2_RIGHT;
            eight_ints from = ((eight_ints)winners[i] >> 16 * side & 0xffff) + start;
            eight_store_words(&from2[row * 5 + x][channel], &from);
        }
    }
}

/* The kept channels alone; the others are zero. */
static void forward_windows(const struct layout *w, const struct conv2_packed *packed,
                            const struct pool1_columns *columns, unsigned kept1, unsigned kept2, float scale,
                            float pool2[25][16], uint16_t from2[25][16])
{
    _Alignas(64) float picked[WINDOW_ROWS][6][WINOGRAD_PRODUCTS][16];
    const float *rows[WINDOW_ROWS];
    struct pooled pooled;
    int inputs[6], input_count = list_channels(kept1, inputs);
    int list[16], count = list_channels(kept2, list);
    for (int y = 0; y < WINDOW_ROWS; y++) {
        rows[y] = picked[y][0][0];
        for (int i = 0; i < input_count; i++)
            UNROLL for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                pick_quads(columns->at[inputs[i]][k] + y, picked[y][inputs[i]][k]);
    }
    if (count < 16)
        memset(&pooled, 0, sizeof pooled);
    for (int done = 0, next; done < count; done += next) {
        next = window_group(count - done);
/* Not a loop over `channels`: each is a function of its own, with its sums in registers. */
#define TAKE(channels) \
    if ((channels) <= WINDOW_GROUP && (channels) == next) \
    forward_group(channels, w, packed, input_count, inputs, rows, list + done, scale, &pooled)
        TAKE(1);
        TAKE(2);
        TAKE(3);
#undef TAKE
    }
    UNROLL for (int block = 0; block < 4; block++)
        spread_block(&pooled, block / 2 * 8, block % 2 * 8, pool2, from2);
}

void conv2_forward(const struct layout *w, const struct conv2_packed *packed, unsigned kept1, unsigned kept2,
                   float scale, float pool2[25][16], struct features *features)
{
    struct pool1_columns columns;
    bool many = __builtin_popcount(kept2) > 11; /* then vectors of channels take less */
    make_columns(features->pool1, kept1, &columns);
    (many ? forward_channels : forward_windows)(w, packed, &columns, kept1, kept2, scale, pool2, features->from2);
}
