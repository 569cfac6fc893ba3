/* Read top to bottom: a sample forward, a sample backward, what a tile's samples share, the update. "Chain" is an
 * accumulator that starts at +0 and takes one fmaf after the other. */
#include "definition.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "exact_sum.h"
#include "exp_log.h"

enum { CONV1_W, CONV1_B, CONV2_W, CONV2_B, CONV3_W, CONV3_B, FC1_W, FC1_B, FC2_W, FC2_B };

static int at(int parameter)
{
    return (int)lenet5_parameters[parameter].offset;
}

/* One sample: activations after ReLU and dropout, and the gradients before. */
struct sample {
    float image[3][32][32]; /* 2p - 255 of a pixel p: 255 times the number that it stands for */
    float pool1[6][14][14], pool2[16][5][5], conv3[120], fc1[84], logits[10];
    int from1[6][14][14], from2[16][5][5]; /* which of its window's four numbers won */
    float dlogits[10], dfc1[84], dconv3[120], dpool2[16][5][5], dpool1[6][14][14];
};

/* --- convolution and pool -------------------------------------------------------------------------- */

/* Even and odd parts make two: their sum and their difference. */
static void add_and_subtract(const float even[3], const float odd[3], float pairs[6])
{
    for (int k = 0; k < 3; k++) {
        pairs[2 * k] = even[k] + odd[k];
        pairs[2 * k + 1] = even[k] - odd[k];
    }
}

/* The first factors of four neighbours' eight products, of eight columns. */
static void make_factors(const float d[8], float factors[8])
{
    const float even[3] = {fmaf(-4.25f, d[4], d[2] + d[6]), fmaf(0.25f, d[2], fmaf(-1.25f, d[4], d[6])),
                           fmaf(4, d[2], fmaf(-5, d[4], d[6]))};
    const float odd[3] = {fmaf(-4.25f, d[3], d[1] + d[5]), fmaf(0.5f, d[1], fmaf(-2.5f, d[3], 2 * d[5])),
                          fmaf(2, d[1], fmaf(-2.5f, d[3], 0.5f * d[5]))};
    factors[0] = fmaf(5.25f, d[4] - d[2], d[0] - d[6]);
    add_and_subtract(even, odd, factors + 1);
    factors[7] = fmaf(5.25f, d[3] - d[5], d[7] - d[1]);
}

/* The second ones, of five weights. */
static void make_taps(const float g[5], float taps[8])
{
    static const float units[3] = {-2 / 9.0f, 1 / 90.0f, 2 / 45.0f};
    const float even[3] = {g[0] + g[2] + g[4], fmaf(16, g[4], fmaf(4, g[2], g[0])),
                           fmaf(16, g[0], fmaf(4, g[2], g[4]))};
    const float odd[3] = {g[1] + g[3], fmaf(8, g[3], 2 * g[1]), fmaf(8, g[1], 2 * g[3])};
    taps[0] = g[0];
    add_and_subtract(even, odd, taps + 1);
    for (int k = 0; k < 6; k++)
        taps[1 + k] *= units[k / 2];
    taps[7] = g[4];
}

/* The four neighbours, of the sums of their products. */
static void make_outputs(const float m[8], float y[4])
{
    float even[3], odd[3];
    for (int k = 0; k < 3; k++) {
        even[k] = m[1 + 2 * k] + m[2 + 2 * k];
        odd[k] = m[1 + 2 * k] - m[2 + 2 * k];
    }
    y[0] = m[0] + even[0] + even[1] + even[2];
    y[1] = fmaf(0.5f, odd[2], fmaf(2, odd[1], odd[0]));
    y[2] = fmaf(0.25f, even[2], fmaf(4, even[1], even[0]));
    y[3] = fmaf(0.125f, odd[2], fmaf(8, odd[1], odd[0])) + m[7];
}

/* Two neighbouring windows of 2x2 outputs of a 5x5 convolution whose inputs begin at x[0], planes of `side` x `side`;
 * only planes whose bit is set in `planes`. w: (planes, 5, 5), taken times unit. */
static void convolve_windows(const float *x, size_t side, unsigned planes, const float *w, float unit,
                             float windows[2][4])
{
    for (size_t row = 0; row < 2; row++) {
        float chains[8] = {0}, y[4];
        for (size_t in = 0; planes >> in != 0; in++)
            for (size_t ky = 0; planes >> in & 1 && ky < 5; ky++) {
                float factors[8], taps[8];
                make_factors(x + (in * side + row + ky) * side, factors);
                make_taps(w + (in * 5 + ky) * 5, taps);
                for (int k = 0; k < 8; k++)
                    chains[k] = fmaf(factors[k], taps[k] * unit, chains[k]);
            }
        make_outputs(chains, y);
        for (int k = 0; k < 4; k++)
            windows[k / 2][2 * row + (size_t)k % 2] = y[k];
    }
}

