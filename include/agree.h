/* agree.h - all ranks run the same, or the run is refused: *error names a rank that differs, and how.
 *
 * Every function is collective over the world, and its verdict the same on all ranks.
 */
#ifndef DTRAIN_AGREE_H
#define DTRAIN_AGREE_H

#include "comm.h"
#include "dataset.h"
#include "engine.h"
#include "options.h"

/* What was asked for instead of training was asked of all, or they would wait for each other. EXIT_USAGE. */
bool agree_on_action(const struct options *options, struct comm *world, struct error *error);

/* The same revision with the same options. EXIT_USAGE. */
bool agree_on_options(const struct options *options, struct comm *world, struct error *error);

/* The same data. EXIT_INPUT. */
bool agree_on_data(const struct dataset *data, struct comm *world, struct error *error);

/* The same engine: "auto" was chosen by each rank's own machine, and engine_choose has said why. Replicas must come to
 * the same bits, for which one that is not defined must also have been built by the same compiler for the same
 * processor. EXIT_USAGE. */
bool agree_on_engine(const struct engine_ops *engine, const char *why, struct comm *world, struct error *error);

#endif
