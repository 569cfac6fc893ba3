/* The first visible GPU as the benchmarks' processor. */
#include <cuda_runtime_api.h>
#include <stdio.h>

#include "check.h"
#include "device.h"
#include "dropout_cuda.h"
#include "median.h"

enum { WINDOWS = 9, CALLS = 10, LONG_MICROSECONDS = 5000 }; /* a short call alone ends before the next is launched */

static void name(char *text, size_t bytes)
{
    struct cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    int used = snprintf(text, bytes, "%s, ", properties.name);
    device_versions(text + used, bytes - (size_t)used);
}

static void *open_stream(void)
{
    cudaStream_t stream;
    device_use(0);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static void close_stream(void *stream)
{
    CUDA_CHECK(cudaStreamDestroy(stream));
}

static void *get(size_t bytes)
{
    void *memory;
    CUDA_CHECK(cudaMalloc(&memory, bytes));
    return memory;
}

static void drop(void *memory)
{
    CUDA_CHECK(cudaFree(memory));
}

static void copy(void *to, const void *from, size_t bytes, void *stream)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
}

static void wait_for(void *stream)
{
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

/* Microseconds a call. */
static double time_calls(struct timed work, void *stream, int calls, cudaEvent_t begin, cudaEvent_t end)
{
    float milliseconds;
    CUDA_CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < calls; i++)
        work.queue(work.context, stream);
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    return 1e3 * (double)milliseconds / calls;
}

static double time_work(struct timed work, void *stream)
{
    double times[WINDOWS];
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    time_calls(work, stream, 1, begin, end); /* warms up */
    int calls = time_calls(work, stream, 1, begin, end) < LONG_MICROSECONDS ? CALLS : 1;
    for (int i = 0; i < WINDOWS; i++)
        times[i] = time_calls(work, stream, calls, begin, end);
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    return median(times, WINDOWS);
}

static bool forward(const struct dropout *dropout, struct dropout_stream numbers, const float *x, float *y,
                    void *stream, struct error *error)
{
    return dropout_cuda_forward(dropout, numbers, x, y, stream, error);
}

static bool backward(const struct dropout *dropout, struct dropout_stream numbers, const float *dy, float *dx,
                     void *stream, struct error *error)
{
    return dropout_cuda_backward(dropout, numbers, dy, dx, stream, error);
}

const struct processor gpu_processor = {
    .name = name,
    .open_stream = open_stream,
    .close_stream = close_stream,
    .get = get,
    .drop = drop,
    .copy = copy,
    .wait = wait_for,
    .time = time_work,
    .forward = forward,
    .backward = backward,
};
