/* conv1: image (3, 32, 32) -> 6 channels of 28x28 -> ReLU, dropout, max-pool -> (6, 14, 14).
 *
 * Forward. Lanes are pooled columns, 14 of 16 used: the four numbers of a pool window stand in the same lane
 * of four vectors. Dropped channels are not computed. The two neighbours of a row, y0 from columns d0..d4 and
 * y1 from d1..d5, share work (Winograd 1980; F(2,3) for taps 0-2 and F(2,2) for taps 3-4):
 *
 *   A = (d0-d2) g0 + (d3-d4) g3               B = (d1+d2) (g0+g1+g2)/2 + d4 (g3+g4)
 *   D = (d1-d3) g2 + (d4-d5) g4               C = (d2-d1) (g0-g1+g2)/2
 *   y0 = A + B + C,  y1 = B - C - D
 *
 * 7 multiply-adds instead of 10: 246,960 a sample instead of 352,800. The sums of columns are made once an
 * image (image.c), those of weights once a step; A, B, C and D are summed over channels and rows first.
 *
 * Backward (weights only). Of the four numbers of a window one gets a gradient, and that only when
 * its ReLU was open: at most 88,200 multiply-adds. Those patches are listed, channel by channel; lanes
 * are the 15 numbers of a patch row.
 */
#include <string.h>

#include "kernels.h"
#include "vector.h"

enum {
    PARTS = 16 / LANES,               /* vectors in a pooled row */
    SPAN = PARTS > 1 ? 2 : 1,         /* of them, computed together */
    GROUP = 2,                        /* channels computed together */
    REGISTERS = VECTOR_REGISTERS / 2, /* for sums: they hide the latency of multiply-adds, and none is spilled */
    PATCHES = 14 * 14,
};

void conv1_pack(const struct layout *w, struct conv1_packed *packed)
{
    for (int out = 0; out < 6; out++)
        for (int ky = 0; ky < 5; ky++)
            for (int in = 0; in < 3; in++) {
                float g[5], *at = packed->at[out][in][ky];
                for (int kx = 0; kx < 5; kx++)
                    g[kx] = w->conv1[out][ky][kx * 3 + in];
                at[0] = g[0];
                at[1] = (g[0] + g[1] + g[2]) / 2;
                at[2] = (g[0] - g[1] + g[2]) / 2;
                at[3] = g[2];
                at[4] = g[3];
                at[5] = g[3] + g[4];
                at[6] = g[4];
            }
}

enum { A, B, C, D, SUMS };

/* The four numbers of SPAN vectors of pool windows, before bias: y[channel][row][0, 1][vector]. As many of the
 * sums A to D are made in one pass over the rows as there are registers for. */
KERNEL void windows(int channels, const float *image, const float *const *w, vec y[GROUP][2][2][SPAN])
{
    static const int into[7] = {A, B, C, D, A, B, D};
    const int vectors = 2 * SPAN, room = REGISTERS / (channels * vectors), together = room < SUMS ? room : SUMS;
    UNROLL for (int first = A; first < SUMS; first += together) {
        vec sum[SUMS][GROUP][2 * SPAN];
        UNROLL for (int k = 0; k < together * channels * vectors; k++)
            sum[first + k / (channels * vectors)][k / vectors % channels][k % vectors] = (vec){0};
        for (int in = 0; in < 3; in++)
            ROLLED for (int ky = 0; ky < 5; ky++) {
                const float *line[2];
                UNROLL for (int row = 0; row < 2; row++)
                    line[row] = unrelated(image + (in * 32 + ky + row) * (7 * 16));
                UNROLL for (int k = 0; k < 7; k++) {
                    if (into[k] < first || into[k] >= first + together)
                        continue;
                    UNROLL for (int v = 0; v < vectors; v++) {
                        vec columns = vec_keep(vec_load(line[v / SPAN] + k * 16 + v % SPAN * LANES));
                        UNROLL for (int g = 0; g < channels; g++)
                            sum[into[k]][g][v] += columns * w[g][(in * 5 + ky) * 8 + k];
                    }
                }
            }
        UNROLL for (int k = 0; k < together * channels * vectors; k++) {
            int which = first + k / (channels * vectors), g = k / vectors % channels, v = k % vectors;
            vec here = sum[which][g][v], *y0 = &y[g][v / SPAN][0][v % SPAN], *y1 = &y[g][v / SPAN][1][v % SPAN];
            switch (which) {
            case A: *y0 = here; break;
            case B: *y0 += here, *y1 = here; break;
            case C: *y0 += here, *y1 -= here; break;
            case D: *y1 -= here; break;
            }
        }
    }
}

/* Where in image_pixels the patches of a pooled row of windows start. */
static const int32_t patch_starts[16] = {0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78, 84, 90};

/* Max-pool, bias, ReLU and scale. The first of equals wins. A broken weight makes all four NaN, and NaN
 * comes through. */
KERNEL void pool(vec sum[2][2][SPAN], int at, float bias, float scale, ivec starts, float *plane, uint16_t *from)
{
    vec best = sum[0][0][at];
    ivec winner = {0};
    UNROLL for (int k = 1; k < 4; k++) {
        vec here = sum[k / 2][k % 2][at];
        ivec better = ~(here <= best);
        best = vec_select(better, here, best);
        winner = (better & (k / 2 * 32 * 3 + k % 2 * 3)) | (~better & winner);
    }
    vec_store(plane, vec_relu(best + bias) * scale);
    vec_store_words(from, winner + starts);
}