/* The largest, the first of equals; the first NaN, where there is one. */
static int pool(const float window[4])
{
    int best = 0;
    for (int k = 1; k < 4; k++)
        if (!(window[k] <= window[best]) && !isnan(window[best]))
            best = k;
    return best;
}

/* max(x, 0), and NaN stays NaN. */
static float relu(float x)
{
    return x < 0 ? 0 : x;
}

/* --- a sample forward -------------------------------------------------------------------------------- */

static bool keeps(const struct sample_mask *mask, enum dropout_layer layer, int element)
{
    return mask_keeps(mask, layer, (unsigned)element);
}

static void forward_convolutions(const float *w, const struct sample_mask *mask, const float scales[DROPOUT_LAYERS],
                                 struct sample *s)
{
    unsigned kept1 = (unsigned)mask->keep[DROPOUT_CONV1][0];
    float windows[2][4];
    memset(s->pool1, 0, sizeof s->pool1); /* dropped channels stay 0, and so does what they would send back */
    memset(s->pool2, 0, sizeof s->pool2);
    for (int c = 0; c < 6; c++)
        for (int y = 0; y < 14 && keeps(mask, DROPOUT_CONV1, c); y++)
            for (int x = 0; x < 14; x++) {
                if (x % 2 == 0)
                    convolve_windows(&s->image[0][2 * y][2 * x], 32, 7, w + at(CONV1_W) + c * 75, 1 / 255.0f, windows);
                const float *window = windows[x % 2];
                s->from1[c][y][x] = pool(window);
                s->pool1[c][y][x] = relu(window[s->from1[c][y][x]] + w[at(CONV1_B) + c]) * scales[DROPOUT_CONV1];
            }
    for (int c = 0; c < 16; c++)
        for (int y = 0; y < 5 && keeps(mask, DROPOUT_CONV2, c); y++)
            for (int x = 0; x < 5; x++) {
                int first = x < 4 ? x / 2 * 2 : 3; /* the last window is the second of two */
                if (x % 2 == 0)
                    convolve_windows(&s->pool1[0][2 * y][2 * first], 14, kept1, w + at(CONV2_W) + c * 150, 1, windows);
                const float *window = windows[x - first];
                s->from2[c][y][x] = pool(window);
                s->pool2[c][y][x] = relu(window[s->from2[c][y][x]] + w[at(CONV2_B) + c]) * scales[DROPOUT_CONV2];
            }
}

/* The sum of `count` products in chains of `length`, which are then added in order. */
static float product(int count, int length, const float *x, size_t x_stride, const float *w, size_t w_stride)
{
    float sum = 0;
    for (int first = 0; first < count; first += length) {
        float chain = 0;
        for (int i = first; i < first + length; i++)
            chain = fmaf(x[(size_t)i * x_stride], w[(size_t)i * w_stride], chain);
        sum = first > 0 ? sum + chain : chain;
    }
    return sum;
}

/* Of 400 inputs in eight chains: channels 2r and 2r + 1, cell by cell. */
static float product_of_cells(const float pool2[16][5][5], const float *w)
{
    float sum = 0;
    for (int r = 0; r < 8; r++) {
        float chain = 0;
        for (int cell = 0; cell < 25; cell++)
            for (int c = 2 * r; c < 2 * r + 2; c++)
                chain = fmaf(pool2[c][cell / 5][cell % 5], w[c * 25 + cell], chain);
        sum = r > 0 ? sum + chain : chain;
    }
    return sum;
}

static void forward_dense(const float *w, const struct sample_mask *mask, const float scales[DROPOUT_LAYERS],
                          struct sample *s)
{
    for (int o = 0; o < 120; o++) {
        float sum = product_of_cells((const float(*)[5][5])s->pool2, w + at(CONV3_W) + o * 400);
        s->conv3[o] = keeps(mask, DROPOUT_CONV3, o) ? relu(sum + w[at(CONV3_B) + o]) * scales[DROPOUT_CONV3] : 0;
    }
    for (int o = 0; o < 84; o++) {
        float sum = product(120, 15, s->conv3, 1, w + at(FC1_W) + o * 120, 1);
        s->fc1[o] = keeps(mask, DROPOUT_FC1, o) ? relu(sum + w[at(FC1_B) + o]) * scales[DROPOUT_FC1] : 0;
    }
    for (int o = 0; o < 10; o++)
        s->logits[o] = product(84, 21, s->fc1, 1, w + at(FC2_W) + o * 84, 1) + w[at(FC2_B) + o];
}

