#include "describe.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "gpu.h"
#include "nccl_log.h"
#include "run_directory.h"
#include "version.h"

static void add_now(cJSON *json)
{
    char text[40];
    time_t now = time(NULL);
    struct tm utc;
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    cJSON_AddStringToObject(json, "started", text);
}

static void add_data(cJSON *json, const struct dataset *data)
{
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)data->hash);
    cJSON *object = cJSON_AddObjectToObject(json, "data");
    cJSON_AddItemToObject(object, "directory", run_directory_text(data->directory));
    cJSON_AddNumberToObject(object, "train", (double)data->train.count);
    cJSON_AddNumberToObject(object, "test", (double)data->test.count);
    cJSON_AddStringToObject(object, "xxh64", hash);
}

/* One entry a host: its name and how many ranks it has. */
static void add_hosts(cJSON *json, const struct comm *world)
{
    cJSON *hosts = cJSON_AddObjectToObject(json, "hosts");
    for (int i = 0; i < comm_size(world); i++) {
        const char *name = comm_host_name(world, i);
        cJSON *ranks = cJSON_GetObjectItemCaseSensitive(hosts, name);
        if (ranks == NULL)
            ranks = cJSON_AddNumberToObject(hosts, name, 0);
        cJSON_SetNumberValue(ranks, cJSON_GetNumberValue(ranks) + 1);
    }
}

cJSON *describe_run(const struct dataset *data, const struct comm *world)
{
    char mpi[100];
    comm_library(mpi, sizeof mpi);
    cJSON *json = cJSON_CreateObject();
    add_now(json);
    cJSON_AddStringToObject(json, "revision", version_revision);
    cJSON_AddStringToObject(json, "build", version_build);
    cJSON_AddStringToObject(json, "mpi", mpi);
    add_hosts(json, world);
    add_data(json, data);
    return json;
}

void describe_gpus(cJSON *json, const struct device *devices, int count)
{
    char text[400];
    const struct gpu_part *part = gpu_load(text, sizeof text);
    cJSON *object = cJSON_AddObjectToObject(json, "gpu");
    if (part != NULL) {
        part->versions(text, sizeof text);
        cJSON_AddStringToObject(object, "versions", text);
    }
    cJSON *ranks = cJSON_AddArrayToObject(object, "ranks");
    cJSON *settings = cJSON_AddArrayToObject(object, "nccl");
    for (int i = 0; i < count; i++) {
        devices_line(devices, i, text, sizeof text);
        cJSON_AddItemToArray(ranks, cJSON_CreateString(text));
    }
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, "NCCL_", 5) == 0 && !nccl_log_has_set(*variable))
            cJSON_AddItemToArray(settings, run_directory_text(*variable));
}
