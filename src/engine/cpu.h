/* cpu.h - the CPU engine's inside, for its tests: the gradient of chosen positions, without ranks. */
#ifndef DTRAIN_ENGINE_CPU_H
#define DTRAIN_ENGINE_CPU_H

#include "engine.h"
#include "kernels/cpu/tile.h"

struct cpu {
    struct engine base;
    struct layout weights, velocity; /* of which only canonical numbers are ever non-zero */
    struct tile tile;
    struct tile_input input;
    uint32_t index[LENET5_WEIGHTS]; /* layout_index */
};

/* Adds to engine->sums->terms the tile of `count` samples (1..TILE) at `position` (a multiple of TILE) of the
 * global batch that begins at `first` of the order. cpu_prepare comes before, after every change of
 * the weights. */
void cpu_add_tile(struct engine *engine, uint64_t step, size_t first, size_t position, size_t count);

/* Zeroes engine->sums->terms and prepares the kernels for the weights. */
void cpu_prepare(struct engine *engine);

#endif