KERNEL void forward(int channels, const struct layout *w, const struct conv1_packed *packed,
                    const struct image_columns *image, const int *list, float scale,
                    float planes[6][14][16], struct features *out)
{
    const float *weights[GROUP];
    UNROLL for (int g = 0; g < channels; g++)
        weights[g] = packed->at[list[g]][0][0];
    for (int y = 0; y < 14; y++)
        for (int part = 0; part < PARTS; part += SPAN) {
            vec sum[GROUP][2][2][SPAN];
            windows(channels, &image->at[0][2 * y][0][part * LANES], weights, sum);
            UNROLL for (int i = 0; i < SPAN; i++) {
                int x = (part + i) * LANES;
                ivec starts = (ivec)vec_load((const float *)patch_starts + x) + 2 * y * 32 * 3;
                UNROLL for (int g = 0; g < channels; g++)
                    pool(sum[g], i, w->conv1_bias[list[g]], scale, starts,
                         &planes[list[g]][y][x], &out->from1[list[g]][y][x]);
            }
        }
}

static void interleave(unsigned kept, float planes[6][14][16], float pool1[14][16][8])
{
    static const float zeros[16];
    for (int y = 0; y < 14; y++) {
        const float *plane[8];
        for (unsigned c = 0; c < 8; c++)
            plane[c] = c < 6 && kept >> c & 1 ? planes[c][y] : zeros;
        for (int x = 0; x < 16; x++)
            for (int c = 0; c < 8; c++)
                pool1[y][x][c] = plane[c][x];
    }
}

void conv1_forward(const struct layout *w, const struct conv1_packed *packed,
                   const struct image_columns *image, unsigned kept, float scale,
                   float planes[6][14][16], struct features *out)
{
    int list[6], count = 0;
    for (unsigned rest = kept; rest != 0; rest &= rest - 1)
        list[count++] = __builtin_ctz(rest);
    for (int done = 0; done < count;) {
        int left = count - done, channels = left < GROUP ? left : GROUP;
        switch (channels) {
        case 1: forward(1, w, packed, image, list + done, scale, planes, out); break;
        default: forward(GROUP, w, packed, image, list + done, scale, planes, out); break;
        }
        done += channels;
    }
    interleave(kept, planes, out->pool1);
}

/* A patch that gets a gradient. */
struct patch {
    float gradient;
    uint32_t start; /* in image_pixels */
};

static int list_patches(const float *gradient, const uint16_t *from, struct patch *list)
{
    int count = 0;
    for (int y = 0; y < 14; y++)
        for (int x = 0; x < 14; x++) {
            float g = gradient[(y * 16 + x) * 8];
            list[count] = (struct patch){g, from[y * 16 + x]};
            count += g != 0;
        }
    return count;
}

/* dpool1 becomes the gradient before ReLU and dropout, at the winners. */
static void activation_backward(const struct features *features, float scale, float dpool1[14][16][8],
                                float *bias)
{
    enum { STEP = LANES > 8 ? LANES : 8 }; /* whole vectors, whole pixels */
    float *d = dpool1[0][0];
    const float *pool1 = features->pool1[0][0];
    vec sum[STEP / LANES] = {{0}};
    for (int i = 0; i < 14 * 16 * 8; i += STEP)
        UNROLL for (int k = 0; k < STEP / LANES; k++) {
            vec here = vec_load(d + i + k * LANES) * scale;
            here = vec_select(vec_load(pool1 + i + k * LANES) > 0, here, (vec){0});
            vec_store(d + i + k * LANES, here);
            sum[k] += here;
        }
    for (int i = 0; i < STEP; i++)
        bias[i % 8] += sum[i / LANES][i % LANES];
}

/* The weight gradient of one channel. */
static void channel_weights(const float *pixels, const struct patch *list, int patches, float gradient[5][16])
{
    vec sum[5][PARTS];
    UNROLL for (int k = 0; k < 5 * PARTS; k++)
        sum[k / PARTS][k % PARTS] = vec_load(gradient[k / PARTS] + k % PARTS * LANES);
    for (int p = 0; p < patches; p++) {
        const float *patch = pixels + list[p].start;
        UNROLL for (int k = 0; k < 5 * PARTS; k++)
            sum[k / PARTS][k % PARTS] += vec_load(patch + k / PARTS * 96 + k % PARTS * LANES) *
                                         list[p].gradient;
    }
    UNROLL for (int k = 0; k < 5 * PARTS; k++)
        vec_store(gradient[k / PARTS] + k % PARTS * LANES, sum[k / PARTS][k % PARTS]);
}

void conv1_weights(const struct image_pixels *image, const struct features *features, unsigned kept,
                   float scale, float dpool1[14][16][8], struct layout *gradient)
{
    activation_backward(features, scale, dpool1, gradient->conv1_bias);
    for (; kept != 0; kept &= kept - 1) {
        int c = __builtin_ctz(kept);
        struct patch list[PATCHES + 1];
        int patches = list_patches(&dpool1[0][0][c], features->from1[c][0], list);
        channel_weights(image->at[0][0], list, patches, gradient->conv1[c]);
    }
}
