/* CUDA's runtime: memory, streams, events and graphs. */
#include <cuda_runtime_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "emulated.h"
#include "src/comm/shared_memory.h"

/* --- queues ------------------------------------------------------------------------------------------ */

struct job {
    bool (*run)(void *context);
    void *context;
    size_t bytes;
    double ended; /* seconds, once done */
};

struct CUgraph_st {
    struct job *jobs;
    size_t count;
    cudaStream_t side; /* what is captured besides, or NULL */
};

struct CUstream_st {
    struct job *jobs; /* queued and not done are those from `done` on */
    size_t done, count;
    struct CUgraph_st *capturing;
    size_t captured, joined; /* jobs of a side: in the graph, and those that the other stream waits for */
};

struct CUevent_st {
    cudaStream_t stream; /* NULL: never recorded */
    size_t place;        /* behind as many jobs */
    size_t captured;     /* and as many in the graph */
};

static void *copy_of(const void *data, size_t bytes)
{
    return memcpy(malloc(bytes), data, bytes);
}

static void append(struct job **jobs, size_t *count, struct job job)
{
    job.context = copy_of(job.context, job.bytes);
    *jobs = realloc(*jobs, (*count + 1) * sizeof **jobs);
    (*jobs)[(*count)++] = job;
}

void emulated_queue(void *stream, bool (*run)(void *context), const void *context, size_t bytes)
{
    cudaStream_t to = stream;
    struct job job = {.run = run, .context = (void *)context, .bytes = bytes};
    to->captured++;
    if (to->capturing != NULL)
        append(&to->capturing->jobs, &to->capturing->count, job);
    else
        append(&to->jobs, &to->count, job);
}

bool emulated_is_meant(const char *variable)
{
    const char *only = getenv(variable), *rank = getenv("OMPI_COMM_WORLD_RANK");
    return only == NULL || (rank != NULL && strcmp(only, rank) == 0);
}

/* A memory that errs. */
static struct {
    size_t bytes, at;
    char *memory;
    bool done;
} flip;

static void note_memory(void *memory, size_t bytes)
{
    const char *asked = getenv("EMULATED_FLIP");
    if (asked == NULL || flip.memory != NULL || flip.done || !emulated_is_meant("EMULATED_FLIP_RANK") ||
        sscanf(asked, "%zu:%zu", &flip.bytes, &flip.at) != 2 || bytes != flip.bytes)
        return;
    flip.memory = memory;
}

void emulated_begins(void)
{
    if (flip.memory != NULL && !flip.done)
        flip.memory[flip.at] ^= 0x20;
    flip.done = true;
}

/* Runs what comes before `place` as far as it can. */
static bool run_to(cudaStream_t stream, size_t place)
{
    while (stream->done < place) {
        struct job *job = &stream->jobs[stream->done];
        if (!job->run(job->context))
            return false;
        free(job->context);
        job->ended = clock_seconds();
        stream->done++;
    }
    return true;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    while (!run_to(stream, stream->count))
        ;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    free(stream->jobs);
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    *event = (struct CUevent_st){stream, stream->count, stream->captured};
    return cudaSuccess;
}

static _Thread_local cudaError_t last_error;

/* As CUDA does, it remembers an error until somebody asks for the last one. "Not ready" is one. */
static cudaError_t fail(cudaError_t error)
{
    return last_error = error;
}

static bool run_wait(void *context)
{
    const struct CUevent_st *event = context;
    return run_to(event->stream, event->place);
}

