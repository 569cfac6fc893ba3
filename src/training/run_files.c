#include "run_files.h"

#include <string.h>

#include "checkpoint.h"
#include "files.h"

static bool load_start(struct run_files *files, const struct options *options, const struct terms *terms,
                       size_t samples, struct run_state *start, struct error *error)
{
    const char *path = files->directory.path;
    start->progress = (struct progress){.best_train = -1, .best_test = -1};
    if (options->resume && checkpoint_exists(path)) {
        if (!checkpoint_read(path, terms, samples, &start->progress, start->weights, start->momentum, error))
            return false;
        files->saved = true;
        files->saved_step = start->progress.step;
        return true;
    }
    memset(start->momentum, 0, LENET5_WEIGHTS * sizeof *start->momentum);
    if (options->init_from != NULL)
        return checkpoint_read_model(options->init_from, start->weights, error);
    lenet5_initialise(options->seed, start->weights);
    return true;
}

bool run_files_open(struct run_files *files, const char *path, const struct options *options, const struct terms *terms,
                    size_t samples, struct run_state *start, struct error *error)
{
    files->is_open = run_directory_open(&files->directory, path, options->resume, error);
    return files->is_open && load_start(files, options, terms, samples, start, error);
}

const cJSON *run_files_choices(const struct run_files *files, cJSON **description)
{
    *description = run_directory_read(&files->directory);
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(*description, "net"), "choices");
}

/* What run.json said at each start before this one, the oldest first. */
static void keep_earlier_starts(cJSON *json, const struct run_directory *directory)
{
    cJSON *before = run_directory_read(directory);
    if (before == NULL)
        return;
    cJSON *starts = cJSON_DetachItemFromObjectCaseSensitive(before, "earlier_starts");
    if (!cJSON_IsArray(starts)) {
        cJSON_Delete(starts);
        starts = cJSON_CreateArray();
    }
    cJSON_AddItemToArray(starts, before);
    cJSON_AddItemToObject(json, "earlier_starts", starts);
}

static bool write_description(struct run_files *files, const cJSON *description, const struct trial *trial,
                              struct engine *engine, uint64_t epochs_done, struct error *error)
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
    keep_earlier_starts(json, &files->directory);
    bool done = run_directory_write(&files->directory, json, error);
    cJSON_Delete(json);
    return done;
}

bool run_files_begin(struct run_files *files, const cJSON *description, const struct trial *trial, struct engine *engine,
                     uint64_t epochs_done, struct error *error)
{
    if (write_description(files, description, trial, engine, epochs_done, error))
        files->metrics = metrics_open(files->directory.path, epochs_done, error);
    return files->metrics != NULL;
}

bool run_files_save(struct run_files *files, const struct terms *terms, const struct run_state *state,
                    struct error *error)
{
    files->saved = checkpoint_write(files->directory.path, terms, &state->progress, state->weights, state->momentum,
                                    error);
    if (files->saved)
        files->saved_step = state->progress.step;
    return files->saved;
}

bool run_files_save_best(struct run_files *files, const float *weights, struct error *error)
{
    char path[4096];
    return files_path(files->directory.path, "model-best.safetensors", path, error) &&
           checkpoint_write_model(path, weights, error);
}

void run_files_close(struct run_files *files)
{
    metrics_close(files->metrics);
    if (files->is_open)
        run_directory_close(&files->directory);
}
