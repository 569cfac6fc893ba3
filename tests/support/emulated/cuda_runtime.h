/* cuda_runtime.h - as tests/support/shim's, but a launch is queued on its stream. */
#ifndef DTRAIN_EMULATED_CUDA_RUNTIME_H
#define DTRAIN_EMULATED_CUDA_RUNTIME_H

#include "../shim/cuda_runtime.h"
#include "emulated.h"

extern "C" cudaError_t cudaGetLastError(void); /* an error from before shows at the launch, as with CUDA */

template <typename Body> struct emulated_kernel {
    unsigned blocks, threads;
    Body body;

    static void thread(void *body)
    {
        (*static_cast<Body *>(body))();
    }

    static bool run(void *context)
    {
        auto *kernel = static_cast<emulated_kernel *>(context);
        cuda_host_run(kernel->blocks, kernel->threads, thread, &kernel->body);
        return true;
    }
};

template <typename Body>
static inline cudaError_t emulated_launch(unsigned blocks, unsigned threads, void *stream, Body body)
{
    emulated_kernel<Body> kernel = {blocks, threads, body};
    emulated_queue(stream, emulated_kernel<Body>::run, &kernel, sizeof kernel);
    return cudaGetLastError();
}

#undef LAUNCH
#define LAUNCH(kernel, blocks, threads, stream, ...)                                                                   \
    emulated_launch(blocks, threads, (void *)(stream), [=] { kernel(__VA_ARGS__); })

#endif
