#include "cudnn_choose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cache.h"
#include "files.h"
#include "src/gpu/check.h"

enum { REPEATS = 20, WINDOWS = 9, MOST_CACHE_BYTES = 1 << 20 };

/* --- the cache --------------------------------------------------------------------------------------- */

/* NULL if there is none that can be read: then all is timed anew. */
static cJSON *read_cache(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return NULL;
    char *text = malloc(MOST_CACHE_BYTES);
    size_t bytes = text != NULL ? fread(text, 1, MOST_CACHE_BYTES, file) : 0;
    fclose(file);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    free(text);
    return json;
}

/* What the candidates and their order depend on. */
static void name_device(char *name, size_t bytes)
{
    int device, driver;
    struct cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    snprintf(name, bytes, "%s, %d multiprocessors, driver %d, cuDNN %zu", properties.name,
             properties.multiProcessorCount, driver, cudnnGetVersion());
}

static void open_cache(struct chooser *chooser)
{
    char path[4096], device[400];
    struct error none = {0};
    cJSON *cache = cache_path("cudnn.json", path, &none) ? read_cache(path) : NULL;
    if (!cJSON_IsObject(cache)) {
        cJSON_Delete(cache);
        cache = cJSON_CreateObject();
    }
    name_device(device, sizeof device);
    chooser->cache = cache;
    chooser->choices = cJSON_GetObjectItemCaseSensitive(cache, device);
    if (!cJSON_IsObject(chooser->choices)) {
        cJSON_DeleteItemFromObjectCaseSensitive(cache, device);
        chooser->choices = cJSON_AddObjectToObject(cache, device);
    }
}

/* A courtesy to the next run: where it cannot be written, that one times again. */
static void write_cache(const struct chooser *chooser)
{
    char path[4096];
    struct error none = {0};
    if (!cache_path("", path, &none))
        return;
    mkdir(path, 0777); /* there already, as a rule */
    char *text = cJSON_Print(chooser->cache);
    if (text != NULL && cache_path("cudnn.json", path, &none))
        files_replace(path, NULL, text, strlen(text), &none);
    free(text);
}

void chooser_open(struct chooser *chooser, cudnnHandle_t handle, cudaStream_t stream,
                  enum precision precision, void *workspace, size_t workspace_bytes)
{
    *chooser = (struct chooser){.handle = handle,
                                .stream = stream,
                                .device = conv_device_of(handle),
                                .precision = precision,
                                .workspace = workspace,
                                .workspace_bytes = workspace_bytes};
    open_cache(chooser);
}

void chooser_close(struct chooser *chooser)
{
    if (chooser->changed)
        write_cache(chooser);
    cJSON_Delete(chooser->cache);
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(chooser->device));
}

/* --- timing ------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* REPEATS runs as one CUDA graph; NULL if they cannot be captured. */
static cudaGraphExec_t capture(const struct chooser *chooser, const struct conv_choice *choice)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    bool runs = true;
    CUDA_CHECK(cudaStreamBeginCapture(chooser->stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < REPEATS && runs; i++)
        runs = conv_graph_run(choice->graph, choice->candidate, chooser->handle, choice->bound);
    bool captured = cudaStreamEndCapture(chooser->stream, &graph) == cudaSuccess && runs &&
                    cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    cudaGetLastError(); /* clears it */
    if (graph != NULL)
        CUDA_CHECK(cudaGraphDestroy(graph));
    return captured ? exec : NULL;
}

/* Microseconds a run: the median of several windows after one to warm up. */
static float time_replays(const struct chooser *chooser, cudaGraphExec_t exec)
{
    float times[WINDOWS];
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaGraphLaunch(exec, chooser->stream));
    for (int i = 0; i < WINDOWS; i++) {
        CUDA_CHECK(cudaEventRecord(begin, chooser->stream));
        CUDA_CHECK(cudaGraphLaunch(exec, chooser->stream));
        CUDA_CHECK(cudaEventRecord(end, chooser->stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&times[i], begin, end));
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    qsort(times, WINDOWS, sizeof *times, compare);
    return times[WINDOWS / 2] * 1e3f / REPEATS;
}

/* Infinite when the candidate does not run. */
static float time_candidate(const struct chooser *chooser, const struct conv_choice *choice)
{
    if (!conv_graph_run(choice->graph, choice->candidate, chooser->handle, choice->bound))
        return INFINITY;
    CUDA_CHECK(cudaStreamSynchronize(chooser->stream));
    cudaGraphExec_t exec = capture(chooser, choice);
    if (exec == NULL)
        return INFINITY;
    float microseconds = time_replays(chooser, exec);
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    return microseconds;
}

