/* conv1: image (3, 32, 32) -> 6 channels of 28x28 -> ReLU, dropout, max-pool -> (6, 14, 14).
 *
 * Forward: 352,800 multiply-adds a sample. Lanes are pooled columns: rows are split into even and
 * odd columns, so that the four numbers of a pool window stand in the same lane of four vectors. 14 of 16
 * lanes are used. Several kept channels share each load; dropped channels are not computed.
 *
 * Backward (weights only): of the four numbers of a window one gets a gradient, and that only when
 * its ReLU was open: at most 88,200 multiply-adds. Those patches are listed, channel by channel; lanes
 * are the 15 numbers of a patch row.
 */
#include <string.h>

#include "kernels.h"
#include "vector.h"

enum {
    PARTS = 16 / LANES,                              /* vectors in a pooled row */
    GROUP = VECTOR_REGISTERS == 32 ? 6 : 2,          /* channels computed together */
    PATCHES = 14 * 14,
};

/* The windows of one vector of one pooled row, before bias: sum[channel][row][column parity]. */
KERNEL void windows(int channels, const float *image, const float *const *w, vec sum[GROUP][2][2])
{
    UNROLL for (int g = 0; g < channels; g++)
        UNROLL for (int k = 0; k < 4; k++)
            sum[g][k / 2][k % 2] = (vec){0};
    for (int in = 0; in < 3; in++)
        for (int ky = 0; ky < 5; ky++)
            UNROLL for (int row = 0; row < 2; row++) {
                const float *line = image + (in * 32 + ky + row) * 32;
                vec column[6]; /* of columns 2i, 2i + 1, ... 2i + 5 */
                UNROLL for (int k = 0; k < 6; k++)
                    column[k] = vec_load(line + k % 2 * 16 + k / 2);
                UNROLL for (int kx = 0; kx < 5; kx++)
                    UNROLL for (int g = 0; g < channels; g++) {
                        float weight = w[g][ky * 16 + kx * 3 + in];
                        sum[g][row][0] += column[kx] * weight;
                        sum[g][row][1] += column[kx + 1] * weight;
                    }
            }
}

/* Max-pool, bias, ReLU and scale. The first of equals wins; NaN wins over numbers. */
KERNEL void pool(vec sum[2][2], float bias, float scale, int first_patch, float *plane, uint16_t *from)
{
    vec best = sum[0][0];
    ivec winner = {0};
    UNROLL for (int k = 1; k < 4; k++) {
        vec here = sum[k / 2][k % 2];
        ivec better = (here > best) | (here != here);
        best = vec_select(better, here, best);
        winner = (better & (k / 2 * 32 * 3 + k % 2 * 3)) | (~better & winner);
    }
    vec_store(plane, vec_relu(best + bias) * scale);
    UNROLL for (int i = 0; i < LANES; i++)
        from[i] = (uint16_t)(winner[i] + first_patch + i * 6);
}

KERNEL void forward(int channels, const struct layout *w, const struct image_split *image, const int *list,
                    float scale, float planes[6][14][16], struct features *out)
{
    const float *weights[GROUP];
    UNROLL for (int g = 0; g < channels; g++)
        weights[g] = w->conv1[list[g]][0];
    for (int y = 0; y < 14; y++)
        for (int part = 0; part < PARTS; part++) {
            vec sum[GROUP][2][2];
            int x = part * LANES;
            windows(channels, &image->at[0][2 * y][0][x], weights, sum);
            UNROLL for (int g = 0; g < channels; g++)
                pool(sum[g], w->conv1_bias[list[g]], scale, (2 * y * 32 + 2 * x) * 3,
                     &planes[list[g]][y][x], &out->from1[list[g]][y][x]);
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

void conv1_forward(const struct layout *w, const struct image_split *image, unsigned kept, float scale,
                   float planes[6][14][16], struct features *out)
{
    int list[6], count = 0;
    for (unsigned rest = kept; rest != 0; rest &= rest - 1)
        list[count++] = __builtin_ctz(rest);
    for (int done = 0; done < count; done += GROUP)
        switch (count - done) {
        case 1: forward(1, w, image, list + done, scale, planes, out); break;
#if defined(__AVX512F__) || defined(__aarch64__)
        case 2: forward(2, w, image, list + done, scale, planes, out); break;
        case 3: forward(3, w, image, list + done, scale, planes, out); break;
        case 4: forward(4, w, image, list + done, scale, planes, out); break;
        case 5: forward(5, w, image, list + done, scale, planes, out); break;
#endif
        default: forward(GROUP, w, image, list + done, scale, planes, out); break;
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
    enum { SPAN = LANES > 8 ? LANES : 8 }; /* whole vectors, whole pixels */
    float *d = dpool1[0][0];
    const float *pool1 = features->pool1[0][0];
    vec sum[SPAN / LANES] = {{0}};
    for (int i = 0; i < 14 * 16 * 8; i += SPAN)
        UNROLL for (int k = 0; k < SPAN / LANES; k++) {
            vec here = vec_load(d + i + k * LANES) * scale;
            here = vec_select(vec_load(pool1 + i + k * LANES) > 0, here, (vec){0});
            vec_store(d + i + k * LANES, here);
            sum[k] += here;
        }
    for (int i = 0; i < SPAN; i++)
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
