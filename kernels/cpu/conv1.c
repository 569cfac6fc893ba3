/* conv1: image (3, 32, 32) -> 6 channels of 28x28 -> ReLU, dropout, max-pool -> (6, 14, 14).
 *
 * Forward. Each lane has two pool windows side by side, so two rows of four neighbours, which share work by winograd.h:
 * 141,120 multiply-adds a sample instead of 352,800. A row of 14 windows takes seven lanes; of 16 lanes one half has
 * row y, the other row y + 7, and one lane of each half is not used. Dropped channels are not computed. The factors of
 * columns are made row by row (image.c), those of weights once a step.
 *
 * Backward (weights only). Of the four numbers of a window one gets a gradient, and that only when
 * its ReLU was open: at most 88,200 multiply-adds. Those patches are listed, channel by channel; lanes
 * are the 15 numbers of a patch row. Every 25 windows have a sum of their own; a sample's gradient is the sum of those.
 */
#include <string.h>

#include "exact.h"
#include "kernels.h"
#include "windows.h"

enum {
    PATCHES = 14 * 14,
    CHUNK = 25, /* windows that are summed together */
    CHUNKS = (PATCHES + CHUNK - 1) / CHUNK,
};

void conv1_pack(const struct layout *w, struct conv1_packed *packed)
{
    for (int out = 0; out < 6; out++)
        for (int ky = 0; ky < 5; ky++)
            for (int in = 0; in < 3; in++) {
                float g[5];
                for (int kx = 0; kx < 5; kx++)
                    g[kx] = w->conv1[out][ky][kx * 3 + in];
                winograd_weights(g, packed->at[out][in][ky]);
                for (int k = 0; k < WINOGRAD_PRODUCTS; k++)
                    packed->at[out][in][ky][k] *= 1 / 255.0f; /* pixels are 255 times too large: image.c */
            }
}

/* Rows y and y + 7 of windows. image: the rows that they see. */
KERNEL void forward(int channels, const struct layout *w, const struct conv1_packed *packed,
                    const float *const *image, const int *list, float scale, int y, struct features *out)
{
    const float *weights[WINDOW_GROUP];
    UNROLL for (int g = 0; g < channels; g++)
        weights[g] = packed->at[list[g]][0][0];
    for (int part = 0; part < PARTS; part += WINDOW_SPAN) {
        window_sums sums;
        window_sum(channels, part * LANES, 3, NULL, image, weights, sums);
        UNROLL for (int i = 0; i < WINDOW_SPAN; i++)
            UNROLL for (int g = 0; g < channels; g++) {
                int lane = (part + i) * LANES, c = list[g];
                float *values[2] = {out->pool1[c] + POOL1_PLACE(y, 0) + lane, out->pool1[c] + POOL1_PLACE(y, 1) + lane};
                window_pool(sums, g, i, w->conv1_bias[c], scale, 3, 32 * 3, values, out->from1[c][y][0] + 2 * lane);
            }
    }
}

void conv1_forward(const struct layout *w, const struct conv1_packed *packed, const uint8_t *pixels, unsigned kept,
                   float scale, struct features *out)
{
    struct image_columns columns;
    int list[6], count = list_channels(kept, list);
    for (int y = 0; y < 7; y++) {
        const float *rows[WINDOW_ROWS];
        image_columns(pixels, y == 0 ? 0 : 2 * y + IMAGE_ROWS - 2, 2 * y + IMAGE_ROWS, &columns);
        for (int i = 0; i < IMAGE_ROWS; i++)
            rows[i] = columns.at[(2 * y + i) % IMAGE_ROWS][0][0];
        for (int done = 0, next; done < count; done += next) {
            next = window_group(count - done);
/* Not a loop over `channels`: each is a function of its own, with its sums in registers. */
#define TAKE(channels) \
    if ((channels) <= WINDOW_GROUP && (channels) == next) \
    forward(channels, w, packed, rows, list + done, scale, y, out)
            TAKE(1);
            TAKE(2);
            TAKE(3);
#undef TAKE
        }
    }
}

/* The gradients of a channel's windows before ReLU and dropout, one after the other: at the winners. Zeros fill the
 * last chunk up. */
struct windows {
    _Alignas(64) float at[CHUNKS * CHUNK]; /* the padding of the last row fits, too */
    uint16_t patches[CHUNKS * CHUNK]; /* where in image_pixels the winner's patch starts, if there is such a window */
    uint32_t live[CHUNKS + 1]; /* of a chunk's windows, a bit each: whether its gradient is not zero; the last is 0 */
};

