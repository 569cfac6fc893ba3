/* lenet5.h - LeNet-5 as the study trains it, and the one table of its parameters.
 *
 *   input 3x32x32, pixel / 127.5 - 1
 *   conv1   3 ->   6  5x5  28x28  ReLU [Dropout2d] max-pool 2x2 -> 14x14
 *   conv2   6 ->  16  5x5  10x10  ReLU [Dropout2d] max-pool 2x2 ->  5x5
 *   conv3  16 -> 120  5x5   1x1   ReLU [Dropout2d]
 *   fc1   120 ->  84  ReLU [Dropout]
 *   fc2    84 ->  10  softmax cross-entropy
 */
#ifndef DTRAIN_LENET5_H
#define DTRAIN_LENET5_H

#include <stddef.h>
#include <stdint.h>

enum {
    LENET5_CLASSES = 10,
    LENET5_CHANNELS = 3,
    LENET5_SIDE = 32,
    LENET5_PIXELS = LENET5_CHANNELS * LENET5_SIDE * LENET5_SIDE, /* bytes of a picture: planes R, G, B */
    LENET5_PARAMETERS = 10,                                      /* tensors */
    LENET5_WEIGHTS = 62006,                                      /* numbers in all of them */
};

/* One tensor. The canonical layout of weights, gradients and velocity, in memory and in files, is one
 * array of LENET5_WEIGHTS floats: the tensors of the table one after the other, each row-major, with
 * PyTorch's names and shapes (convolutions (K, C, H, W), dense layers (out, in)). */
struct parameter {
    const char *name; /* "conv1.weight" ... "fc2.bias" */
    size_t dimensions, shape[4];
    size_t count;  /* product of shape */
    size_t offset; /* of its first number in the canonical layout */
    size_t fan_in; /* inputs of one output: the scale of the initialisation */
};
extern const struct parameter lenet5_parameters[LENET5_PARAMETERS];

/* Fills weights (LENET5_WEIGHTS, canonical layout): uniform in +-1/sqrt(fan_in), weights and biases
 * alike, as PyTorch's Conv2d and Linear initialise. A pure function of the seed. */
void lenet5_initialise(uint64_t seed, float *weights);

/* xxh64 of the canonical weights: what every run prints last and replicas compare. */
uint64_t lenet5_digest(const float *weights);

/* A net of the study: where it drops, and how often. p = 0 is no dropout. */
struct net {
    char name; /* 'A' .. 'D' */
    double p_conv, p_fc;
    const char *dropout; /* for people: "none", "fc", "conv", "conv + fc" */
};
enum { NETS = 4 };
extern const struct net lenet5_nets[NETS];

#endif
