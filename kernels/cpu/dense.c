/* conv3 (400 -> 120, its kernel covers its input: a matrix), fc1 (120 -> 84), fc2 (84 -> 10), each with a
 * tile of samples at once: 48,000 + 10,080 + 840 multiply-adds a sample in each of the three passes.
 *
 * Weights are [out][in] as in PyTorch. Three products, each with its sums in registers:
 *   forward   y[out][s]  = sum over in  of w[out][in] x[in][s]      lanes: the tile's samples
 *   input     dx[s][in]  = sum over out of dy[s][out] w[out][in]    lanes: inputs
 *   weights   dw[out][in] = sum over s  of dy[s][out] x[s][in]      lanes: inputs
 * so forward wants activations as [unit][sample] and backward as [sample][unit]; each is transposed
 * once. The first two are split into chains whose sums are then added.
 *
 * The backward products leave out the zeros of dy: dropped units, closed ReLUs, samples that the tile lacks. To
 * leave out zero times infinity would hide a NaN (kernels/README.md): so an x that is not finite counts as refused, and
 * where a w is not, nothing is left out. Forward, masks save nothing that way: a tile's samples drop different units.
 * So where dropout leaves few of conv3's inputs, conv3 and fc1 take their samples one by one instead, without the
 * zeros, and lanes are outputs.
 */
#include <math.h>
#include <string.h>

#include "exact.h"
#include "kernels.h"

enum {
    SAMPLES = TILE / LANES,                  /* vectors in a tile */
    SUMS = VECTOR_REGISTERS == 32 ? 24 : 12, /* registers that hold sums of the forward product */
    MOST_PARTS = 32,                         /* most vectors of sums in product_live and the backward products */
};

/* --- the products; every size is a constant where they are used ----------------------------------- */

/* The largest magnitude of `count` numbers; NaN if one is. */
static float largest(size_t count, const float *numbers)
{
    int32_t most = 0; /* magnitudes are in the order of their bits, NaN above infinity */
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, numbers + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float number;
    memcpy(&number, &most, sizeof number);
    return number;
}

/* Bit i of `count`: whether factors[i] is not zero; or all of them. */
KERNEL uint32_t live_bits(const float *factors, int count, uint32_t all)
{
    uint32_t live = all;
    UNROLL for (int i = 0; i < count; i += LANES)
        live |= vec_live(vec_load(factors + i)) << i;
    return live & ((1u << count) - 1);
}

/* How the forward product is split into chains, whose sums are then added: chain c takes of every run of inputs, `runs`
 * of them, `pitch` apart, the `length` neighbours from c * length on. */
struct chains {
    int count, runs, length, pitch;
};
static const struct chains conv3_chains = {8, 25, 2, 16}, fc1_chains = {8, 1, 15, 0}, fc2_chains = {4, 1, 21, 0};

/* `out` is a multiple of `block`. stride: floats from one row of w to the next. */
KERNEL void product_forward(struct chains chains, int out, int stride, int block, const float *w, const float *x,
                            float *y)
{
    for (int first = 0; first < out; first += block) {
        const float *rows = w + first * stride;
        for (int c = 0; c < chains.count; c++) {
            vec sum[SUMS][SAMPLES];
            UNROLL for (int o = 0; o < block; o++)
                UNROLL for (int s = 0; s < SAMPLES; s++)
                    sum[o][s] = (vec){0};
            for (int run = 0; run < chains.runs; run++)
                for (int k = 0; k < chains.length; k++) {
                    int i = run * chains.pitch + c * chains.length + k;
                    vec samples[SAMPLES];
                    UNROLL for (int s = 0; s < SAMPLES; s++)
                        samples[s] = vec_keep(vec_load(x + i * TILE + s * LANES));
                    UNROLL for (int o = 0; o < block; o++)
                        UNROLL for (int s = 0; s < SAMPLES; s++)
                            add_product(samples[s], rows[o * stride + i], &sum[o][s]);
                }
            UNROLL for (int o = 0; o < block; o++)
                UNROLL for (int s = 0; s < SAMPLES; s++) {
                    float *to = y + (first + o) * TILE + s * LANES;
                    vec_store(to, c > 0 ? vec_load(to) + sum[o][s] : sum[o][s]);
                }
        }
    }
}

