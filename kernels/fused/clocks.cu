/* clocks.cu - the training kernel once more, with a clock read at the end of every phase, which costs a step some 2 us:
 * for bench/step --engine fused. */
#define FUSED_CLOCKS
#include "train.cuh"

extern "C" const char *fused_phase(uint32_t phase)
{
    static const char *const names[] = {"pictures",        "grid wait",    "update",         "factors, taps",
                                        "conv1",           "conv2",        "wait for pool2", "conv3",
                                        "head",            "wait for rows", "dense back",    "conv2 weights",
                                        "conv2 input",     "conv1 weights"};
    static_assert(sizeof names / sizeof *names == FUSED_PHASES, "a name for each");
    return names[phase];
}

extern "C" cudaError_t fused_train_by_clocks(const fused_run *run, cudaStream_t stream)
{
    cudaError_t error = fit(fused_train_kernel);
    return error == cudaSuccess ? launch_training(run, 1, stream) : error;
}
