#include "agree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "version.h"

bool agree_on_action(const struct options *options, struct comm *world, struct error *error)
{
    int odd;
    if (comm_same(world,
                  (uint64_t)(options->help | options->version << 1 | options->doctor << 2 | options->verify << 3),
                  &odd))
        return true;
    return error_set(error, EXIT_USAGE,
                     "rank %d on host %s was started with another of --help, --version, --doctor, --verify than the "
                     "others: start all ranks alike",
                     odd, comm_host_name(world, odd));
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

bool agree_on_options(const struct options *options, struct comm *world, struct error *error)
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

bool agree_on_engine(const struct engine_ops *engine, struct comm *world, struct error *error)
{
    int odd;
    if (!comm_same(world, XXH64(engine->name, strlen(engine->name), 0), &odd))
        return error_set(error, EXIT_USAGE,
                         "rank %d on host %s chose another engine than the others, because not all machines are "
                         "alike: name one for all (--engine cpu runs everywhere)",
                         odd, comm_host_name(world, odd));
    return engine->is_defined || agree(world, version_build, EXIT_USAGE, "a program built by", error);
}

bool agree_on_data(const struct dataset *data, struct comm *world, struct error *error)
{
    char content[100];
    snprintf(content, sizeof content, "%zu + %zu pictures, xxh64 %016llx", data->train.count, data->test.count,
             (unsigned long long)data->hash);
    return agree(world, content, EXIT_INPUT, "data", error);
}