/* The same without inputs that are zero, sample by sample; lanes are outputs, `parts` vectors. Chain c's weights,
 * [input][out], stay in the first-level cache for all samples; its inputs are those of live[s][c], a bit each. Strides:
 * floats from one input (w) or sample to the next. */
KERNEL void product_live(struct chains chains, int parts, int w_stride, int x_stride, int y_stride, const float *w,
                         const float *x, const uint64_t live[TILE][8], float *y)
{
    for (int c = 0; c < chains.count; c++)
        for (int s = 0; s < TILE; s++) {
            vec sum[MOST_PARTS];
            UNROLL for (int k = 0; k < parts; k++)
                sum[k] = (vec){0};
            for (uint64_t rest = live[s][c]; rest != 0; rest &= rest - 1) {
                int i = __builtin_ctzll(rest), run = chains.runs == 1 ? 0 : i / chains.length;
                float input = x[s * x_stride + run * chains.pitch + c * chains.length + i - run * chains.length];
                const float *row = w + (c * chains.runs * chains.length + i) * w_stride;
                UNROLL for (int k = 0; k < parts; k++)
                    add_product(vec_load(row + k * LANES), input, &sum[k]);
            }
            UNROLL for (int k = 0; k < parts; k++) {
                float *to = y + s * y_stride + k * LANES;
                vec_store(to, c > 0 ? vec_load(to) + sum[k] : sum[k]);
            }
        }
}

/* A chain sums `length` outputs; its part of w, `parts` vectors of inputs at a time, stays in the first-level cache for
 * all samples. all: ~0 if no zeros may be left out, else 0. */
KERNEL void product_input_gradient(int stride, int out, int length, int dy_stride, int parts, const float *w,
                                   const float *dy, uint32_t all, float *dx)
{
    for (int chain = 0; chain < out; chain += length)
        for (int first = 0; first < stride; first += parts * LANES)
            for (int s = 0; s < TILE; s++) {
                const float *factors = dy + s * dy_stride + chain;
                vec sum[MOST_PARTS];
                UNROLL for (int k = 0; k < parts; k++)
                    sum[k] = (vec){0};
                for (uint32_t rest = live_bits(factors, length, all); rest != 0; rest &= rest - 1) {
                    int o = __builtin_ctz(rest);
                    const float *row = w + (chain + o) * stride + first;
                    UNROLL for (int k = 0; k < parts; k++)
                        add_product(vec_load(row + k * LANES), factors[o], &sum[k]);
                }
                UNROLL for (int k = 0; k < parts; k++) {
                    float *to = dx + s * stride + first + k * LANES;
                    vec_store(to, chain > 0 ? vec_load(to) + sum[k] : sum[k]);
                }
            }
}

/* product_weight_gradient; *room is exact_check's, or room is NULL where no term can be refused. */
KERNEL void add_weight_gradient(int stride, int out, int dy_stride, int parts, const float *x, const float *dy,
                                const uint32_t *live, int64_t *sums, ivec *room)
{
    for (int first = 0; first < stride; first += parts * LANES)
        for (int o = 0; o < out; o++) {
            vec sum[MOST_PARTS];
            if (live[o] == 0)
                continue;
            UNROLL for (int k = 0; k < parts; k++)
                sum[k] = (vec){0};
            for (uint32_t rest = live[o]; rest != 0; rest &= rest - 1) {
                int s = __builtin_ctz(rest);
                UNROLL for (int k = 0; k < parts; k++)
                    add_product(vec_load(x + s * stride + first + k * LANES), dy[s * dy_stride + o], &sum[k]);
            }
            UNROLL for (int k = 0; k < parts; k++) {
                const float *terms = (const float *)&sum[k];
                int64_t *to = sums + o * stride + first + k * LANES;
                UNROLL for (int i = 0; i < LANES; i += LANES / 2)
                    exact_add_half(terms + i, to + i);
                if (room != NULL)
                    exact_check(terms, room);
            }
        }
}

/* Adds the gradient to the exact sums; returns 0 if none was refused, or was not finite and left out. live: of
 * each output a bit a sample. Where the largest factors tell that no term can be refused, none is looked at. */
