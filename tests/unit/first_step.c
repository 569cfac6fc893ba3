/* The first step of README.md's table of digests, without MPI and files: what a cross compiler makes and an emulator
 * runs: first_step NETS. By the CPU engine's kernels and by the definition, which must agree. Prints a net and its
 * digest a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataset.h"
#include "exact_sum.h"
#include "kernels/cpu/tile.h"
#include "kernels/definition/definition.h"
#include "sampler.h"
#include "synthetic.h"

enum { BATCH = 256, PICTURES = 50000, SEED = 1 };

struct step {
    uint8_t records[BATCH][RECORD_BYTES];
    struct tile tile;
    struct layout layout;
    struct tile_input input;
    int64_t sums[LAYOUT_COUNT], loss;
    struct definition_sums defined;
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    uint32_t index[LENET5_WEIGHTS], order[PICTURES];
};
static struct step step; /* 0 */

static void add_tiles(const struct masks *masks)
{
    size_t refused = 0;
    memcpy(step.input.scales, masks->scale, sizeof step.input.scales);
    step.input.count = TILE;
    for (uint32_t position = 0; position < BATCH; position += TILE) {
        for (int s = 0; s < TILE; s++)
            step.input.records[s] = step.records[position + (uint32_t)s];
        masks_draw(masks, 0, position, TILE, step.input.masks);
        refused += tile_gradient(&step.tile, &step.layout, &step.input, step.sums, &step.loss);
        definition_tile(step.weights, TILE, step.input.records, step.input.masks, masks->scale, &step.defined);
    }
    bool same = refused == 0 && step.defined.refused == 0 && step.loss == step.defined.loss;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        same = same && step.sums[step.index[i]] == step.defined.gradient[i];
    if (!same) {
        printf("the CPU engine does not follow the definition\n");
        exit(1);
    }
}

int main(int count, char **arguments)
{
    const char *nets = count == 2 ? arguments[1] : "";
    sampler_shuffle(SEED, 0, PICTURES, step.order);
    for (int i = 0; i < BATCH; i++)
        synthetic_draw(false, step.order[i], step.records[i]);
    layout_index(step.index);
    tile_init(&step.tile);
    for (const struct net *net = lenet5_nets; net < lenet5_nets + NETS; net++) {
        if (strchr(nets, net->name) == NULL)
            continue;
        const struct masks masks = masks_make(SEED, net->p_conv, net->p_fc);
        lenet5_initialise(SEED, step.weights);
        for (size_t i = 0; i < LENET5_WEIGHTS; i++)
            ((float *)&step.layout)[step.index[i]] = step.weights[i];
        tile_pack(&step.tile, &step.layout);
        memset(step.sums, 0, sizeof step.sums);
        memset(&step.defined, 0, sizeof step.defined);
        memset(step.velocity, 0, sizeof step.velocity);
        step.loss = 0;
        add_tiles(&masks);
        definition_update(&step.defined, BATCH, 0.01f, 0.9f, step.velocity, step.weights);
        printf("%c %016llx\n", net->name, (unsigned long long)lenet5_digest(step.weights));
    }
    return 0;
}