static void activation_backward(const float pool1[POOL1_PLANE], const uint16_t from[7][2][16], float scale,
                                float dpool1[14][16], struct windows *windows)
{
    static const uint16_t starts[16] = {0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78}; /* of a row's windows */
    memset(windows->live, 0, sizeof windows->live);
    UNROLL for (int y = 0; y < 14; y++) {
        uint32_t bits = 0;
        vec row[PARTS];
        vec_interleave(pool1 + POOL1_PLACE(y, 0), pool1 + POOL1_PLACE(y, 1), row);
        UNROLL for (int k = 0; k < PARTS; k++) {
            int x = k * LANES;
            vec d = vec_select(row[k] > 0, vec_load(dpool1[y] + x) * scale, (vec){0});
            vec_store(windows->at + y * 14 + x, d); /* the next row is written over the padding */
            words patches = words_load(from[y % 7][y / 7] + x) + words_load(starts + x) + (uint16_t)(2 * y * 32 * 3);
            words_store(windows->patches + y * 14 + x, patches);
            bits |= vec_live(d) << x;
        }
        uint64_t placed = (uint64_t)(bits & 0x3fff) << y * 14 % CHUNK;
        windows->live[y * 14 / CHUNK] |= placed & ((1u << CHUNK) - 1);
        windows->live[y * 14 / CHUNK + 1] |= (uint32_t)(placed >> CHUNK);
    }
    memset(windows->at + PATCHES, 0, (CHUNKS * CHUNK - PATCHES) * sizeof *windows->at);
}

/* The gradient of the channel's bias: of each chunk, windows 16, 8, 4, 2 and 1 apart are added; then the chunks.
 * Inlined, GCC makes what it loads of what was just stored, lane by lane. */
static __attribute__((noinline)) float bias_gradient(const struct windows *windows)
{
    eight sum[CHUNKS]; /* lanes: windows, then chunks */
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
        eight part[3];
        UNROLL for (int k = 0; k < 3; k++)
            eight_load(windows->at + chunk * CHUNK + k * 8, &part[k]);
        part[0] += part[2];
        part[1][0] += windows->at[chunk * CHUNK + 24];
        sum[chunk] = part[0] + part[1];
    }
    transpose_eight(sum);
    UNROLL for (int apart = 4; apart > 0; apart /= 2)
        UNROLL for (int i = 0; i < apart; i++)
            sum[i] += sum[i + apart];
    float total = 0;
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++)
        total += sum[0][chunk];
    return total;
}

/* The weight gradient of one channel; the sixteenth column is padding. */
static void channel_weight_gradient(const float *pixels, const struct windows *windows, float gradient[5][16])
{
    static const float pixel[16] = {[0 ... 14] = 1 / 255.0f}; /* pixels are 255 times too large: image.c */
    vec total[5][PARTS];
    UNROLL for (int k = 0; k < 5 * PARTS; k++)
        total[k / PARTS][k % PARTS] = (vec){0};
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        vec sum[5][PARTS];
        UNROLL for (int k = 0; k < 5 * PARTS; k++)
            sum[k / PARTS][k % PARTS] = (vec){0};
        for (uint32_t live = windows->live[chunk]; live != 0; live &= live - 1) {
            int window = chunk * CHUNK + __builtin_ctz(live);
            const float *patch = pixels + windows->patches[window];
            UNROLL for (int k = 0; k < 5 * PARTS; k++)
                add_product(vec_load(patch + k / PARTS * 96 + k % PARTS * LANES), windows->at[window],
                            &sum[k / PARTS][k % PARTS]);
        }
        UNROLL for (int k = 0; k < 5 * PARTS; k++)
            total[k / PARTS][k % PARTS] += sum[k / PARTS][k % PARTS];
    }
    UNROLL for (int k = 0; k < 5 * PARTS; k++)
        vec_store(gradient[k / PARTS] + k % PARTS * LANES,
                  total[k / PARTS][k % PARTS] * vec_load(pixel + k % PARTS * LANES));
}

size_t conv1_weight_gradient(const struct image_pixels *image, const struct features *features, unsigned kept,
                             float scale, float dpool1[6][14][16], int64_t *sums)
{
    struct windows windows;
    _Alignas(64) float bias[16] = {0}, gradient[5][16];
    ivec room = {0};
    for (; kept != 0; kept &= kept - 1) {
        int c = __builtin_ctz(kept);
        activation_backward(features->pool1[c], features->from1[c], scale, dpool1[c], &windows);
        bias[c] = bias_gradient(&windows);
        channel_weight_gradient(image->at[0][0], &windows, gradient);
        UNROLL for (int k = 0; k < 5 * 16; k += LANES)
            exact_add(gradient[0] + k, sums + LAYOUT_OF(conv1) + c * (5 * 16) + k, &room);
    }
    UNROLL for (int k = 0; k < 16; k += LANES)
        exact_add(bias + k, sums + LAYOUT_OF(conv1_bias) + k, &room);
    return (size_t)exact_refused(room);
}
