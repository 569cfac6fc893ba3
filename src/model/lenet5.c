#include "lenet5.h"

#include <math.h>
#include <xxhash.h>

#include "philox.h"

/* name, dimensions, shape, count, offset, fan_in */
const struct parameter lenet5_parameters[LENET5_PARAMETERS] = {
    {"conv1.weight", 4, {6, 3, 5, 5}, 450, 0, 75},
    {"conv1.bias", 1, {6}, 6, 450, 75},
    {"conv2.weight", 4, {16, 6, 5, 5}, 2400, 456, 150},
    {"conv2.bias", 1, {16}, 16, 2856, 150},
    {"conv3.weight", 4, {120, 16, 5, 5}, 48000, 2872, 400},
    {"conv3.bias", 1, {120}, 120, 50872, 400},
    {"fc1.weight", 2, {84, 120}, 10080, 50992, 120},
    {"fc1.bias", 1, {84}, 84, 61072, 120},
    {"fc2.weight", 2, {10, 84}, 840, 61156, 84},
    {"fc2.bias", 1, {10}, 10, 61996, 84},
};

const struct net lenet5_nets[NETS] = {
    {'A', 0.0, 0.0, "none"},
    {'B', 0.0, 0.5, "fc"},
    {'C', 0.5, 0.0, "conv"},
    {'D', 0.5, 0.5, "conv + fc"},
};

void lenet5_initialise(uint64_t seed, float *weights)
{
    for (uint32_t p = 0; p < LENET5_PARAMETERS; p++) {
        const struct parameter *parameter = &lenet5_parameters[p];
        float bound = (float)(1.0 / sqrt((double)parameter->fan_in));
        float *tensor = weights + parameter->offset;
        for (size_t i = 0; i < parameter->count; i += 4) {
            struct philox_counter r = philox4x32(philox_counter(PHILOX_WEIGHTS, p, 0, 0, (uint32_t)(i / 4)), seed);
            for (size_t j = 0; j < 4 && i + j < parameter->count; j++)
                tensor[i + j] = bound * (2.0f * philox_uniform(r.c[j]) - 1.0f);
        }
    }
}

uint64_t lenet5_digest(const float *weights)
{
    return XXH64(weights, LENET5_WEIGHTS * sizeof *weights, 0);
}
