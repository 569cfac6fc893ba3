/* study.h - the program's work: one trial or several (nets, seeds), trained by the ranks of one mpirun.
 *
 * With at least as many ranks as trials, the ranks are split into groups and the trials run at once; with fewer, all
 * ranks train all of them: an epoch of each in turn, or side by side on GPUs (src/training/train_trials.h). World
 * rank 0 displays everything; at the end it prints tables and draws the figures.
 */
#ifndef DTRAIN_STUDY_H
#define DTRAIN_STUDY_H

#include "comm.h"
#include "dataset.h"
#include "error.h"
#include "options.h"

/* Collective over the world. Returns the exit code; *error is filled on every rank when a run failed. If any trial was
 * stopped that is EXIT_STOPPED, also where another has failed: there is something to go on with. */
enum exit_code study_run(const struct options *options, const struct dataset *data, struct comm *world,
                         struct error *error);

#endif
