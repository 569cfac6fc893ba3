/* walk.h - a tile's way through the layers of the CPU engine, each timed and its multiply-adds counted.
 *
 * The same calls in the same order as kernels/cpu/tile.c, so that they leave the same sums; bench/step
 * checks that they do.
 */
#ifndef DTRAIN_BENCH_WALK_H
#define DTRAIN_BENCH_WALK_H

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "exact_sum.h"
#include "kernels/cpu/tile.h"

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A tile on its way through the layers. A layer's function is about sample s, or about the whole tile. */
struct walk {
    struct tile *tile;
    struct layout *weights;
    struct tile_input input;
    int32_t labels[TILE];
    int64_t *sums;
};

static unsigned kept(const struct walk *w, int s, enum dropout_layer layer)
{
    return (unsigned)w->input.masks[s].keep[layer][0];
}

static void columns(struct walk *w, int s)
{
    image_columns(w->input.records[s] + 1, &w->tile->columns);
}

static void conv1_out(struct walk *w, int s)
{
    conv1_forward(w->weights, &w->tile->conv1, &w->tile->columns, kept(w, s, DROPOUT_CONV1),
                  w->input.scales[DROPOUT_CONV1], &w->tile->planes, &w->tile->features[s]);
}

static void conv2_out(struct walk *w, int s)
{
    conv2_forward(w->weights, &w->tile->conv2, &w->tile->planes, kept(w, s, DROPOUT_CONV1),
                  kept(w, s, DROPOUT_CONV2), w->input.scales[DROPOUT_CONV2], w->tile->dense.pool2[s],
                  &w->tile->features[s]);
}

static void conv3_out(struct walk *w, int s)
{
    (void)s;
    conv3_forward(w->weights, w->input.masks, w->input.scales[DROPOUT_CONV3], &w->tile->dense);
}

static void fc1_out(struct walk *w, int s)
{
    (void)s;
    fc1_forward(w->weights, w->input.masks, w->input.scales[DROPOUT_FC1], &w->tile->dense);
}

static void fc2_out(struct walk *w, int s)
{
    (void)s;
    fc2_forward(w->weights, &w->tile->dense);
}

static void loss(struct walk *w, int s)
{
    (void)s;
    float losses[TILE];
    softmax_loss(w->tile->dense.logits, w->labels, losses);
}

static void fc2_dw(struct walk *w, int s)
{
    (void)s;
    fc2_weights(&w->tile->dense, w->sums);
}

static void fc2_dx(struct walk *w, int s)
{
    (void)s;
    fc2_input(w->weights, &w->tile->dense);
}

static void fc1_dw(struct walk *w, int s)
{
    (void)s;
    fc1_weights(w->input.scales[DROPOUT_FC1], &w->tile->dense, w->sums);
}

static void fc1_dx(struct walk *w, int s)
{
    (void)s;
    fc1_input(w->weights, &w->tile->dense);
}

static void conv3_dw(struct walk *w, int s)
{
    (void)s;
    conv3_weights(w->input.scales[DROPOUT_CONV3], &w->tile->dense, w->sums);
}

static void conv3_dx(struct walk *w, int s)
{
    (void)s;
    conv3_input(w->weights, &w->tile->dense);
}

static void conv2_dw(struct walk *w, int s)
{
    conv2_weights(&w->tile->features[s], w->tile->dense.pool2[s], kept(w, s, DROPOUT_CONV2),
                  w->input.scales[DROPOUT_CONV2], w->tile->dense.dpool2[s], &w->tile->twice, w->sums);
}

static void conv2_dx(struct walk *w, int s)
{
    conv2_input(&w->tile->conv2, &w->tile->features[s], w->tile->dense.dpool2[s], w->tile->dpool1);
}

static void pixels(struct walk *w, int s)
{
    image_pixels(w->input.records[s] + 1, &w->tile->pixels);
}

static void conv1_dw(struct walk *w, int s)
{
    conv1_weights(&w->tile->pixels, &w->tile->features[s], kept(w, s, DROPOUT_CONV1),
                  w->input.scales[DROPOUT_CONV1], w->tile->dpool1, w->sums);
}

