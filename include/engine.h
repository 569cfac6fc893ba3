/* engine.h - what computes. One engine holds one replica: weights, velocity, and this rank's part of
 * every global batch. The trainer knows only this file; an engine, in one file or several, fills in an
 * engine_ops table, added to the list in engine.c.
 *
 * All ranks of a comm open the same engine with the same setup, and call begin_epoch, train, and what the plain step is
 * made of (gradient, comm_sum, update) together; train_several with the engines in the same order. evaluate, read and
 * write are each rank's own affair.
 *
 * Threads: one at a time, as with its comm; nets that take turns (turns.h) have an engine each, none opened beside
 * another. A GPU engine may start threads of its libraries, which call nothing here.
 *
 *     const struct engine_ops *ops = engine_choose("auto", NULL, why, sizeof why, &error);
 *     struct engine *engine = ops->open(&setup, &error);
 *     ops->write(engine, weights, velocity);
 *     ops->begin_epoch(engine, order);
 *     for (size_t first = 0; first < count; first += report.samples) {
 *         struct span span = {.step = step++, .first = first, .end = count, .learning_rate = 0.01f, .stop = &stop};
 *         step_train(engine, &span, &report);      by ops->train or the plain way: step.h
 *         if (report.not_finite || report.stopped)
 *             break;
 *     }
 *     ops->read(engine, weights, velocity);
 *     ops->close(engine);
 */
#ifndef DTRAIN_ENGINE_H
#define DTRAIN_ENGINE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "comm.h"
#include "dataset.h"
#include "error.h"
#include "evaluation.h"
#include "masks.h"

/* What the operands of sums of products may be rounded to: nothing less than fp32; TF32 (10 bits of mantissa).
 * Sums are fp32 or better in both. */
enum precision { PRECISION_FP32, PRECISION_TF32 };
/* "fp32", "tf32": --precision */
enum precision engine_precision(const char *name);
const char *engine_precision_name(enum precision precision);

struct cJSON;

/* All pointers are borrowed and must outlive the engine. */
struct engine_setup {
    const struct dataset *data;
    struct comm *comm;
    struct masks masks;
    size_t batch_size; /* of the GLOBAL batch */
    float momentum;    /* the factor; what it multiplies, a number a weight, is the velocity: see update */
    enum precision precision;
    const struct cJSON *choices; /* on rank 0, while it opens: as `choices` gave them when the run began; or NULL */
    struct engine *beside;       /* an open one of this rank, of the same ops (with at_once), data, comm and batch size,
                                    with which this one may share what it has, to be trained at once; or NULL */
};

/* A run of steps within one epoch. */
struct span {
    uint64_t step;     /* global number of the first step, from 0: the random streams' step */
    size_t first, end; /* positions in the epoch's order: batches start at `first`, each of batch_size
                            samples; the one that reaches `end` may be smaller */
    float learning_rate;
    const volatile sig_atomic_t *stop; /* this rank's wish to stop; any rank's is seen by all */
    void (*meanwhile)(void *context);  /* called once or not at all, while a GPU is at these steps; or NULL */
    void *context;
};

struct train_report {
    size_t steps, samples; /* done by this call: global samples */
    int64_t loss;          /* sum of the samples' losses, in EXACT_UNITs */
    bool stopped;          /* some rank wished to stop: nothing was begun after the last step */
    bool not_finite;       /* the step after the last one met a loss or gradient that is infinite, NaN
                              or over EXACT_LIMIT; it was not applied */
};

struct engine;
struct engine_ops {
    const char *name; /* --engine NAME */
    bool on_gpu;      /* it computes on this rank's GPU */
    bool in_kernel;   /* by kernels that can sum over the ranks themselves */
    bool is_defined;  /* it follows kernels/README.md: its bits are known beforehand, whatever compiled it */

    /* Whether this machine can run it; `why` says on what, or what is missing, in a few words. NULL: any can. */
    bool (*available)(char *why, size_t why_bytes);

