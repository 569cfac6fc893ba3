#include "dropout_time.h"

#include <cuda_runtime_api.h>

#include "check.h"
#include "device.h"
#include "device_memory.h"
#include "dropout_cuda.h"
#include "median.h"

/* A short call is over before the next can be launched, so a window has CALLS of them. */
enum { WINDOWS = 9, CALLS = 10, LONG_MICROSECONDS = 5000 };

/* A pass over tensors in device memory, on the clock. */
struct timing {
    const struct dropout_pass *pass;
    size_t count;
    float *x, *y;
    cudaStream_t stream;
    cudaEvent_t begin, end;
};

static bool queue(const struct timing *t, struct error *error)
{
    const struct dropout_pass *pass = t->pass;
    if (pass->dropout == NULL)
        CUDA_CHECK(cudaMemcpyAsync(t->y, t->x, t->count * sizeof *t->x, cudaMemcpyDeviceToDevice, t->stream));
    else if (pass->backward)
        return dropout_cuda_backward(pass->dropout, pass->numbers, t->x, t->y, t->stream, error);
    else
        return dropout_cuda_forward(pass->dropout, pass->numbers, t->x, t->y, t->stream, error);
    return true;
}

static bool time_calls(const struct timing *t, int calls, double *microseconds, struct error *error)
{
    float milliseconds;
    CUDA_CHECK(cudaEventRecord(t->begin, t->stream));
    for (int i = 0; i < calls; i++)
        if (!queue(t, error))
            return false;
    CUDA_CHECK(cudaEventRecord(t->end, t->stream));
    CUDA_CHECK(cudaEventSynchronize(t->end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, t->begin, t->end));
    *microseconds = 1e3 * (double)milliseconds / calls;
    return true;
}

static bool time_windows(const struct timing *t, double *microseconds, struct error *error)
{
    double times[WINDOWS];
    for (int i = 0; i < 2; i++) /* the first warms up */
        if (!time_calls(t, 1, times, error))
            return false;
    int calls = times[0] < LONG_MICROSECONDS ? CALLS : 1;
    for (int i = 0; i < WINDOWS; i++)
        if (!time_calls(t, calls, &times[i], error))
            return false;
    *microseconds = median(times, WINDOWS);
    return true;
}

bool dropout_time(const struct dropout_pass *pass, size_t count, const float *x, float *y, double *microseconds,
                  struct error *error)
{
    struct timing t = {.pass = pass, .count = count};
    size_t bytes = count * sizeof *x;
    device_use(0);
    CUDA_CHECK(cudaStreamCreateWithFlags(&t.stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&t.begin));
    CUDA_CHECK(cudaEventCreate(&t.end));
    t.x = device_allocate(bytes, "a tensor");
    t.y = device_allocate(bytes, "a tensor");
    CUDA_CHECK(cudaMemcpyAsync(t.x, x, bytes, cudaMemcpyDefault, t.stream));
    CUDA_CHECK(cudaMemcpyAsync(t.y, y, bytes, cudaMemcpyDefault, t.stream));
    bool done = time_windows(&t, microseconds, error);
    CUDA_CHECK(cudaMemcpyAsync(y, t.y, bytes, cudaMemcpyDefault, t.stream));
    CUDA_CHECK(cudaStreamSynchronize(t.stream));
    CUDA_CHECK(cudaFree(t.y));
    CUDA_CHECK(cudaFree(t.x));
    CUDA_CHECK(cudaEventDestroy(t.end));
    CUDA_CHECK(cudaEventDestroy(t.begin));
    CUDA_CHECK(cudaStreamDestroy(t.stream));
    return done;
}
