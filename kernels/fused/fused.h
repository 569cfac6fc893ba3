/* fused.h - the whole training step in one persistent kernel, as C functions that launch it. kernels/fused/README.md
 * tells how it works; it computes kernels/README.md, so weights are the same bits as the CPU engine's.
 *
 * A launch needs all its blocks on the GPU at once: FUSED_SEATS blocks are a group, which has a tile of 16 samples at
 * a time. Every function queues on `stream` and waits for nothing. Buffers are in device memory, zero at first where it
 * says so, and belong to one net; nothing else may use them while a launch is queued.
 */
#ifndef DTRAIN_FUSED_H
#define DTRAIN_FUSED_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "evaluation.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FUSED_SEATS = 8,     /* blocks of a group */
    FUSED_CONV3 = 6000,  /* weights of conv3 that a seat has: 120 outputs x 2 channels of 25 */
    FUSED_SMALL = 15456, /* numbers of all other parameters, with padding: fused_canonical */
    FUSED_GRADIENT = FUSED_SEATS * FUSED_CONV3 + FUSED_SMALL,
};

/* What the ranks sum, int64: FUSED_GRADIENT sums in EXACT_UNITs in the kernel's own order, then these in the order of
 * enum sum_slot (engine.h). FUSED_SUMS_PITCH is even, as pairs are read. */
enum { FUSED_LOSS = FUSED_GRADIENT, FUSED_STOP, FUSED_REFUSED, FUSED_SUMS, FUSED_SUMS_PITCH = FUSED_SUMS + 1 };

enum { FUSED_NETS = 16 }; /* of a launch, at most */

/* Number i < FUSED_GRADIENT of the sums is of this number of the canonical layout; -1: padding. */
int fused_canonical(uint32_t i);

/* What a run of launches has done so far. The host clears it. */
struct fused_state {
    int64_t loss;                 /* of the samples of all steps applied, in EXACT_UNITs */
    uint32_t applied;             /* steps */
    uint32_t stopped, not_finite; /* 1: the run is over. As in struct train_report (engine.h) */
    uint32_t padding;
};

/* Pinned host memory: of a wait that had no end. The launch then fails. */
enum { FUSED_FOR_BLOCKS = 1, FUSED_FOR_RANKS };
struct fused_trouble {
    volatile uint32_t waited; /* for whom; 0: for none */
    volatile uint32_t block, wanted, found;
};

enum { FUSED_PEERS = 8 }; /* ranks whose kernels sum together, at most */

/* Of a net, in device memory: where its ranks sum together (peers.cuh). By rank, as this GPU finds it. */
struct fused_peers {
    int64_t *sums[FUSED_PEERS];     /* run.sums of each */
    uint32_t *arrived[FUSED_PEERS]; /* two numbers of each, zero before a net's first launch, then the kernels' own */
    const volatile uint32_t *alive; /* in pinned host memory: grows while the host watches over the ranks */
    uint32_t patience;              /* looks at that, 10 s each, after which it does so no more if it has not grown */
    uint32_t padding;
};

/* A launch: the update of an earlier launch's sums, if any, then steps, of which the last one's update may be left to a
 * later launch, so that ranks can add up their sums in between. */
struct fused_run {
    const uint8_t *records;            /* RECORD_BYTES each (dataset.h) */
    const uint32_t *order;             /* of the epoch; NULL: position i is record i */
    const float *weights, *velocity;   /* canonical, as the launch finds them */
    float *new_weights, *new_velocity; /* and as it leaves them: other memory */
    const struct fused_state *before;  /* if that run is over, the launch does nothing but hand all on */
    struct fused_state *after;         /* other memory */
    int64_t *sums;                     /* three times FUSED_SUMS_PITCH, zero before a run's first launch; they rotate */
    void *mail;                        /* fused_mail_bytes(groups), zero at first */
    uint32_t *arrived;                 /* fused_arrived_bytes(groups), zero before every launch */
    const volatile int32_t *stop;      /* this rank's wish, in pinned host memory; NULL: none */
    const struct fused_peers *peers;   /* the ranks' sums are added up each step; NULL: these are the net's sums */
    struct fused_trouble *trouble;     /* or NULL */
    uint64_t seed, step;               /* step: of the first batch, for the masks */
    uint64_t threshold[4];             /* philox_threshold of the four dropout layers */
    float scale[4];                    /* masks.h */
    float momentum, learning_rate;
    double unit[2];    /* EXACT_UNIT * (1 / (double)samples) of a full batch; of another */
    uint32_t batch;    /* samples of a full (global) batch */
    uint32_t position; /* in the order, of the first batch */
    uint32_t end;      /* where the last one ends at the latest: it may be smaller */
    uint32_t steps;    /* batches whose gradients are computed, at most */
    uint32_t buffer;   /* which of the sums the first one is added to, 0..2 */
    uint32_t pending;  /* samples of the batch before, whose sums, in the buffer before, wait for their update; or 0 */
    uint32_t closes;   /* 1: the last step is updated in this launch, too */
    uint32_t sums_pitch; /* numbers from one of the sums to the next, even */
    uint32_t rank, ranks; /* whose share of a batch's tiles this is (sampler.h) */
    uint32_t groups;
    uint32_t round;    /* of the mail: fused_rounds more with every launch, and never one that the mail has */
    long long *clocks; /* (blocks, FUSED_PHASES): fused_train_by_clocks */
};
uint32_t fused_rounds(const struct fused_run *run);

/* Predict mode: samples [position, end) of the records; adds to *sum, in device memory. Of the run records, weights,
 * mail, arrived, trouble, groups, round, position, end and stop, which may be NULL, are read. */
cudaError_t fused_evaluate(const struct fused_run *run, struct evaluation *sum, cudaStream_t stream);

/* Up to FUSED_NETS runs of as many nets at once, with as many groups each, on the current device. None waits for
 * another: each ends as it would alone, and the launch with the last. Buffers are the caller's, until the launch has
 * ended. One that gives up waiting has filled trouble, and leaves the device unusable for this process. */
cudaError_t fused_train(const struct fused_run *runs, uint32_t nets, cudaStream_t stream);

/* The same of one net, by a kernel that also leaves in run->clocks how many clocks each block spent in each phase. */
enum { FUSED_PHASES = 15 };
cudaError_t fused_train_by_clocks(const struct fused_run *run, cudaStream_t stream);
const char *fused_phase(uint32_t phase); /* what it is called */

size_t fused_mail_bytes(uint32_t groups);
size_t fused_arrived_bytes(uint32_t groups);
enum { FUSED_PEER_PITCH = 32 }; /* numbers from a net's of fused_peers.arrived to the next's: a line of 128 bytes */

/* Bytes of shared memory that a block needs. */
size_t fused_shared_bytes(void);
/* *groups that fit on a device at once; 0 where it has less shared memory, or cannot launch blocks together. Does not
 * touch the device. */
cudaError_t fused_fits(int device, uint32_t *groups);
/* Before the first launch on the current device, which fits. */
cudaError_t fused_prepare(void);

#ifdef __cplusplus
}
#endif

#endif