    /* Collective over setup->comm. An engine calls comm_sums_open, which is collective too, before anything that may
     * fail on one rank alone. */
    struct engine *(*open)(const struct engine_setup *setup, struct error *error);
    void (*close)(struct engine *engine); /* collective: with --comm peers other ranks' kernels reach its memory */

    /* The epoch's order (training-set size; borrowed until the next call). */
    void (*begin_epoch)(struct engine *engine, const uint32_t *order);

    /* Forward and backward over this rank's share of the batch at [first, end) of the order: leaves
     * in engine->sums->terms the sums over the share. */
    void (*gradient)(struct engine *engine, uint64_t step, size_t first, size_t end);

    /* Velocity and weights: v = momentum v + g, w -= learning_rate v, with g = engine->sums->totals / samples. */
    void (*update)(struct engine *engine, float learning_rate, size_t samples);

    /* As many steps of the span as suit the engine, all ranks as many. False: it has no way of its own for the first
     * one, and did nothing. NULL: it never has. Then the plain step does it (src/training/step.c). */
    bool (*train)(struct engine *engine, const struct span *span, struct train_report *report);

    /* Of `count` engines that were opened beside each other, how many are best trained at once; 1: they take turns. The
     * same on all ranks. train_several does as train does for each, with its span and report; all have the same stop
     * flag. NULL: there is no such way. */
    int (*at_once)(struct engine *engine, int count);
    void (*train_several)(struct engine *const *engines, int count, const struct span *spans,
                          struct train_report *reports);

    /* Predict mode (no dropout) on samples [first, end) of a split; first is a multiple of TILE.
     * Adds to *sum. */
    void (*evaluate)(struct engine *engine, const struct split *split, size_t first, size_t end,
                     struct evaluation *sum);

    /* Canonical layout, LENET5_WEIGHTS floats each; either may be NULL. */
    void (*read)(struct engine *engine, float *weights, float *velocity);
    void (*write)(struct engine *engine, const float *weights, const float *velocity);

    /* What it chose among several ways, for run.json: a new object. NULL: there is nothing to choose. */
    struct cJSON *(*choices)(struct engine *engine);

    /* Puts sums[n_gradient], in the layout of engine->sums, into canonical[LENET5_WEIGHTS]. */
    void (*read_sums)(const struct engine *engine, const int64_t *sums, int64_t *canonical);
};

/* What every engine's own struct begins with. */
struct engine {
    const struct engine_ops *ops;
    struct engine_setup setup;
    const uint32_t *order;
    struct comm_sums *sums; /* one all-reduce: n_gradient numbers in the engine's own layout, then the slots */
    size_t n_gradient;
};
enum sum_slot { SLOT_LOSS, SLOT_STOP, SLOT_REFUSED, SUM_SLOTS }; /* at [n_gradient + slot] */

/* The engine called `name`, or for "auto" the best available. NULL with *error set (EXIT_USAGE) if
 * there is none of that name or this machine cannot run it. `why` says why it was chosen. Loading CUDA may take long:
 * comm's other ranks may wait meanwhile; NULL: there are none. Not collective. */
const struct engine_ops *engine_choose(const char *name, struct comm *comm, char *why, size_t why_bytes,
                                       struct error *error);
enum comm_use engine_comm_use(const struct engine_ops *ops); /* for comm_split */

/* "auto, cudnn (GPUs), [...] or cpu"; without the notes: "auto, cudnn, fused or cpu". */
void engine_names(char *text, size_t bytes, bool notes);

/* Engine `number`, from 0 on, best first: its name, NULL behind the last; its ops, NULL where this machine cannot run
 * it. `why`, "" before, says on what it runs, or what is missing. */
const char *engine_name(int number);
const struct engine_ops *engine_find(int number, char *why, size_t why_bytes);

/* For tests and benchmarks: the gradient in engine->sums->totals in canonical layout, as averages over `samples`. */
void engine_read_gradient(const struct engine *engine, size_t samples, float *gradient);

extern const struct engine_ops engine_cpu;

#endif