KERNEL size_t product_weight_gradient(int stride, int out, int dy_stride, int parts, const float *x, const float *dy,
                                      const uint32_t *live, int64_t *sums)
{
    float largest_x = largest((size_t)(TILE * stride), x), largest_dy = largest((size_t)(TILE * dy_stride), dy);
    if (TILE * largest_x * largest_dy < EXACT_LIMIT / 2) { /* half: sums are rounded. NaN is not less */
        add_weight_gradient(stride, out, dy_stride, parts, x, dy, live, sums, NULL);
        return 0;
    }
    ivec room = {0};
    add_weight_gradient(stride, out, dy_stride, parts, x, dy, live, sums, &room);
    return (size_t)(exact_refused(room) + !isfinite(largest_x));
}

/* --- between the products --------------------------------------------------------------------------- */

/* y = ReLU(y + bias), times scale where the sample keeps the unit, else 0. [unit][sample]. */
KERNEL void activate(int units, const float *bias, float scale, const int32_t kept[][TILE], float *y)
{
    for (int u = 0; u < units; u++)
        UNROLL for (int s = 0; s < SAMPLES; s++) {
            float *at = y + u * TILE + s * LANES;
            ivec word = (ivec)vec_load((const float *)kept[u / 32] + s * LANES);
            ivec keeps = -(word >> (u % 32) & 1);
            vec_store(at, vec_select(keeps, vec_relu(vec_load(at) + bias[u]) * scale, (vec){0}));
        }
}

/* The same of [sample][unit], where each unit has a number in `bias`; the padding becomes 0. */
KERNEL void activate_rows(int stride, const float *bias, float scale, const struct sample_mask *masks,
                          enum dropout_layer layer, float *y)
{
    for (int s = 0; s < TILE; s++)
        UNROLL for (int u = 0; u < stride; u += LANES) {
            float *at = y + s * stride + u;
            ivec keeps = vec_from_bits((unsigned)(masks[s].keep[layer][u / 64] >> u % 64));
            vec_store(at, vec_select(keeps, vec_relu(vec_load(at) + vec_load(bias + u)) * scale, (vec){0}));
        }
}

/* to[k][i] = from[i][k] for `rows` and `columns`, multiples of eight. */
static void transpose(int rows, int columns, int from_stride, const float *from, int to_stride, float *to)
{
    for (int i = 0; i < rows; i += 8)
        for (int k = 0; k < columns; k += 8) {
            eight block[8];
            UNROLL for (int r = 0; r < 8; r++)
                eight_load(from + (i + r) * from_stride + k, &block[r]);
            transpose_eight(block);
            UNROLL for (int r = 0; r < 8; r++)
                eight_store(to + (k + r) * to_stride + i, &block[r]);
        }
}

static void lanes_from_rows(int units, int stride, const float *rows, float *lanes)
{
    transpose(TILE, units, stride, rows, TILE, lanes);
}

static void rows_from_lanes(int units, int stride, const float *lanes, float *rows)
{
    transpose(units, TILE, TILE, lanes, stride, rows);
}

/* The masks of a layer as words of 32 units, one lane a sample. */
static void mask_lanes(const struct sample_mask *masks, enum dropout_layer layer, int32_t kept[4][TILE])
{
    for (int s = 0; s < TILE; s++)
        for (int i = 0; i < 4; i++)
            kept[i][s] = (int32_t)(uint32_t)(masks[s].keep[layer][i / 2] >> i % 2 * 32);
}

/* dy = gradient before the activation whose output is y; adds its sum over samples to the bias's. live: of each unit a
 * bit a sample, whether dy is not zero. */
KERNEL size_t activation_backward(int stride, float scale, const float *y, float *dy, int64_t *bias_sums,
                                  uint32_t *live)
{
    ivec room = {0};
    for (int u = 0; u < stride; u += LANES) {
        vec bias = {0};
        ivec bits = {0};
        for (int s = 0; s < TILE; s++) {
            float *at = dy + s * stride + u;
            vec d = vec_select(vec_load(y + s * stride + u) > 0, vec_load(at) * scale, (vec){0});
            vec_store(at, d);
            bias += d;
            bits |= (d != 0) & 1 << s;
        }
        vec_store((float *)live + u, (vec)bits);
        exact_add((const float *)&bias, bias_sums + u, &room);
    }
    return (size_t)exact_refused(room);
}