/* Cross-entropy of softmax against the label; dlogits is its gradient. */
static float loss_of(struct sample *s, int label)
{
    float largest = s->logits[0], sum = 0;
    for (int k = 1; k < 10; k++)
        largest = s->logits[k] > largest ? s->logits[k] : largest;
    for (int k = 0; k < 10; k++) {
        s->dlogits[k] = defined_exp(s->logits[k] - largest);
        sum += s->dlogits[k];
    }
    for (int k = 0; k < 10; k++)
        s->dlogits[k] = s->dlogits[k] / sum - (k == label ? 1.0f : 0.0f);
    return defined_log(sum) + (largest - s->logits[label]);
}

static float forward(const float *w, const uint8_t *record, const struct sample_mask *mask,
                     const float scales[DROPOUT_LAYERS], struct sample *s)
{
    for (int i = 0; i < LENET5_PIXELS; i++)
        s->image[i / 1024][i / 32 % 32][i % 32] = (float)(2 * record[1 + i] - 255);
    forward_convolutions(w, mask, scales, s);
    forward_dense(w, mask, scales, s);
    return loss_of(s, record[0]);
}

/* --- a sample backward ------------------------------------------------------------------------------- */

/* From the gradient after dropout and ReLU to the one before: y is what came out. */
static float activation_backward(float y, float scale, float dy)
{
    return y > 0 ? dy * scale : 0;
}

/* A window's gradient goes to the 6x6 numbers of pool1 that it saw: a chain over the live channels, for each number. */
static void window_backward(const float *w, const struct sample *s, int y, int x, float seen[6][6][6])
{
    memset(seen, 0, 6 * sizeof *seen);
    for (int c = 0; c < 16; c++) {
        float d = s->dpool2[c][y][x];
        int top = s->from2[c][y][x] / 2, left = s->from2[c][y][x] % 2;
        for (int in = 0; in < 6 && d != 0; in++)
            for (int k = 0; k < 25; k++) {
                float *to = &seen[in][top + k / 5][left + k % 5];
                *to = fmaf(w[at(CONV2_W) + c * 150 + in * 25 + k], d, *to);
            }
    }
}

static void backward(const float *w, const float scales[DROPOUT_LAYERS], struct sample *s)
{
    for (int i = 0; i < 84; i++)
        s->dfc1[i] = activation_backward(s->fc1[i], scales[DROPOUT_FC1],
                                         product(10, 10, s->dlogits, 1, w + at(FC2_W) + i, 84));
    for (int i = 0; i < 120; i++)
        s->dconv3[i] = activation_backward(s->conv3[i], scales[DROPOUT_CONV3],
                                           product(84, 21, s->dfc1, 1, w + at(FC1_W) + i, 120));
    for (int i = 0; i < 400; i++) {
        float *d = &s->dpool2[0][0][0] + i;
        *d = activation_backward((&s->pool2[0][0][0])[i], scales[DROPOUT_CONV2],
                                 product(120, 15, s->dconv3, 1, w + at(CONV3_W) + i, 400));
    }
    memset(s->dpool1, 0, sizeof s->dpool1);
    for (int window = 0; window < 25; window++) {
        float seen[6][6][6];
        int y = window / 5, x = window % 5;
        window_backward(w, s, y, x, seen);
        for (int i = 0; i < 6 * 36; i++)
            s->dpool1[i / 36][2 * y + i / 6 % 6][2 * x + i % 6] += seen[i / 36][i / 6 % 6][i % 6];
    }
    for (int i = 0; i < 6 * 196; i++) {
        float *d = &s->dpool1[0][0][0] + i;
        *d = activation_backward((&s->pool1[0][0][0])[i], scales[DROPOUT_CONV1], *d);
    }
}

/* --- sums -------------------------------------------------------------------------------------------- */

/* A term of an exact sum: rounded to a whole number of units, ties to even. */
static void add_term(float term, int64_t *sum, struct definition_sums *sums)
{
    if (fabsf(term) < EXACT_LIMIT)
        *sum += (int64_t)rint((double)term / EXACT_UNIT);
    else
        sums->refused++;
}

