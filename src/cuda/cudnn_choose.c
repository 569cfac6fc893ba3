#include "cudnn_choose.h"

#include <cublas_v2.h>
#include <cudnn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cache.h"
#include "check.h"
#include "files.h"
#include "median.h"

enum {
    REPEATS = 20,
    WINDOWS = 9,
    LONG_MILLISECONDS = 1,
    FORMAT = 2, /* to be raised when a stored choice would mean something else: other graphs, another order */
};

/* --- choices, by device and key ------------------------------------------------------------------------ */

static cJSON *object_at(cJSON *parent, const char *name)
{
    cJSON *object = cJSON_GetObjectItemCaseSensitive(parent, name);
    if (cJSON_IsObject(object))
        return object;
    cJSON_DeleteItemFromObjectCaseSensitive(parent, name);
    return cJSON_AddObjectToObject(parent, name);
}

/* Replaces what `to` has under the same keys. Returns whether that changes anything. */
static bool merge(cJSON *to, const cJSON *from)
{
    bool changed = false;
    const cJSON *device, *choice;
    cJSON_ArrayForEach(device, from) cJSON_ArrayForEach(choice, device)
    {
        cJSON *choices = object_at(to, device->string);
        const cJSON *old = cJSON_GetObjectItemCaseSensitive(choices, choice->string);
        if (!cJSON_IsObject(choice) || (old != NULL && cJSON_Compare(old, choice, true)))
            continue;
        cJSON_DeleteItemFromObjectCaseSensitive(choices, choice->string);
        cJSON_AddItemToObject(choices, choice->string, cJSON_Duplicate(choice, true));
        changed = true;
    }
    return changed;
}

void chooser_import(struct chooser *chooser, const cJSON *all)
{
    chooser->changed |= merge(chooser->all, all);
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

/* --- the cache ----------------------------------------------------------------------------------------- */

/* What the candidates and their order depend on. */
static void name_device(char *name, size_t bytes)
{
    int device, driver, blas[3] = {0};
    struct cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    for (int i = 0; i < 3; i++)
        CUBLAS_CHECK(cublasGetProperty((libraryPropertyType)i, &blas[i]));
    snprintf(name, bytes, "%s, %d multiprocessors, driver %d, cuDNN %zu, cuBLAS %d.%d.%d, format %d", properties.name,
             properties.multiProcessorCount, driver, cudnnGetVersion(), blas[0], blas[1], blas[2], FORMAT);
}

/* An empty one if there is none that can be read: then all is timed anew. */
static cJSON *read_cache(void)
{
    char path[4096];
    struct folder folder;
    struct error none = {0};
    cJSON *cache = NULL;
    if (cache_path("", path, &none) && folder_open(&folder, path, &none)) {
        cache = folder_read_json(&folder, "cudnn.json");
        folder_close(&folder);
    }
    if (cJSON_IsObject(cache))
        return cache;
    cJSON_Delete(cache);
    return cJSON_CreateObject();
}

/* The cache only saves later runs time: where it cannot be written, they time again. Others may have written to it
 * since it was read (groups of ranks, runs on other devices), so it is read again and merged. */
void chooser_save(struct chooser *chooser)
{
    char path[4096];
    struct error none = {0};
    if (!chooser->changed || !cache_path("", path, &none))
        return;
    chooser->changed = false;
    cache_make_parents(path); /* there already, as a rule */
    cJSON *cache = read_cache();
    merge(cache, chooser->all);
    char *text = cJSON_Print(cache);
    cJSON_Delete(cache);
    struct folder folder;
    if (text != NULL && folder_open(&folder, path, &none)) {
        folder_replace(&folder, "cudnn.json", NULL, text, strlen(text), &none);
        folder_close(&folder);
    }
    free(text);
}

void chooser_open(struct chooser *chooser, cudaStream_t stream, struct comm *comm)
{
    *chooser = (struct chooser){.stream = stream, .comm = comm};
    name_device(chooser->device, sizeof chooser->device);
    chooser->all = cJSON_CreateObject();
    cJSON *cache = read_cache(), *known = cJSON_DetachItemFromObjectCaseSensitive(cache, chooser->device);
    cJSON_Delete(cache);
    if (known != NULL)
        cJSON_AddItemToObject(chooser->all, chooser->device, known);
    chooser->choices = object_at(chooser->all, chooser->device);
}

void chooser_close(struct chooser *chooser)
{
    cJSON_Delete(chooser->all);
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

/* Runs it twice: on the first run libraries load what they need. */
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

void chooser_alive(const struct chooser *chooser)
{
    comm_alive(chooser->comm);
}

float chooser_time(struct chooser *chooser, bool (*run)(const void *context), const void *context)
{
    struct clocked clocked = {.stream = chooser->stream, .run = run, .context = context};
    float microseconds = INFINITY;
    chooser_alive(chooser);
    CUDA_CHECK(cudaEventCreate(&clocked.begin));
    CUDA_CHECK(cudaEventCreate(&clocked.end));
    cudaGraphExec_t exec = try_alone(&clocked) ? capture(&clocked) : NULL;
    cudaError_t left = cudaGetLastError(); /* clears what one that does not run has left */
    if (exec == NULL) {
        chooser->failed = left;
    } else {
        microseconds = time_replays(&clocked, exec);
        CUDA_CHECK(cudaGraphExecDestroy(exec));
    }
    CUDA_CHECK(cudaEventDestroy(clocked.begin));
    CUDA_CHECK(cudaEventDestroy(clocked.end));
    return microseconds;
}
