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

/* What the odd rank says of itself, and the first that is not as it is. */
struct difference {
    int odd, other;
    char of_odd[400], of_other[400];
};

/* Ranks compare one text. On a difference all learn what two of them say, which may be more than was compared. */
static bool compare(struct comm *world, const char *text, const char *says, struct difference *difference)
{
    uint64_t mine = XXH64(text, strlen(text), 0), of_odd = mine;
    int ranks = comm_size(world);
    if (comm_same(world, mine, &difference->odd))
        return true;
    comm_broadcast(world, &of_odd, sizeof of_odd, difference->odd);
    difference->other = ranks - comm_largest(world, mine != of_odd ? ranks - comm_rank(world) : 0);
    snprintf(difference->of_odd, sizeof difference->of_odd, "%s", says);
    snprintf(difference->of_other, sizeof difference->of_other, "%s", says);
    comm_broadcast(world, difference->of_odd, sizeof difference->of_odd, difference->odd);
    comm_broadcast(world, difference->of_other, sizeof difference->of_other, difference->other);
    return false;
}

static bool agree(struct comm *world, const char *text, enum exit_code code, const char *what, struct error *error)
{
    struct difference found = {0};
    if (compare(world, text, text, &found))
        return true;
    return error_set(error, code, "rank %d on host %s has %s %s but rank %d has %s: start all ranks alike", found.odd,
                     comm_host_name(world, found.odd), what, found.of_odd, found.other, found.of_other);
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

bool agree_on_engine(const struct engine_ops *engine, const char *why, struct comm *world, struct error *error)
{
    struct difference found = {0};
    char says[400];
    snprintf(says, sizeof says, "engine %s (%s)", engine->name, why);
    if (!compare(world, engine->name, says, &found))
        return error_set(error, EXIT_USAGE,
                         "rank %d on host %s chose %s, but rank %d on host %s %s: name one engine for all (--engine "
                         "cpu runs everywhere)",
                         found.odd, comm_host_name(world, found.odd), found.of_odd, found.other,
                         comm_host_name(world, found.other), found.of_other);
    return engine->is_defined || agree(world, version_build, EXIT_USAGE, "a program built by", error);
}

bool agree_on_data(const struct dataset *data, struct comm *world, struct error *error)
{
    char content[100];
    snprintf(content, sizeof content, "%zu + %zu pictures, xxh64 %016llx", data->train.count, data->test.count,
             (unsigned long long)data->hash);
    return agree(world, content, EXIT_INPUT, "data", error);
}