/* Up to 32 numbers, `stride` apart, those that lack as if they were 0: 16 apart first, then 8, 4, 2 and 1. */
static float tree(int count, const float *x)
{
    float t[32] = {0};
    memcpy(t, x, (size_t)count * sizeof *x);
    for (int apart = 16; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            t[i] += t[i + apart];
    return t[0];
}

/* conv2: each sample's own terms. A chain over the windows whose gradient is not zero. */
static void add_conv2(const struct sample *s, struct definition_sums *sums)
{
    for (int c = 0; c < 16; c++) {
        add_term(tree(25, s->dpool2[c][0]), &sums->gradient[at(CONV2_B) + c], sums);
        for (int i = 0; i < 150; i++) {
            float chain = 0;
            for (int window = 0; window < 25; window++) {
                int y = window / 5, x = window % 5, from = s->from2[c][y][x];
                if (s->dpool2[c][y][x] != 0)
                    chain = fmaf(s->pool1[i / 25][2 * y + from / 2 + i / 5 % 5][2 * x + from % 2 + i % 5],
                                 s->dpool2[c][y][x], chain);
            }
            add_term(chain, &sums->gradient[at(CONV2_W) + c * 150 + i], sums);
        }
    }
}

/* conv1: each sample's own terms. Eight chunks of 25 windows (the last of 21), each a chain over the windows whose
 * gradient is not zero; the chunks are added in order. */
static void add_conv1(const struct sample *s, struct definition_sums *sums)
{
    for (int c = 0; c < 6; c++) {
        float weights[75] = {0}, bias = 0;
        for (int first = 0; first < 196; first += 25) {
            int count = first + 25 < 196 ? 25 : 196 - first;
            bias += tree(count, s->dpool1[c][0] + first);
            for (int i = 0; i < 75; i++) {
                float chain = 0;
                for (int window = first; window < first + count; window++) {
                    int y = window / 14, x = window % 14, from = s->from1[c][y][x];
                    if (s->dpool1[c][y][x] != 0)
                        chain = fmaf(s->image[i / 25][2 * y + from / 2 + i / 5 % 5][2 * x + from % 2 + i % 5],
                                     s->dpool1[c][y][x], chain);
                }
                weights[i] += chain;
            }
        }
        add_term(bias, &sums->gradient[at(CONV1_B) + c], sums);
        for (int i = 0; i < 75; i++)
            add_term(weights[i] * (1 / 255.0f), &sums->gradient[at(CONV1_W) + c * 75 + i], sums);
    }
}

/* A dense layer, (out, in): the terms are a tile's. Chains, and sums, over its samples. */
static void add_dense(int count, const struct sample *samples, int weights, int out, int in, size_t x, size_t dy,
                      struct definition_sums *sums)
{
    for (int o = 0; o < out; o++) {
        float bias = 0;
        for (int s = 0; s < count; s++)
            bias += ((const float *)((const char *)&samples[s] + dy))[o];
        add_term(bias, &sums->gradient[at(weights + 1) + o], sums);
        for (int i = 0; i < in; i++) {
            float chain = 0;
            for (int s = 0; s < count; s++)
                chain = fmaf(((const float *)((const char *)&samples[s] + x))[i],
                             ((const float *)((const char *)&samples[s] + dy))[o], chain);
            add_term(chain, &sums->gradient[at(weights) + o * in + i], sums);
        }
    }
}

void definition_tile(const float *weights, int count, const uint8_t *const *records, const struct sample_mask *masks,
                     const float scales[DROPOUT_LAYERS], struct definition_sums *sums)
{
    struct sample samples[TILE];
    for (int s = 0; s < count; s++) {
        float loss = forward(weights, records[s], &masks[s], scales, &samples[s]);
        add_term(loss, &sums->loss, sums);
        backward(weights, scales, &samples[s]);
        add_conv2(&samples[s], sums);
        add_conv1(&samples[s], sums);
    }
#define OF(member) offsetof(struct sample, member)
    add_dense(count, samples, CONV3_W, 120, 400, OF(pool2), OF(dconv3), sums);
    add_dense(count, samples, FC1_W, 84, 120, OF(conv3), OF(dfc1), sums);
    add_dense(count, samples, FC2_W, 10, 84, OF(fc1), OF(dlogits), sums);
}

/* --- update and evaluation --------------------------------------------------------------------------- */

void definition_update(const struct definition_sums *sums, size_t samples, float learning_rate, float momentum,
                       float *velocity, float *weights)
{
    double unit = EXACT_UNIT * (1 / (double)samples);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        float gradient = (float)((double)sums->gradient[i] * unit);
        velocity[i] = fmaf(momentum, velocity[i], gradient);
        weights[i] = fmaf(-learning_rate, velocity[i], weights[i]);
    }
}

void definition_evaluate(const float *weights, const uint8_t *record, struct definition_sums *sums, int64_t *correct)
{
    struct sample s;
    const struct masks keep_all = masks_make(0, 0, 0);
    struct sample_mask mask;
    masks_draw(&keep_all, 0, 0, 1, &mask);
    add_term(forward(weights, record, &mask, keep_all.scale, &s), &sums->loss, sums);
    int best = 0;
    for (int k = 1; k < 10; k++)
        best = s.logits[k] > s.logits[best] ? k : best;
    *correct += best == record[0];
}
