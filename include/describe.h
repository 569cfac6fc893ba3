/* describe.h - what is run, on what: run.json, and the checks that all ranks run the same. */
#ifndef DTRAIN_DESCRIBE_H
#define DTRAIN_DESCRIBE_H

#include <cjson/cJSON.h>

#include "comm.h"
#include "dataset.h"
#include "devices.h"
#include "options.h"

/* A new JSON object the caller owns: time, revision, versions, hosts, data. `world` is asked for its hosts. */
cJSON *describe_run(const struct dataset *data, const struct comm *world);

/* Adds "gpu": the versions of its libraries, who is on which GPU, and the user's settings for NCCL in
 * the environment. */
void describe_gpus(cJSON *json, const struct device *devices, int count);

/* Collective: all ranks run the same revision with the same options, or *error (EXIT_USAGE) names the rank that
 * differs, and how. */
bool describe_agree_options(const struct options *options, struct comm *world, struct error *error);

/* Collective: the same compiler built it for the same processor on all ranks, or *error as above. For engines whose
 * bits depend on that. */
bool describe_agree_build(struct comm *world, struct error *error);

/* Collective: all ranks have the same data, or *error (EXIT_INPUT) names the rank that differs. */
bool describe_agree_data(const struct dataset *data, struct comm *world, struct error *error);

#endif
