/* fused.h - the whole training step in one persistent kernel, as C functions that launch it. How it works is in
 * kernels/fused/README.md. It follows the definition of kernels/README.md, so the weights are the CPU engine's to the
 * bit.
 *
 * A launch needs all its blocks on the GPU at once: FUSED_SEATS blocks are a group, which has a tile of 16 samples at
 * a time. A function with a `stream` queues there and waits for nothing: cudaSuccess says that the launch is queued. No
 * function keeps a state of its own, so any thread may call it. Buffers are the caller's, in device memory unless noted
 * otherwise, and zero at first where noted. What a launch writes belongs to one net, and nothing else may use it until
 * the launch has ended.
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

/* What the ranks sum, int64: FUSED_GRADIENT sums in EXACT_UNITs in the kernel's own order, then the slots below in the
 * order of enum sum_slot (engine.h). FUSED_SUMS_PITCH is even, as pairs are read. */
enum { FUSED_LOSS = FUSED_GRADIENT, FUSED_STOP, FUSED_REFUSED, FUSED_SUMS, FUSED_SUMS_PITCH = FUSED_SUMS + 1 };

enum { FUSED_NETS = 16 }; /* nets of a launch, at most */

/* Which number of the canonical layout (lenet5.h) has its gradient in number i < FUSED_GRADIENT of the sums; -1: none,
 * i is padding. */
int fused_canonical(uint32_t i);

/* What a run of launches has done so far. The host clears it before the first. */
struct fused_state {
    int64_t loss;                 /* sum of the samples' losses over all steps applied, in EXACT_UNITs */
    uint32_t applied;             /* steps */
    uint32_t stopped, not_finite; /* 1: the run is over. As in struct train_report (engine.h) */
    uint32_t padding;
};

/* In pinned host memory: a wait that was given up, whose launch has then failed. */
enum { FUSED_FOR_BLOCKS = 1, FUSED_FOR_RANKS };
struct fused_trouble {
    volatile uint32_t waited; /* FUSED_FOR_..., for whom; 0: none was given up */
    volatile uint32_t block, wanted, found; /* which block of the launch; the count or round it needed, and had */
};

enum { FUSED_PEERS = 8 }; /* ranks whose kernels sum together, at most */

/* In device memory, a net's: where its ranks sum together (peers.cuh). By rank, at the addresses that this GPU has for
 * them. */
struct fused_peers {
    int64_t *sums[FUSED_PEERS];     /* run.sums of each */
    uint32_t *arrived[FUSED_PEERS]; /* two numbers of each, zero before a net's first launch, then the kernels' own */
    const volatile uint32_t *alive; /* in pinned host memory: grows while the host watches over the ranks */
    uint32_t patience;              /* a wait is given up after so many looks at *alive, 10 s apart, without growth */
    uint32_t padding;
};

/* What a launch does for one net: the update of an earlier launch's sums, if any, then steps. The update of the last
 * step may be left to a later launch, so that ranks can add up their sums in between. */
struct fused_run {
    const uint8_t *records;            /* RECORD_BYTES each (dataset.h) */
    const uint32_t *order;             /* of the epoch; NULL: position i is record i */
    const float *weights, *velocity;   /* canonical, as the launch finds them */
    float *new_weights, *new_velocity; /* and as it leaves them: other memory */
    const struct fused_state *before;  /* if that run is over, the launch only copies weights, velocity and state */
    struct fused_state *after;         /* other memory */
    int64_t *sums;                     /* three buffers, sums_pitch apart, in rotation; zero before the first launch */
    void *mail;                        /* fused_mail_bytes(groups), zero at first */
    uint32_t *arrived;                 /* fused_arrived_bytes(groups), zero before every launch */
    const volatile int32_t *stop;      /* this rank's wish, in pinned host memory; NULL: none */
    const struct fused_peers *peers;   /* the kernel adds up the ranks' sums in each step; NULL: it does not */
    struct fused_trouble *trouble;     /* or NULL */
    uint64_t seed, step;               /* step: of the first batch, for the masks */
    uint64_t threshold[4];             /* philox_threshold of the four dropout layers */
    float scale[4];                    /* masks.h */
    float momentum, learning_rate;
    double unit[2];    /* EXACT_UNIT * (1 / (double)samples) of a full batch; of a smaller one */
    uint32_t batch;    /* samples of a full (global) batch */
    uint32_t position; /* in the order, of the first batch */
    uint32_t end;      /* where in the order the last batch ends at the latest: it may be smaller */
    uint32_t steps;    /* batches whose gradients are computed, at most */
    uint32_t buffer;   /* which of the three sums the first batch is added to, 0..2 */
    uint32_t pending;  /* samples of the batch before, whose sums, in the buffer before, wait for their update; or 0 */
    uint32_t closes;   /* 1: the last step's update is in this launch, too */
    uint32_t sums_pitch; /* numbers from one of the three sums to the next, even */
    uint32_t rank, ranks; /* whose share of a batch's tiles this is (sampler.h) */
    uint32_t groups;
    uint32_t round;    /* of the mail: grows by fused_rounds at least with every launch; never one that the mail has */
    long long *clocks; /* (blocks, FUSED_PHASES), by fused_train_by_clocks alone */
};
/* How many rounds of the mail a launch takes at most, by batch, steps and groups of its run. */
uint32_t fused_rounds(const struct fused_run *run);

/* Predict mode: evaluates samples [position, end) of the records and adds to *sum, in device memory. Of the run it
 * needs records, weights, mail, trouble, groups, round, position and end; stop may be NULL, and stops nothing. */
cudaError_t fused_evaluate(const struct fused_run *run, struct evaluation *sum, cudaStream_t stream);

/* Trains 1 to FUSED_NETS nets at once, a run each, on the current device; all runs have the same number of groups. No
 * net waits for another: each ends as it would alone, and the launch with the last. Where a block gives up waiting,
 * *trouble is filled, and the device is of no use to this process any more. */
cudaError_t fused_train(const struct fused_run *runs, uint32_t nets, cudaStream_t stream);

/* The same for one net, by a kernel that also leaves in run->clocks how many clocks each block spent in each phase. */
enum { FUSED_PHASES = 14 };
cudaError_t fused_train_by_clocks(const struct fused_run *run, cudaStream_t stream);
const char *fused_phase(uint32_t phase); /* its name */

/* Bytes of run.mail and of run.arrived. */
size_t fused_mail_bytes(uint32_t groups);
size_t fused_arrived_bytes(uint32_t groups);
enum { FUSED_PEER_PITCH = 32 }; /* numbers from one net's fused_peers.arrived to the next net's: 128 bytes */

/* Bytes of shared memory that a block needs. */
size_t fused_shared_bytes(void);
/* *groups: how many fit on a device at once; 0 where a block cannot have enough shared memory, or blocks cannot be
 * launched together. Makes no context on the device. */
cudaError_t fused_fits(int device, uint32_t *groups);
/* To be called before the first launch on the current device, which must fit (fused_fits). */
cudaError_t fused_prepare(void);

#ifdef __cplusplus
}
#endif

#endif