/* Multiply-adds really done for a sample; padding lanes do not count. */
static size_t conv1_out_done(const struct walk *w, int s)
{
    return (size_t)__builtin_popcount(kept(w, s, DROPOUT_CONV1)) * 28 * 14 * 75 / 5 * 7;
}

static size_t conv2_out_done(const struct walk *w, int s)
{
    return (size_t)__builtin_popcount(kept(w, s, DROPOUT_CONV1)) * 16 * 10 * 5 * 25 / 5 * 7;
}

static size_t live(const float *gradient, int units)
{
    size_t count = 0;
    for (int u = 0; u < units; u++)
        count += gradient[u] != 0;
    return count;
}

static size_t conv2_back_done(const struct walk *w, int s) /* after conv2_weights */
{
    return live(w->tile->dense.dpool2[s][0], 25 * 16) * 6 * 25;
}

static size_t conv1_dw_done(const struct walk *w, int s)
{
    size_t live = 0;
    for (int y = 0; y < 14; y++)
        for (int x = 0; x < 14; x++)
            for (int c = 0; c < 6; c++)
                live += w->tile->features[s].pool1[y][x][c] > 0 && w->tile->dpool1[y][x][c] != 0;
    return live * 3 * 25;
}

static size_t conv3_back_done(const struct walk *w, int s) /* after conv3_weights */
{
    return live(w->tile->dense.dconv3[s], 120) * 400;
}

static size_t fc1_back_done(const struct walk *w, int s) /* after fc1_weights */
{
    return live(w->tile->dense.dfc1[s], 84) * 120;
}

/* In the order they run. Neighbours of one sample run together, sample by sample. */
static const struct layer {
    const char *name, *pass;
    void (*run)(struct walk *walk, int s);
    bool of_sample;
    size_t dense;                                        /* multiply-adds of a sample with nothing skipped */
    size_t (*done)(const struct walk *walk, int s); /* NULL: all of them */
} layers[] = {
    {"image", "columns", columns, true, 0, NULL},
    {"conv1", "forward", conv1_out, true, 352800, conv1_out_done},
    {"conv2", "forward", conv2_out, true, 240000, conv2_out_done},
    {"conv3", "forward", conv3_out, false, 48000, NULL},
    {"fc1", "forward", fc1_out, false, 10080, NULL},
    {"fc2", "forward", fc2_out, false, 840, NULL},
    {"softmax", "loss", loss, false, 0, NULL},
    {"fc2", "weights", fc2_dw, false, 840, NULL},
    {"fc2", "input", fc2_dx, false, 840, NULL},
    {"fc1", "weights", fc1_dw, false, 10080, fc1_back_done},
    {"fc1", "input", fc1_dx, false, 10080, fc1_back_done},
    {"conv3", "weights", conv3_dw, false, 48000, conv3_back_done},
    {"conv3", "input", conv3_dx, false, 48000, conv3_back_done},
    {"conv2", "weights", conv2_dw, true, 240000, conv2_back_done},
    {"conv2", "input", conv2_dx, true, 240000, conv2_back_done},
    {"image", "pixels", pixels, true, 0, NULL},
    {"conv1", "weights", conv1_dw, true, 352800, conv1_dw_done},
};
enum { LAYERS = sizeof layers / sizeof *layers, MASKS = LAYERS, UPDATE, TIMES };

struct times {
    double seconds[TIMES];
    size_t done[LAYERS];
};

static void run_layer(struct walk *w, int l, int s, struct times *times)
{
    double start = seconds();
    layers[l].run(w, s);
    times->seconds[l] += seconds() - start;
    for (int i = layers[l].of_sample ? s : 0; i < (layers[l].of_sample ? s + 1 : TILE); i++)
        times->done[l] += layers[l].done != NULL ? layers[l].done(w, i) : layers[l].dense;
}

static void walk_tile(struct walk *w, struct times *times)
{
    for (int s = 0; s < TILE; s++)
        w->labels[s] = w->input.records[s][0];
    for (int l = 0, end; l < LAYERS; l = end) {
        for (end = l + 1; end < LAYERS && layers[end].of_sample == layers[l].of_sample;)
            end++;
        for (int s = 0; s < (layers[l].of_sample ? TILE : 1); s++)
            for (int k = l; k < end; k++)
                run_layer(w, k, s, times);
    }
}

#endif