/* A stream that waits for one that is captured is captured, too: in the order in which both were given their work. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    struct CUgraph_st *graph = event->stream->capturing;
    if (graph == NULL)
        emulated_queue(stream, run_wait, event, sizeof *event);
    else if (stream->capturing == graph)
        event->stream->joined = event->captured;
    else
        graph->side = stream, stream->capturing = graph, stream->captured = stream->joined = 0;
    return cudaSuccess;
}

/* A job a query, so that whoever asks sees it take its time. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    static long looks;
    cudaStream_t stream = event->stream;
    const char *at = getenv("EMULATED_FAILS_AT");
    if (at != NULL && ++looks >= atol(at))
        return fail(cudaErrorLaunchFailure);
    if (stream == NULL || stream->done >= event->place)
        return cudaSuccess;
    run_to(stream, stream->done + 1);
    return stream->done >= event->place ? cudaSuccess : fail(cudaErrorNotReady);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    while (event->stream != NULL && !run_to(event->stream, event->place))
        ;
    return cudaSuccess;
}

/* When what comes before it was done. */
static double time_of(cudaEvent_t event)
{
    return event->place > 0 ? event->stream->jobs[event->place - 1].ended : 0;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    *milliseconds = (float)(1e3 * (time_of(end) - time_of(begin)));
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}

/* --- graphs ------------------------------------------------------------------------------------------ */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    (void)mode;
    stream->capturing = calloc(1, sizeof *stream->capturing);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    cudaStream_t side = stream->capturing->side;
    *graph = stream->capturing;
    stream->capturing = NULL;
    if (side != NULL)
        side->capturing = NULL;
    return side == NULL || side->joined == side->captured ? cudaSuccess : fail(cudaErrorStreamCaptureUnjoined);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    for (size_t i = 0; i < graph->count; i++)
        free(graph->jobs[i].context);
    free(graph->jobs);
    free(graph);
    return cudaSuccess;
}

/* An executable graph is a copy, too. */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    cudaGraph_t copy = calloc(1, sizeof *copy);
    for (size_t i = 0; i < graph->count; i++)
        append(&copy->jobs, &copy->count, graph->jobs[i]);
    *exec = (cudaGraphExec_t)copy;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    (void)exec, (void)stream;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    cudaGraph_t graph = (cudaGraph_t)exec;
    for (size_t i = 0; i < graph->count; i++)
        append(&stream->jobs, &stream->count, graph->jobs[i]);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return cudaGraphDestroy((cudaGraph_t)exec);
}

/* --- memory ------------------------------------------------------------------------------------------ */

static bool is_full(void)
{
    static long count;
    const char *at = getenv("EMULATED_FULL_AT");
    return at != NULL && emulated_is_meant("EMULATED_FULL_RANK") && ++count == atol(at);
}

/* Full of what nobody should read. */
static cudaError_t allocate(void **memory, size_t bytes)
{
    if (is_full())
        return fail(cudaErrorMemoryAllocation);
    *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(*memory, 0xff, bytes);
    note_memory(*memory, bytes);
    return cudaSuccess;
}

/* What is as large as a page of a GPU can be mapped by other processes. */
struct mappable {
    void *memory;
    struct shared_memory shared;
    struct mappable *next;
};
static struct mappable *mappables;

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    if (bytes % (2 << 20) != 0)
        return allocate(memory, bytes);
    if (is_full())
        return fail(cudaErrorMemoryAllocation);
    struct mappable *made = calloc(1, sizeof *made);
    *memory = made->memory = shared_memory_make(bytes, &made->shared);
    memset(*memory, 0xff, bytes);
    note_memory(*memory, bytes);
    made->next = mappables;
    mappables = made;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    for (struct mappable **at = &mappables; *at != NULL; at = &(*at)->next) {
        struct mappable *found = *at;
        if (found->memory != memory)
            continue;
        *at = found->next;
        shared_memory_unpublish(&found->shared);
        shared_memory_close(memory, found->shared.bytes);
        free(found);
        return cudaSuccess;
    }
    free(memory);
    return cudaSuccess;
}

_Static_assert(sizeof(struct shared_memory) <= sizeof(cudaIpcMemHandle_t), "a handle says where the memory is");

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory)
{
    const struct mappable *found = mappables;
    while (found != NULL && found->memory != memory)
        found = found->next;
    if (found == NULL)
        return fail(cudaErrorInvalidValue);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &found->shared, sizeof found->shared);
    return cudaSuccess;
}

