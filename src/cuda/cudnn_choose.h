/* cudnn_choose.h - which of several ways to do the same is the fastest on this device.
 *
 * Each is timed once, on the device and in a CUDA graph as it will run. What was chosen is remembered in the
 * user's cache (cudnn.json) under the device, the versions and a key, so that a later run starts faster. The ways
 * differ in how they round, so a run goes on with its own choices, which its run.json has.
 */
#ifndef DTRAIN_CUDA_CUDNN_CHOOSE_H
#define DTRAIN_CUDA_CUDNN_CHOOSE_H

#include <cjson/cJSON.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>

#include "comm.h"

struct chooser {
    cudaStream_t stream;
    char device[400]; /* with the versions that the choices depend on */
    cJSON *all;       /* what was chosen, by device and key: on this device, and the other ranks' */
    cJSON *choices;   /* in it: on this device, by key */
    bool changed;
    cudaError_t failed; /* what CUDA said of the last one that did not run, or success */
    struct comm *comm;  /* whose ranks wait meanwhile */
};

void chooser_open(struct chooser *chooser, cudaStream_t stream, struct comm *comm);
void chooser_save(struct chooser *chooser); /* what is new, to the cache */
void chooser_close(struct chooser *chooser);

/* Tells whoever waits for this rank that it is busy: between steps that may take a second. */
void chooser_alive(const struct chooser *chooser);

/* Microseconds of what `run` queues on the stream; infinite when it says false or cannot be captured. */
float chooser_time(struct chooser *chooser, bool (*run)(const void *context), const void *context);

/* What was noted under the key, or NULL; a new note there. Both belong to the chooser. */
const cJSON *chooser_recall(const struct chooser *chooser, const char *key);
cJSON *chooser_note(struct chooser *chooser, const char *key);

/* All choices of another rank, or of the run before it was interrupted: they replace what was chosen under the
 * same keys, so that ranks choose alike, and as before. */
void chooser_import(struct chooser *chooser, const cJSON *all);

#endif
