/* needed.h - the layers of a training step on the CPU engine, and the multiply-adds that each needs: for step.c.
 *
 * One definition for all layers and nets: the terms of kernels/README.md's sums, but for those that dropout or a pool
 * makes zero. So neither the input nor the output is dropped, and a backward pass has the gradients that are not zero:
 * of winners of their pool whose ReLU was open. Four neighbours of a convolution have eight products for twenty,
 * conv2's last two have seven (kernels/cpu/winograd.h). What the engine multiplies beyond these, with a dropped
 * channel's lane or with padding, is its loss; zeros that a ReLU leaves in an input count as needed.
 */
#ifndef DTRAIN_BENCH_NEEDED_H
#define DTRAIN_BENCH_NEEDED_H

#include "src/engine/cpu.h"

static size_t count_kept(const struct cpu *cpu, int s, enum dropout_layer layer)
{
    const uint64_t *keep = cpu->input.masks[s].keep[layer];
    static const int units[DROPOUT_LAYERS] = {
        [DROPOUT_CONV1] = 6, [DROPOUT_CONV2] = 16, [DROPOUT_CONV3] = 120, [DROPOUT_FC1] = 84};
    size_t kept = 0;
    for (int u = 0; u < units[layer]; u++)
        kept += keep[u / 64] >> u % 64 & 1;
    return kept;
}

static size_t count_live(const float *gradient, int units)
{
    size_t live = 0;
    for (int u = 0; u < units; u++)
        live += gradient[u] != 0;
    return live;
}

static size_t conv1_forward_needs(const struct cpu *cpu, int s)
{
    return count_kept(cpu, s, DROPOUT_CONV1) * (3 * 5) * 28 * 7 * 8;
}

static size_t conv2_forward_needs(const struct cpu *cpu, int s)
{
    return count_kept(cpu, s, DROPOUT_CONV1) * count_kept(cpu, s, DROPOUT_CONV2) * 5 * 10 * (8 + 8 + 7);
}

static size_t conv3_forward_needs(const struct cpu *cpu, int s)
{
    return count_kept(cpu, s, DROPOUT_CONV2) * 25 * count_kept(cpu, s, DROPOUT_CONV3);
}

static size_t fc1_forward_needs(const struct cpu *cpu, int s)
{
    return count_kept(cpu, s, DROPOUT_CONV3) * count_kept(cpu, s, DROPOUT_FC1);
}

static size_t fc2_needs(const struct cpu *cpu, int s)
{
    return count_kept(cpu, s, DROPOUT_FC1) * 10;
}

static size_t fc1_backward_needs(const struct cpu *cpu, int s)
{
    return count_live(cpu->tile.dense.dfc1[s], 84) * count_kept(cpu, s, DROPOUT_CONV3);
}

static size_t conv3_backward_needs(const struct cpu *cpu, int s)
{
    return count_live(cpu->tile.dense.dconv3[s], 120) * 25 * count_kept(cpu, s, DROPOUT_CONV2);
}

static size_t conv2_backward_needs(const struct cpu *cpu, int s)
{
    return count_live(cpu->tile.dense.dpool2[s][0], 25 * 16) * 25 * count_kept(cpu, s, DROPOUT_CONV1);
}

static size_t conv1_backward_needs(const struct cpu *cpu, int s)
{
    uint64_t kept = cpu->input.masks[s].keep[DROPOUT_CONV1][0];
    size_t live = 0;
    for (int c = 0; c < 6; c++)
        for (int y = 0; y < 14 && (kept >> c & 1); y++)
            for (int x = 0; x < 14; x++)
                live += cpu->tile.features[s].pool1[c][POOL1_PLACE(y, x)] > 0 && cpu->tile.dpool1[s][c][y][x] != 0;
    return live * 3 * 25;
}

/* What the engine marks (kernels/cpu/tile.h), in this order, but for the last. needed: of sample s of the tile that the
 * engine has just done. */
static const struct layer {
    const char *name, *pass;
    size_t dense;                                   /* multiply-adds of a sample by the textbook's formula */
    size_t (*needed)(const struct cpu *cpu, int s); /* NULL: none */
} layers[] = {
    {"masks", "draw", 0, NULL},
    {"conv1", "forward", 352800, conv1_forward_needs},
    {"conv2", "forward", 240000, conv2_forward_needs},
    {"conv3", "forward", 48000, conv3_forward_needs},
    {"fc1", "forward", 10080, fc1_forward_needs},
    {"fc2", "forward", 840, fc2_needs},
    {"softmax", "loss", 0, NULL},
    {"fc2", "weights", 840, fc2_needs},
    {"fc2", "input", 840, fc2_needs},
    {"fc1", "weights", 10080, fc1_backward_needs},
    {"fc1", "input", 10080, fc1_backward_needs},
    {"conv3", "weights", 48000, conv3_backward_needs},
    {"conv3", "input", 48000, conv3_backward_needs},
    {"conv2", "weights", 240000, conv2_backward_needs},
    {"conv2", "input", 240000, conv2_backward_needs},
    {"image", "pixels", 0, NULL},
    {"conv1", "weights", 352800, conv1_backward_needs},
    {"sgd", "update", 0, NULL},
};
enum { LAYERS = sizeof layers / sizeof *layers, UPDATE = LAYERS - 1 };

#endif
