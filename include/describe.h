/* describe.h - what is run, on what: for run.json. */
#ifndef DTRAIN_DESCRIBE_H
#define DTRAIN_DESCRIBE_H

#include <cjson/cJSON.h>

#include "comm.h"
#include "dataset.h"
#include "devices.h"

/* A new JSON object the caller owns: time, revision, versions, hosts, data. `world` is asked for its hosts. */
cJSON *describe_run(const struct dataset *data, const struct comm *world);

/* Adds "gpu": the versions of its libraries, who is on which GPU, and the settings for NCCL in the
 * environment. */
void describe_gpus(cJSON *json, const struct device *devices, int count);

#endif
