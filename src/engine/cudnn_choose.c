#include "cudnn_choose.h"

#include <cudnn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cache.h"
#include "files.h"
#include "median.h"
#include "src/gpu/check.h"

enum { REPEATS = 20, WINDOWS = 9, LONG_MILLISECONDS = 1, MOST_CACHE_BYTES = 1 << 20 };

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

/* A courtesy to the next run: where it cannot be written, that one times again. */
void chooser_save(struct chooser *chooser)
{
    char path[4096];
    struct error none = {0};
    if (!chooser->changed || !cache_path("", path, &none))
        return;
    chooser->changed = false;
    mkdir(path, 0777); /* there already, as a rule */
    char *text = cJSON_Print(chooser->cache);
    if (text != NULL && cache_path("cudnn.json", path, &none))
        files_replace(path, NULL, text, strlen(text), &none);
    free(text);
}

void chooser_open(struct chooser *chooser, cudaStream_t stream, void (*alive)(void *context), void *context)
{
    char path[4096];
    struct error none = {0};
    *chooser = (struct chooser){.stream = stream, .alive = alive, .alive_context = context};
    name_device(chooser->device, sizeof chooser->device);
    chooser->cache = cache_path("cudnn.json", path, &none) ? read_cache(path) : NULL;
    if (!cJSON_IsObject(chooser->cache)) {
        cJSON_Delete(chooser->cache);
        chooser->cache = cJSON_CreateObject();
    }
    chooser->choices = cJSON_GetObjectItemCaseSensitive(chooser->cache, chooser->device);
    if (!cJSON_IsObject(chooser->choices)) {
        cJSON_DeleteItemFromObjectCaseSensitive(chooser->cache, chooser->device);
        chooser->choices = cJSON_AddObjectToObject(chooser->cache, chooser->device);
    }
}

void chooser_close(struct chooser *chooser)
{
    cJSON_Delete(chooser->cache);
}

const cJSON *chooser_recall(const struct chooser *chooser, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(chooser->choices, key);
}

cJSON *chooser_note(struct chooser *chooser, const char *key)
{
    cJSON_DeleteItemFromObjectCaseSensitive(chooser->choices, key);
    chooser->changed = true;
    return cJSON_AddObjectToObject(chooser->choices, key);
}

/* --- between ranks ----------------------------------------------------------------------------------- */

char *chooser_export(const struct chooser *chooser)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemReferenceToObject(json, chooser->device, chooser->choices);
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

void chooser_import(struct chooser *chooser, const char *text)
{
    cJSON *json = cJSON_Parse(text);
    const cJSON *theirs = cJSON_GetObjectItemCaseSensitive(json, chooser->device);
    for (const cJSON *choice = theirs != NULL ? theirs->child : NULL; choice != NULL; choice = choice->next) {
        const cJSON *ours = chooser_recall(chooser, choice->string);
        if (ours != NULL && cJSON_Compare(ours, choice, true))
            continue;
        cJSON_DeleteItemFromObjectCaseSensitive(chooser->choices, choice->string);
        cJSON_AddItemToObject(chooser->choices, choice->string, cJSON_Duplicate(choice, true));
        chooser->changed = true;
    }
    cJSON_Delete(json);
}

/* --- timing ------------------------------------------------------------------------------------------ */

/* What is timed, and with what. */
struct clocked {
    cudaStream_t stream;
    bool (*run)(const void *context);
    const void *context;
    int repeats; /* in a graph: one run alone is shorter than what launches it */
    cudaEvent_t begin, end;
};

/* The repeats as one CUDA graph; NULL if they cannot be captured. */
static cudaGraphExec_t capture(const struct clocked *clocked)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    bool runs = true;
    CUDA_CHECK(cudaStreamBeginCapture(clocked->stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < clocked->repeats && runs; i++)
        runs = clocked->run(clocked->context);
    bool captured = cudaStreamEndCapture(clocked->stream, &graph) == cudaSuccess && runs &&
                    cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    cudaGetLastError(); /* clears it */
    if (graph != NULL)
        CUDA_CHECK(cudaGraphDestroy(graph));
    return captured ? exec : NULL;
}

/* Milliseconds until what was queued since `begin` was recorded is done. */
static float read_clock(const struct clocked *clocked)
{
    float milliseconds;
    CUDA_CHECK(cudaEventRecord(clocked->end, clocked->stream));
    CUDA_CHECK(cudaEventSynchronize(clocked->end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, clocked->begin, clocked->end));
    return milliseconds;
}

/* Microseconds a run: the median of several windows after one to warm up. */
static float time_replays(const struct clocked *clocked, cudaGraphExec_t exec)
{
    double times[WINDOWS];
    CUDA_CHECK(cudaGraphLaunch(exec, clocked->stream));
    for (int i = 0; i < WINDOWS; i++) {
        CUDA_CHECK(cudaEventRecord(clocked->begin, clocked->stream));
        CUDA_CHECK(cudaGraphLaunch(exec, clocked->stream));
        times[i] = read_clock(clocked);
    }
    return 1e3f * (float)median(times, WINDOWS) / (float)clocked->repeats;
}

/* Twice alone: libraries load at the first what they need. */
static bool try_alone(struct clocked *clocked)
{
    for (int i = 0; i < 2; i++) {
        CUDA_CHECK(cudaEventRecord(clocked->begin, clocked->stream));
        if (!clocked->run(clocked->context))
            return false;
        clocked->repeats = read_clock(clocked) < LONG_MILLISECONDS ? REPEATS : 1;
    }
    return true;
}

float chooser_time(struct chooser *chooser, bool (*run)(const void *context), const void *context)
{
    struct clocked clocked = {.stream = chooser->stream, .run = run, .context = context};
    float microseconds = INFINITY;
    chooser->alive(chooser->alive_context);
    CUDA_CHECK(cudaEventCreate(&clocked.begin));
    CUDA_CHECK(cudaEventCreate(&clocked.end));
    cudaGraphExec_t exec = try_alone(&clocked) ? capture(&clocked) : NULL;
    if (exec != NULL) {
        microseconds = time_replays(&clocked, exec);
        CUDA_CHECK(cudaGraphExecDestroy(exec));
    }
    CUDA_CHECK(cudaEventDestroy(clocked.begin));
    CUDA_CHECK(cudaEventDestroy(clocked.end));
    return microseconds;
}
