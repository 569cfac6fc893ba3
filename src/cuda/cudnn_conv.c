#include "cudnn_conv.h"

#include <math.h>
#include <stdio.h>

#include "check.h"

void conv_planner_open(struct conv_planner *planner, struct chooser *chooser, cudnnHandle_t handle,
                       enum precision precision, void *workspace, size_t workspace_bytes)
{
    *planner = (struct conv_planner){.chooser = chooser,
                                     .handle = handle,
                                     .device = conv_device_of(handle),
                                     .precision = precision,
                                     .workspace = workspace,
                                     .workspace_bytes = workspace_bytes};
}

void conv_planner_close(struct conv_planner *planner)
{
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(planner->device));
}

static bool prepare(const struct conv_planner *planner, struct conv_choice *choice, int candidate,
                    const struct conv_tensors *tensors)
{
    if (!conv_graph_build(choice->graph, candidate) ||
        (size_t)choice->graph->candidates[candidate].workspace_bytes > planner->workspace_bytes)
        return false;
    choice->candidate = candidate;
    choice->bound = conv_bind(tensors, planner->workspace);
    return true;
}

static void unbind(struct conv_choice *choice)
{
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(choice->bound));
    choice->bound = NULL;
}

/* A candidate under the clock. */
struct timed {
    const struct conv_choice *choice;
    cudnnHandle_t handle;
};

static bool run_timed(const void *context)
{
    const struct timed *timed = context;
    const struct conv_choice *choice = timed->choice;
    return conv_graph_run(choice->graph, choice->candidate, timed->handle, choice->bound);
}

/* The fastest candidate, or -1. */
static int time_all(const struct conv_planner *planner, struct conv_choice *choice, const struct conv_tensors *tensors,
                    float *best)
{
    int fastest = -1;
    *best = INFINITY;
    for (int i = 0; i < choice->graph->count; i++) {
        chooser_alive(planner->chooser); /* some plans are compiled now */
        if (!prepare(planner, choice, i, tensors))
            continue;
        float microseconds = chooser_time(planner->chooser, run_timed, &(struct timed){choice, planner->handle});
        unbind(choice);
        if (microseconds < *best) {
            *best = microseconds;
            fastest = i;
        }
    }
    return fastest;
}

/* The candidate that was chosen before, or -1. */
static int recall(const struct chooser *chooser, const struct conv_graph *graph, const char *key)
{
    const cJSON *known = chooser_recall(chooser, key);
    const cJSON *candidate = cJSON_GetObjectItemCaseSensitive(known, "candidate");
    const cJSON *of = cJSON_GetObjectItemCaseSensitive(known, "of");
    const cJSON *engine = cJSON_GetObjectItemCaseSensitive(known, "engine");
    if (!cJSON_IsNumber(candidate) || !cJSON_IsNumber(of) || !cJSON_IsNumber(engine) || of->valueint != graph->count ||
        candidate->valueint < 0 || candidate->valueint >= graph->count ||
        (double)graph->candidates[candidate->valueint].engine != engine->valuedouble)
        return -1;
    return candidate->valueint;
}

static void remember(struct chooser *chooser, const struct conv_graph *graph, const char *key, int candidate,
                     float microseconds)
{
    cJSON *note = chooser_note(chooser, key);
    cJSON_AddNumberToObject(note, "candidate", candidate);
    cJSON_AddNumberToObject(note, "of", graph->count);
    cJSON_AddNumberToObject(note, "engine", (double)graph->candidates[candidate].engine);
    cJSON_AddNumberToObject(note, "microseconds", microseconds);
}

static void name_conv(const struct conv *conv, enum precision precision, char *key, size_t bytes)
{
    snprintf(key, bytes, "forward %dx%dx%dx%d -> %d %s", conv->samples, conv->channels, conv->side, conv->side,
             conv->outputs, engine_precision_name(precision));
}

/* With what the libraries last said: one run on a device is to tell the cause. */
static void set_none_runs(const struct conv_planner *planner, int count, const char *key, struct error *error)
{
    char said[300] = "";
    cudnnGetLastErrorString(said, sizeof said);
    error_set(error, EXIT_RUNTIME,
              "engine cudnn: none of cuDNN's %d deterministic plans runs %s here (cuDNN: %s; CUDA: %s); another "
              "--precision or --engine cpu may",
              count, key, said[0] != '\0' ? said : "nothing", cudaGetErrorString(planner->chooser->failed));
}

bool conv_choose(const struct conv_planner *planner, const struct conv *conv, const struct conv_tensors *tensors,
                 struct conv_choice *choice, struct error *error)
{
    char key[100];
    float microseconds;
    name_conv(conv, planner->precision, key, sizeof key);
    chooser_alive(planner->chooser);
    *choice = (struct conv_choice){.graph = conv_graph_open(planner->device, conv, planner->precision)};
    int candidate = recall(planner->chooser, choice->graph, key);
    if (candidate >= 0 && prepare(planner, choice, candidate, tensors))
        return true;
    candidate = time_all(planner, choice, tensors, &microseconds);
    if (candidate < 0) {
        set_none_runs(planner, choice->graph->count, key, error);
        conv_release(choice);
        return false;
    }
    remember(planner->chooser, choice->graph, key, candidate, microseconds);
    return prepare(planner, choice, candidate, tensors);
}

void conv_run(const struct conv_choice *choice, cudnnHandle_t handle)
{
    if (!conv_graph_run(choice->graph, choice->candidate, handle, choice->bound)) {
        char reason[300];
        cudnnGetLastErrorString(reason, sizeof reason);
        gpu_failed("cuDNN", "a convolution", __FILE__, __LINE__, reason);
    }
}

void conv_release(struct conv_choice *choice)
{
    if (choice->bound != NULL)
        unbind(choice);
    if (choice->graph != NULL)
        conv_graph_close(choice->graph);
    *choice = (struct conv_choice){0};
}