/* --- the layers ------------------------------------------------------------------------------------ */

/* Outputs a block of the forward product takes: they divide the layer's, and fill SUMS. */
#define BLOCK(wide, medium, narrow) \
    (SUMS / SAMPLES >= 24 ? (wide) : SUMS / SAMPLES >= 6 ? (medium) : (narrow))

/* Vectors of inputs that the backward products take at a time. */
enum {
    CONV3_PARTS = LANES == 16 ? 25 : 10,
    FC1_PARTS = 8,
    FC2_PARTS = LANES == 16 ? 6 : 12,
};

/* The weights of each chain as product_live reads them: [chain][input][out]. */
static void pack_chains(const struct layout *w, struct dense_tile *t)
{
    static const float zeros[8] = {0};
    for (int out = 0; out < 120; out += 8)
        for (int in = 0; in < 400; in += 8) {
            eight block[8];
            UNROLL for (int k = 0; k < 8; k++)
                eight_load(w->conv3[out + k] + in, &block[k]);
            transpose_eight(block);
            UNROLL for (int k = 0; k < 8; k++)
                eight_store(t->conv3_chains[(in + k) % 16 / 2][(in + k) / 16 * 2 + k % 2] + out, &block[k]);
        }
    for (int out = 0; out < 88; out += 8)
        for (int in = 0; in < 120; in += 8) {
            eight block[8];
            UNROLL for (int k = 0; k < 8; k++)
                eight_load(out + k < 84 ? w->fc1[out + k] + in : zeros, &block[k]);
            transpose_eight(block);
            UNROLL for (int k = 0; k < 8; k++)
                eight_store(t->fc1_chains[in + k] + out, &block[k]);
        }
}

void dense_pack(const struct layout *w, struct dense_tile *t)
{
    pack_chains(w, t);
    int finite = isfinite(largest(120 * 400, w->conv3[0])) && isfinite(largest(84 * 128, w->fc1[0]));
    t->all = finite ? 0 : ~0u;
}

/* Of a sample's inputs of each chain a bit each, whether it is not zero; or all. conv3: cell by cell two. */
static void find_live3(float pool2[25][16], uint32_t all, uint64_t live[8])
{
    typedef uint64_t longs __attribute__((vector_size(8 * sizeof(uint64_t))));
    const longs pairs = {0, 2, 4, 6, 8, 10, 12, 14}; /* where a cell's bits of each chain are */
    longs found = {0};
    UNROLL for (int cell = 0; cell < 25; cell++)
        found |= ((live_bits(pool2[cell], 16, all) + (longs){0}) >> pairs & 3) << 2 * cell;
    memcpy(live, &found, sizeof found);
}

static void find_live1(const float conv3[128], uint32_t all, uint64_t live[8])
{
    for (int c = 0; c < 8; c++)
        live[c] = live_bits(conv3 + c * 15, 15, all);
}

/* Whether so few of conv2's channels are left, by dropout and by samples that a short tile lacks, that it pays to look
 * for them. */
static int drops_much(const struct sample_mask masks[TILE])
{
    int kept = 0;
    for (int s = 0; s < TILE; s++)
        kept += __builtin_popcount((unsigned)masks[s].keep[DROPOUT_CONV2][0]);
    return kept < TILE * 16 * 2 / 3;
}

void conv3_forward(const struct layout *w, const struct sample_mask masks[TILE], float scale,
                   struct dense_tile *t)
{
    t->by_sample = drops_much(masks);
    if (t->by_sample) {
        enum { PARTS = (120 + LANES - 1) / LANES }; /* 15 of 8 lanes, the most that registers hold */
        uint64_t live[TILE][8];
        for (int s = 0; s < TILE; s++)
            find_live3(t->pool2[s], t->all, live[s]);
        product_live(conv3_chains, PARTS, 128, 400, 128, t->conv3_chains[0][0], t->pool2[0][0], live, t->conv3[0]);
        activate_rows(128, w->conv3_bias, scale, masks, DROPOUT_CONV3, t->conv3[0]);
    } else {
        int32_t kept[4][TILE];
        lanes_from_rows(400, 400, t->pool2[0][0], t->pool2_lanes[0]);
        product_forward(conv3_chains, 120, 400, BLOCK(12, 6, 3), w->conv3[0], t->pool2_lanes[0], t->conv3_lanes[0]);
        mask_lanes(masks, DROPOUT_CONV3, kept);
        activate(120, w->conv3_bias, scale, kept, t->conv3_lanes[0]);
        rows_from_lanes(120, 128, t->conv3_lanes[0], t->conv3[0]);
    }
}