/* A mapping is remembered, too, as its size is needed to close it. */
cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned flags)
{
    bool refused = getenv("EMULATED_IPC") != NULL && emulated_is_meant("EMULATED_IPC_RANK");
    struct mappable *opened = calloc(1, sizeof *opened);
    (void)flags;
    memcpy(&opened->shared, &handle, sizeof opened->shared);
    *memory = !refused ? shared_memory_open(&opened->shared) : NULL;
    opened->shared.descriptor = -1;
    opened->memory = *memory;
    opened->next = mappables;
    mappables = opened;
    return *memory != NULL ? cudaSuccess : fail(cudaErrorMapBufferObjectFailed);
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    return cudaFree(memory);
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    return allocate(memory, bytes);
}

cudaError_t cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    (void)memory, (void)bytes, (void)flags;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    (void)memory;
    return cudaSuccess;
}

struct copy {
    void *to;
    const void *from;
    int value;
    size_t bytes;
};

static bool run_copy(void *context)
{
    const struct copy *copy = context;
    memcpy(copy->to, copy->from, copy->bytes);
    return true;
}

static bool run_set(void *context)
{
    const struct copy *copy = context;
    memset(copy->to, copy->value, copy->bytes);
    return true;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)kind;
    emulated_queue(stream, run_copy, &(struct copy){to, from, 0, bytes}, sizeof(struct copy));
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    emulated_queue(stream, run_set, &(struct copy){to, NULL, value, bytes}, sizeof(struct copy));
    return cudaSuccess;
}

struct call {
    cudaHostFn_t function;
    void *context;
};

static bool run_call(void *context)
{
    const struct call *call = context;
    call->function(call->context);
    return true;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *context)
{
    emulated_queue(stream, run_call, &(struct call){function, context}, sizeof(struct call));
    return cudaSuccess;
}

/* --- devices ----------------------------------------------------------------------------------------- */

static int count_gpus(void)
{
    const char *gpus = getenv("EMULATED_GPUS");
    return gpus != NULL ? atoi(gpus) : 1;
}

/* Of those there are. */
static int number_of(int device)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    return getenv("EMULATED_ALONE") == NULL || rank == NULL ? device : atoi(rank) % count_gpus();
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = getenv("EMULATED_ALONE") != NULL ? 1 : count_gpus();
    return *count > 0 ? cudaSuccess : fail(cudaErrorNoDevice);
}

static _Thread_local int current_device;

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    const char *models = getenv("EMULATED_MODELS"), *old = getenv("EMULATED_OLD");
    int number = number_of(device), model = number % (models != NULL ? atoi(models) : 1);
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, model == 0 ? "emulated GPU" : "emulated GPU, model %d", model);
    properties->major = old != NULL && atoi(old) == number ? 7 : 9;
    properties->uuid.bytes[15] = (char)number;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device)
{
    const char *slices = getenv("EMULATED_SLICES");
    snprintf(text, (size_t)bytes, "0000:%02x:00.0", number_of(device) / (slices != NULL ? atoi(slices) : 1));
    return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, enum cudaDeviceP2PAttr attribute, int from, int to)
{
    const char *peers = getenv("EMULATED_PEERS");
    (void)attribute;
    if (from == to)
        return fail(cudaErrorInvalidDevice);
    *value = peers == NULL || atoi(peers) != 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    int count;
    const char *taken = getenv("EMULATED_TAKEN");
    cudaGetDeviceCount(&count);
    if (taken != NULL && atoi(taken) == number_of(device))
        return fail(cudaErrorDevicesUnavailable);
    if (device < 0 || device >= count)
        return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    static const char *const some[] = {
        [cudaErrorInvalidDevice] = "invalid device", [cudaErrorMapBufferObjectFailed] = "mapping failed",
        [cudaErrorNoDevice] = "no device",           [cudaErrorNoKernelImageForDevice] = "no kernel image",
        [cudaErrorLaunchFailure] = "launch failure", [cudaErrorNotReady] = "not ready"};
    return some[error] ? some[error] : "an error";
}
