#include "run_files.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint.h"

/* Where model-best is missing, or not this run's, the best check is forgotten, so that the next one writes it. One
 * that is better than the checkpoint knows counts: it is of a check before the run was killed, which comes again only
 * under the same --eval-every. */
static void look_for_best(const struct folder *folder, const struct terms *terms, struct progress *progress)
{
    struct error why = {0};
    bool has_checksum;
    bool was_checked = progress->best_test >= 0;
    bool good = checkpoint_check_best(folder, terms, progress, &has_checksum, &why);
    if (!was_checked)
        return; /* without such a model nothing is lost */
    if (!good) {
        error_note("%s; the best of the checks from here on takes its place", why.text);
        progress->best_test = -1;
    } else if (!has_checksum) {
        error_note(
            "%s/model-best.safetensors has no checksum, so nothing tells whether it was changed: kept until a check is "
            "better",
            folder->path);
    }
}

/* Whether the run that left this run.json had these terms, began with the same weights, and had no checkpoint before so
 * many epochs were done. */
static bool had_no_checkpoint(const cJSON *json, const struct options *options, const struct terms *terms,
                              double epochs)
{
    const cJSON *theirs = cJSON_GetObjectItemCaseSensitive(json, "terms");
    const cJSON *net = cJSON_GetObjectItemCaseSensitive(json, "net");
    const cJSON *before = cJSON_GetObjectItemCaseSensitive(json, "options");
    const cJSON *first = cJSON_GetObjectItemCaseSensitive(net, "first_epoch");
    const cJSON *every = cJSON_GetObjectItemCaseSensitive(before, "checkpoint-every");
    for (int i = 0; i < terms->count; i++) {
        const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(theirs, terms->list[i].key));
        if (value == NULL || strcmp(value, terms->list[i].value) != 0)
            return false;
    }
    cJSON *ours = options_json(options);
    bool same_start = cJSON_Compare(cJSON_GetObjectItemCaseSensitive(before, "init-from"),
                                    cJSON_GetObjectItemCaseSensitive(ours, "init-from"), true);
    cJSON_Delete(ours);
    return same_start && cJSON_IsNumber(first) && first->valuedouble == 1 && cJSON_IsNumber(every) &&
           epochs <= every->valuedouble;
}

/* Without a checkpoint a run starts anew, in the place of one that was killed before its first: what that one had done
 * is done again, and comes out the same. Nothing else may be lost in this way. */
static bool may_start_anew(const struct folder *folder, const struct options *options, const struct terms *terms,
                           struct error *error)
{
    double epochs = metrics_last_epoch(folder);
    if (epochs == 0 && !checkpoint_has_best(folder))
        return true;
    cJSON *before = folder_read_json(folder, "run.json");
    bool again = had_no_checkpoint(before, options, terms, epochs);
    cJSON_Delete(before);
    return again ||
           error_set(error, EXIT_USAGE,
                     "%s holds metrics or the best model of a run, but no checkpoint that --resume could go on from: "
                     "give another --out, or move these files away",
                     folder->path);
}

static void load_start(struct run_files *files, const struct options *options, const struct terms *terms,
                       size_t samples, struct run_state *start, struct error *error)
{
    start->progress = (struct progress){.best_train = -1, .best_test = -1};
    if (options->resume)
        checkpoint_recover(&files->folder);
    if (options->resume && checkpoint_exists(&files->folder)) {
        if (!checkpoint_read(&files->folder, terms, samples, &start->progress, start->weights, start->velocity, error))
            return;
        if (options->init_from != NULL)
            error_note("--init-from %s is not read: the run goes on from the checkpoint in %s", options->init_from,
                       files->folder.path);
        look_for_best(&files->folder, terms, &start->progress);
        files->saved = true;
        files->saved_step = start->progress.step;
        return;
    }
    if (options->resume) {
        if (!may_start_anew(&files->folder, options, terms, error))
            return;
        look_for_best(&files->folder, terms, &start->progress);
    }
    memset(start->velocity, 0, LENET5_WEIGHTS * sizeof *start->velocity);
    if (options->init_from != NULL)
        checkpoint_read_model(options->init_from, start->weights, error);
    else
        lenet5_initialise(options->seed, start->weights);
}