void fc1_forward(const struct layout *w, const struct sample_mask masks[TILE], float scale,
                 struct dense_tile *t)
{
    if (t->by_sample) {
        uint64_t live[TILE][8];
        for (int s = 0; s < TILE; s++)
            find_live1(t->conv3[s], t->all, live[s]);
        product_live(fc1_chains, 96 / LANES, 96, 128, 96, t->fc1_chains[0], t->conv3[0], live, t->fc1[0]);
        activate_rows(96, w->fc1_bias, scale, masks, DROPOUT_FC1, t->fc1[0]);
        lanes_from_rows(88, 96, t->fc1[0], t->fc1_lanes[0]);
    } else {
        int32_t kept[4][TILE];
        product_forward(fc1_chains, 84, 128, BLOCK(21, 6, 3), w->fc1[0], t->conv3_lanes[0], t->fc1_lanes[0]);
        mask_lanes(masks, DROPOUT_FC1, kept);
        activate(84, w->fc1_bias, scale, kept, t->fc1_lanes[0]);
        rows_from_lanes(88, 96, t->fc1_lanes[0], t->fc1[0]);
    }
}

void fc2_forward(const struct layout *w, struct dense_tile *t)
{
    product_forward(fc2_chains, 10, 96, BLOCK(10, 5, 2), w->fc2[0], t->fc1_lanes[0], t->logits[0]);
    for (int k = 0; k < 10; k++)
        for (int s = 0; s < TILE; s++)
            t->logits[k][s] += w->fc2_bias[k];
}

size_t fc2_weight_gradient(struct dense_tile *t, int64_t *sums)
{
    rows_from_lanes(16, 16, t->logits[0], t->dlogits[0]);
    float bias[16] = {0};
    uint32_t live[10];
    for (int k = 0; k < 10; k++)
        live[k] = (1u << TILE) - 1;
    for (int s = 0; s < TILE; s++)
        for (int k = 0; k < 16; k++)
            bias[k] += t->dlogits[s][k];
    return exact_sum_add(16, bias, sums + LAYOUT_OF(fc2_bias)) +
           product_weight_gradient(96, 10, 16, FC2_PARTS, t->fc1[0], t->dlogits[0], live, sums + LAYOUT_OF(fc2));
}

void fc2_input_gradient(const struct layout *w, struct dense_tile *t)
{
    product_input_gradient(96, 10, 10, 16, FC2_PARTS, w->fc2[0], t->dlogits[0], ~0u, t->dfc1[0]);
}

size_t fc1_weight_gradient(float scale, struct dense_tile *t, int64_t *sums)
{
    uint32_t live[96];
    return activation_backward(96, scale, t->fc1[0], t->dfc1[0], sums + LAYOUT_OF(fc1_bias), live) +
           product_weight_gradient(128, 84, 96, FC1_PARTS, t->conv3[0], t->dfc1[0], live, sums + LAYOUT_OF(fc1));
}

void fc1_input_gradient(const struct layout *w, struct dense_tile *t)
{
    product_input_gradient(128, 84, 21, 96, FC1_PARTS, w->fc1[0], t->dfc1[0], t->all, t->dconv3[0]);
}

size_t conv3_weight_gradient(float scale, struct dense_tile *t, int64_t *sums)
{
    uint32_t live[128];
    return activation_backward(128, scale, t->conv3[0], t->dconv3[0], sums + LAYOUT_OF(conv3_bias), live) +
           product_weight_gradient(400, 120, 128, CONV3_PARTS, t->pool2[0][0], t->dconv3[0], live,
                                   sums + LAYOUT_OF(conv3));
}

void conv3_input_gradient(const struct layout *w, struct dense_tile *t)
{
    product_input_gradient(400, 120, 15, 128, CONV3_PARTS, w->conv3[0], t->dconv3[0], t->all, t->dpool2[0][0]);
}
