/* run_files.h - the files of one run, as the leader of its group, and it alone, reads and writes them: run.json,
 * metrics, checkpoints, the best model. Nothing here is collective. What fails sets *error, on which the ranks then
 * agree.
 */
#ifndef DTRAIN_TRAINING_RUN_FILES_H
#define DTRAIN_TRAINING_RUN_FILES_H

#include "engine.h"
#include "metrics.h"
#include "run.h"
#include "run_directory.h"
#include "trials.h"

struct run_files {
    struct folder folder; /* ours and locked, if it is open */
    bool is_open;
    struct metrics *metrics;
    bool saved;          /* the newest checkpoint holds just this progress */
    uint64_t saved_step; /* of the newest checkpoint; UINT64_MAX: none */
};

/* Where a run stands, and its numbers in canonical layout. */
struct run_state {
    struct progress progress;
    float *weights, *velocity; /* LENET5_WEIGHTS */
};

/* Locks the directory and finds where the run starts: at its checkpoint (--resume), with the weights of a file
 * (--init-from), or anew from the seed. Without a checkpoint --resume does not start anew where that would lose what
 * cannot be done again (EXIT_USAGE). samples: of an epoch. */
void run_files_open(struct run_files *files, const char *path, const struct options *options, const struct terms *terms,
                    size_t samples, struct run_state *start, struct error *error);

/* "choices" of run.json as the run left it before; the caller deletes *description when done with them. */
const cJSON *run_files_choices(const struct run_files *files, cJSON **description);

/* Writes run.json: the description of the whole study, what is this trial's own, and what the file said when the run
 * was started before. Opens the metrics. */
void run_files_begin(struct run_files *files, const cJSON *description, const struct trial *trial,
                     const struct terms *terms, struct engine *engine, uint64_t epochs_done, struct error *error);

void run_files_save(struct run_files *files, const struct terms *terms, const struct run_state *state,
                    struct error *error);

void run_files_close(struct run_files *files); /* opened or not */

#endif
