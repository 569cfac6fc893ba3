#include "describe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "gpu.h"
#include "nccl_log.h"
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
    cJSON_AddStringToObject(object, "directory", data->directory);
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
            cJSON_AddItemToArray(settings, cJSON_CreateString(*variable));
}

/* Ranks compare one text; on a difference all learn what the odd rank has. */
static bool agree(struct comm *world, const char *text, enum exit_code code, const char *what, struct error *error)
{
    char mine[400] = "", odd_text[400] = "", other_text[400] = "";
    int odd;
    snprintf(mine, sizeof mine, "%s", text);
    if (comm_same(world, XXH64(text, strlen(text), 0), &odd))
        return true;
    memcpy(odd_text, mine, sizeof mine);
    memcpy(other_text, mine, sizeof mine);
    int other = odd == 0 ? 1 : 0;
    comm_broadcast(world, odd_text, sizeof odd_text, odd);
    comm_broadcast(world, other_text, sizeof other_text, other);
    return error_set(error, code, "rank %d on host %s has %s %s but rank %d has %s: start all ranks alike", odd,
                     comm_host_name(world, odd), what, odd_text, other, other_text);
}

bool describe_agree_options(const struct options *options, struct comm *world, struct error *error)
{
    int odd;
    cJSON *json = options_json(options);
    char *all = cJSON_PrintUnformatted(json);
    bool alike = comm_same(world, XXH64(all, strlen(all), XXH64(version_revision, strlen(version_revision), 0)), &odd);
    free(all);
    if (alike) {
        cJSON_Delete(json);
        return true;
    }
    bool same = agree(world, version_revision, EXIT_USAGE, "code of revision", error);
    for (cJSON *item = json->child; item != NULL && same; item = item->next) {
        char *value = cJSON_PrintUnformatted(item), what[40];
        snprintf(what, sizeof what, "--%s", item->string);
        same = agree(world, value, EXIT_USAGE, what, error);
        free(value);
    }
    cJSON_Delete(json);
    return same;
}

bool describe_agree_build(struct comm *world, struct error *error)
{
    return agree(world, version_build, EXIT_USAGE, "a program built by", error);
}

bool describe_agree_data(const struct dataset *data, struct comm *world, struct error *error)
{
    char content[100];
    snprintf(content, sizeof content, "%zu + %zu pictures, xxh64 %016llx", data->train.count, data->test.count,
             (unsigned long long)data->hash);
    return agree(world, content, EXIT_INPUT, "data", error);
}
