/* fused.h - LeNet-5's whole training step in one persistent kernel: what the host must know. Prototype. */
#ifndef FUSED_H
#define FUSED_H
#include <stdint.h>

enum {
    RANKS = 8,        /* blocks of a group; a group works on a tile of 16 samples */
    EACH = 2,         /* samples a block has of the tile */
    SAMPLES16 = 16,
    THREADS = 512,
    SLICE3 = 6000,    /* weights of conv3 that a block owns: 120 outputs x 50 inputs (2 channels of 25) */
    SMALL = 14688,    /* numbers of all other parameters, padded as struct memory has them */
    OWN = SMALL / RANKS, /* of them, a block's share */
    SUMS_SMALL = RANKS * SLICE3, /* place of the small ones in the sums */
    SUMS_LOSS = SUMS_SMALL + SMALL, SUMS_REFUSED, SUMS_STOP, SUMS_COUNT = SUMS_STOP + 2, /* even: pairs are read */
};

struct fused_state { int64_t loss; uint32_t applied, stopped, not_finite; }; /* the host clears it */

struct fused {
    const uint8_t *records;  /* 3073 bytes each */
    const uint32_t *order;   /* of the epoch */
    float *weights, *velocity; /* canonical, 62006 */
    int64_t *sums;           /* [3][SUMS_COUNT], zero at first */
    struct fused_state *state;
    const volatile int32_t *stop; /* pinned host memory: the wish to stop; or NULL */
    float *small;            /* [groups][SMALL]: the mailbox of new weights */
    struct exchange *mail;   /* [groups * RANKS]; used without clusters */
    unsigned *arrived;       /* [1 + groups][32]: barriers, zero at first */
    uint64_t seed, step;     /* of the first step */
    uint64_t threshold[4];   /* of the four dropout layers */
    float scale[4];
    float momentum, learning_rate;
    uint32_t position, last; /* samples of the epoch's order */
    uint32_t batch, groups, first_block;
    long long
        *stamps; /* [128][32] clocks by block and phase, [64][32] the slowest block of a step; with STAMPS; or NULL */
    unsigned *trouble;       /* [128][4] pinned: who waited in vain; or NULL */
};

enum { MAX_NETS = 16 };
struct fused_nets { /* all at once on one GPU, in order of first_block */
    uint32_t count;
    struct fused net[MAX_NETS];
};
#endif