void run_files_open(struct run_files *files, const char *path, const struct options *options, const struct terms *terms,
                    size_t samples, struct run_state *start, struct error *error)
{
    files->is_open = run_directory_open(&files->folder, path, options->resume, error);
    if (files->is_open)
        load_start(files, options, terms, samples, start, error);
}

const cJSON *run_files_choices(const struct run_files *files, cJSON **description)
{
    *description = folder_read_json(&files->folder, "run.json");
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(*description, "net"), "choices");
}

/* Seeds have 64 bits, of which cJSON's double keeps 53: the run's own is put back. Another one is of a start that left
 * no checkpoint, and stays as it was read. */
static void restore_seed(cJSON *start, uint64_t seed)
{
    char number[32];
    cJSON *options = cJSON_GetObjectItemCaseSensitive(start, "options");
    const cJSON *read = cJSON_GetObjectItemCaseSensitive(options, "seed");
    if (!cJSON_IsNumber(read) || read->valuedouble != (double)seed)
        return;
    snprintf(number, sizeof number, "%llu", (unsigned long long)seed);
    cJSON_ReplaceItemInObjectCaseSensitive(options, "seed", cJSON_CreateRaw(number));
}

/* What run.json said at each start before this one, the oldest first. */
static void keep_earlier_starts(cJSON *json, const struct folder *folder, uint64_t seed)
{
    cJSON *before = run_directory_read(folder);
    if (before == NULL)
        return;
    cJSON *starts = cJSON_DetachItemFromObjectCaseSensitive(before, "earlier_starts");
    if (!cJSON_IsArray(starts)) {
        cJSON_Delete(starts);
        starts = cJSON_CreateArray();
    }
    cJSON_AddItemToArray(starts, before);
    cJSON *start;
    cJSON_ArrayForEach(start, starts) restore_seed(start, seed);
    cJSON_AddItemToObject(json, "earlier_starts", starts);
}

static bool write_description(struct run_files *files, const cJSON *description, const struct trial *trial,
                              const struct terms *terms, struct engine *engine, uint64_t epochs_done,
                              struct error *error)
{
    const struct comm *comm = engine->setup.comm;
    const struct net *net = &trial->net;
    char ways[400];
    comm_ways(comm, ways, sizeof ways);
    cJSON *json = cJSON_Duplicate(description, true);
    cJSON_AddItemToObject(json, "options", options_json(&trial->options));
    cJSON *ours = cJSON_AddObjectToObject(json, "net");
    cJSON_AddStringToObject(ours, "name", (char[]){net->name, '\0'});
    cJSON_AddNumberToObject(ours, "p_conv", net->p_conv);
    cJSON_AddNumberToObject(ours, "p_fc", net->p_fc);
    cJSON_AddNumberToObject(ours, "ranks", comm_size(comm));
    cJSON_AddStringToObject(ours, "engine", engine->ops->name);
    cJSON_AddStringToObject(ours, "comm", comm_transport(comm));
    if (ways[0] != '\0')
        cJSON_AddStringToObject(ours, "comm_ways", ways);
    if (engine->ops->choices != NULL)
        cJSON_AddItemToObject(ours, "choices", engine->ops->choices(engine));
    cJSON_AddNumberToObject(ours, "first_epoch", (double)epochs_done + 1);
    cJSON *theirs = cJSON_AddObjectToObject(json, "terms");
    for (int i = 0; i < terms->count; i++)
        cJSON_AddStringToObject(theirs, terms->list[i].key, terms->list[i].value);
    keep_earlier_starts(json, &files->folder, trial->options.seed);
    bool done = run_directory_write(&files->folder, json, error);
    cJSON_Delete(json);
    return done;
}

void run_files_begin(struct run_files *files, const cJSON *description, const struct trial *trial,
                     const struct terms *terms, struct engine *engine, uint64_t epochs_done, struct error *error)
{
    run_directory_tidy(&files->folder);
    if (write_description(files, description, trial, terms, engine, epochs_done, error))
        files->metrics = metrics_open(&files->folder, epochs_done, error);
}

void run_files_save(struct run_files *files, const struct terms *terms, const struct run_state *state,
                    struct error *error)
{
    metrics_sync(files->metrics);
    files->saved = checkpoint_write(&files->folder, terms, &state->progress, state->weights, state->velocity, error);
    if (files->saved)
        files->saved_step = state->progress.step;
}

void run_files_close(struct run_files *files)
{
    metrics_close(files->metrics);
    if (files->is_open)
        folder_close(&files->folder);
}