/* --- choosing ---------------------------------------------------------------------------------------- */

static bool prepare(const struct chooser *chooser, struct conv_choice *choice, int candidate,
                    const struct conv_tensors *tensors)
{
    if (!conv_graph_build(choice->graph, candidate) ||
        (size_t)choice->graph->candidates[candidate].workspace_bytes > chooser->workspace_bytes)
        return false;
    choice->candidate = candidate;
    choice->bound = conv_graph_bind(choice->graph, tensors, chooser->workspace);
    return true;
}

static void unbind(struct conv_choice *choice)
{
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(choice->bound));
    choice->bound = NULL;
}

/* The fastest candidate, or -1. */
static int time_all(const struct chooser *chooser, struct conv_choice *choice,
                    const struct conv_tensors *tensors, float *best)
{
    int fastest = -1;
    *best = INFINITY;
    for (int i = 0; i < choice->graph->count; i++) {
        if (!prepare(chooser, choice, i, tensors))
            continue;
        float microseconds = time_candidate(chooser, choice);
        unbind(choice);
        if (microseconds < *best) {
            *best = microseconds;
            fastest = i;
        }
    }
    return fastest;
}

static int recall(const struct chooser *chooser, const struct conv_graph *graph, const char *key)
{
    const cJSON *known = cJSON_GetObjectItemCaseSensitive(chooser->choices, key);
    const cJSON *candidate = cJSON_GetObjectItemCaseSensitive(known, "candidate");
    const cJSON *engine = cJSON_GetObjectItemCaseSensitive(known, "engine");
    if (!cJSON_IsNumber(candidate) || !cJSON_IsNumber(engine) || candidate->valueint < 0 ||
        candidate->valueint >= graph->count ||
        (double)graph->candidates[candidate->valueint].engine != engine->valuedouble)
        return -1;
    return candidate->valueint;
}

static void remember(struct chooser *chooser, const struct conv_graph *graph, const char *key, int candidate,
                     float microseconds)
{
    cJSON_DeleteItemFromObjectCaseSensitive(chooser->choices, key);
    cJSON *entry = cJSON_AddObjectToObject(chooser->choices, key);
    cJSON_AddNumberToObject(entry, "candidate", candidate);
    cJSON_AddNumberToObject(entry, "of", graph->count);
    cJSON_AddNumberToObject(entry, "engine", (double)graph->candidates[candidate].engine);
    cJSON_AddNumberToObject(entry, "microseconds", microseconds);
    chooser->changed = true;
}

static void name_conv(const struct conv *conv, enum precision precision, char *key, size_t bytes)
{
    static const char *const precisions[] = {"fp32", "tf32", "bf16"};
    snprintf(key, bytes, "%s %dx%dx%dx%d -> %d %s", conv_pass_names[conv->pass], conv->samples,
             conv->channels, conv->side, conv->side, conv->outputs, precisions[precision]);
}

bool conv_choose(struct chooser *chooser, const struct conv *conv, const struct conv_tensors *tensors,
                 struct conv_choice *choice, struct error *error)
{
    char key[100];
    float microseconds;
    name_conv(conv, chooser->precision, key, sizeof key);
    *choice = (struct conv_choice){.graph = conv_graph_open(chooser->device, conv, chooser->precision)};
    if (choice->graph == NULL)
        return error_set(error, EXIT_RUNTIME, "engine cudnn: no memory for the plans of %s", key);
    int candidate = recall(chooser, choice->graph, key);
    if (candidate >= 0 && prepare(chooser, choice, candidate, tensors))
        return true;
    candidate = time_all(chooser, choice, tensors, &microseconds);
    if (candidate < 0) {
        int count = choice->graph->count;
        conv_release(choice);
        return error_set(
            error, EXIT_RUNTIME,
            "engine cudnn: none of cuDNN's %d deterministic plans runs %s here; another --precision or "
            "--engine cpu may",
            count, key);
    }
    remember(chooser, choice->graph, key, candidate, microseconds);
    return prepare(chooser, choice, candidate, tensors);
}

void conv_run(const struct conv_choice *choice, cudnnHandle_t handle)
{
    if (!conv_graph_run(choice->graph, choice->candidate, handle, choice->bound)) {
        char reason[300];
        cudnnGetLastErrorString(reason, sizeof reason);
        gpu_failed("cuDNN", conv_pass_names[choice->graph->conv.pass], __FILE__, __LINE__, reason);
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
