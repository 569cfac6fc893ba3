/* trainer.h - one trial, trained by one group of ranks, epoch by epoch, with its files.
 *
 * Every function is collective over the group, but for trainer_at_once, trainer_progress and trainer_digest. Rank 0 of
 * the group reads and writes the files; all ranks leave every function with the same verdict.
 */
#ifndef DTRAIN_TRAINING_TRAINER_H
#define DTRAIN_TRAINING_TRAINER_H

#include <cjson/cJSON.h>
#include <signal.h>

#include "comm.h"
#include "dataset.h"
#include "engine.h"
#include "run.h"
#include "trials.h"

/* All pointers are borrowed and must outlive the trainer. */
struct trainer_setup {
    const struct trial *trial;
    int index;             /* of the trial in the study */
    const char *directory; /* of the run */
    const struct dataset *data;
    struct comm *comm;
    const struct engine_ops *engine;
    struct trainer *beside;   /* another of this rank's, open, if their engines are to share what they have; or NULL */
    const cJSON *description; /* of the run, for run.json */
    const volatile sig_atomic_t *stop;
    void (*report)(void *context, const struct event *event);
    void *context;
};

struct trainer; /* opaque */

/* Makes and locks the run's directory, finds where to start or resume (checkpoint_recover may put a file in its place),
 * opens the engine; writes nothing else, so of a new run that is refused an empty directory stays, but for `lock`. NULL
 * and *error on every rank: EXIT_USAGE, EXIT_INPUT (a checkpoint, or data that changed before a GPU had copied them),
 * EXIT_RUNTIME. */
struct trainer *trainer_open(const struct trainer_setup *setup, struct error *error);

/* Writes run.json and opens the metrics. After every trial of the study has opened, so that a run that is refused
 * leaves the files of an earlier one as they are; before the first epoch. */
void trainer_begin(struct trainer *trainer, struct error *error);

/* Trains what is left of the open epoch and closes it: accuracy if due, metrics, checkpoint if due. DONE: the
 * run has all its epochs (or --max-steps). STOPPED: saved, go on with --resume. FAILED: *error is set on
 * every rank. Not to be called again after anything but GOING. */
enum run_status trainer_epoch(struct trainer *trainer, struct error *error);

/* trainer_epoch for several trainers, opened beside each other: their steps side by side, then the closing of each in
 * turn. Sets each outcome's status, and error. */
void trainers_epoch(struct trainer *const *trainers, int count, struct outcome *const *outcomes);

/* Of `count` of the study's trials, how many trainers_epoch trains at once; 1: they are to be trained in turn. The same
 * on all ranks. */
int trainer_at_once(const struct trainer *trainer, int count);

/* Writes a checkpoint of where the run stands, unless the newest is that already, after the data and the replicas have
 * been found to be what they should. trainer_epoch does so when one is due or the run is stopped; its caller, when
 * another trial of the study was stopped while this one waited for its turn. Errors, on every rank: EXIT_INPUT (the
 * data changed), EXIT_DIVERGED, EXIT_RUNTIME (no space, no permission). */
bool trainer_save(struct trainer *trainer, struct error *error);

const struct progress *trainer_progress(const struct trainer *trainer);
uint64_t trainer_digest(struct trainer *trainer); /* of the weights */
void trainer_close(struct trainer *trainer);

#endif
