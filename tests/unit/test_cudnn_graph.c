/* The convolutions' graphs, planned for GPUs that are not here: every layer at every batch size of a rank
 * finds a plan that is deterministic and of the precision asked for, on each kind of GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "src/cuda/check.h"
#include "src/cuda/cudnn_graph.h"

/* What cuDNN asks to be told of a device. */
struct gpu {
    const char *name;
    int version, multiprocessors, shared_optin, threads, blocks, l2_bytes, sm_khz, memory_khz;
    long long memory;
};
static const struct gpu gpus[] = {
    {"NVIDIA H200", 900, 132, 232448, 2048, 32, 62914560, 1980000, 3201000, 150754820096},
    {"NVIDIA A100-SXM4-80GB", 800, 108, 166912, 2048, 32, 41943040, 1410000, 1593000, 85094825984},
    {"NVIDIA GeForce RTX 4090", 890, 128, 101376, 1536, 24, 75497472, 2520000, 10501000, 25386352640},
};
enum { GPUS = sizeof gpus / sizeof *gpus };

static const struct layer {
    const char *name;
    int channels, side, outputs;
} layers[] = {{"conv1", 3, 32, 6}, {"conv2", 6, 14, 16}, {"conv3", 16, 5, 120}};
enum { LAYERS = sizeof layers / sizeof *layers };

/* Of one rank, two and four, in full batches and the last of an epoch; one sample; predict mode. */
static const int sizes[] = {256, 128, 64, 80, 48, 32, 16, 1, 512};
enum { SIZES = sizeof sizes / sizeof *sizes };

static cudnnBackendDescriptor_t describe(const struct gpu *gpu)
{
    char json[2000];
    int length =
        snprintf(json, sizeof json,
                 "{\"deviceVer\":%d,\"multiProcessorCount\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
                 "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":"
                 "65536,"
                 "\"maxCtasPerSM\":%d,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,\"regsPerBlock\":65536,"
                 "\"totalGlobalMem\":%lld,\"smClockRateKHz\":%d,\"l2CacheSize\":%d,\"maxBlockSize\":[1024,1024,64],"
                 "\"memClockRateKHz\":%d,\"maxGridSize\":[2147483647,65535,65535],\"supportCoopLaunch\":1,"
                 "\"pciDeviceId\":0,\"isTccDriver\":0,\"cudaDeviceId\":0,\"driverVer\":13000,\"deviceName\":\"%s\"}",
                 gpu->version, gpu->multiprocessors, gpu->shared_optin, gpu->blocks, gpu->threads, gpu->memory,
                 gpu->sm_khz, gpu->l2_bytes, gpu->memory_khz, gpu->name);
    assert_in_range(length, 1, sizeof json - 1);
    return conv_device_described(json);
}

static struct conv conv_of(const struct layer *layer, int samples)
{
    return (struct conv){samples, layer->channels, layer->side, layer->outputs};
}

static int count_built(struct conv_graph *graph)
{
    int built = 0;
    for (int i = 0; i < graph->count; i++)
        built += conv_graph_build(graph, i);
    return built;
}

static void test_every_layer_has_plans(void **state)
{
    (void)state;
    for (int g = 0; g < GPUS; g++) {
        cudnnBackendDescriptor_t device = describe(&gpus[g]);
        for (int l = 0; l < LAYERS; l++)
            for (int s = 0; s < SIZES; s++) {
                struct conv conv = conv_of(&layers[l], sizes[s]);
                struct conv_graph *graph = conv_graph_open(device, &conv, PRECISION_FP32);
                assert_non_null(graph);
                if (count_built(graph) == 0)
                    fail_msg("%s: %s of %d samples: none of %d candidates", gpus[g].name, layers[l].name, sizes[s],
                             graph->count);
                conv_graph_close(graph);
            }
        CUDNN_CHECK(cudnnBackendDestroyDescriptor(device));
    }
}

static bool has_note(const struct conv_candidate *candidate, cudnnBackendNumericalNote_t wanted)
{
    int64_t count;
    bool found = false;
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendDescriptor_t engine;
    CUDNN_CHECK(cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine));
    CUDNN_CHECK(cudnnBackendGetAttribute(candidate->config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         1, &count, &engine));
    CUDNN_CHECK(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                         CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes));
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(engine));
    while (count-- > 0)
        found |= notes[count] == wanted;
    return found;
}

/* How many candidates of a precision bear a note, over all layers of a full batch. */
static int count_noted(enum precision precision, cudnnBackendNumericalNote_t note, int *candidates)
{
    int noted = 0;
    cudnnBackendDescriptor_t device = describe(&gpus[0]);
    *candidates = 0;
    for (int l = 0; l < LAYERS; l++) {
        struct conv conv = conv_of(&layers[l], 256);
        struct conv_graph *graph = conv_graph_open(device, &conv, precision);
        assert_non_null(graph);
        for (int i = 0; i < graph->count; i++)
            noted += has_note(&graph->candidates[i], note);
        *candidates += graph->count;
        conv_graph_close(graph);
    }
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(device));
    return noted;
}

static void test_fp32_is_fp32(void **state)
{
    (void)state;
    int fp32, tf32;
    assert_int_equal(count_noted(PRECISION_FP32, CUDNN_NUMERICAL_NOTE_TENSOR_CORE, &fp32), 0);
    assert_int_equal(count_noted(PRECISION_FP32, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS, &fp32), 0);
    assert_int_equal(count_noted(PRECISION_FP32, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION, &fp32), 0);
    assert_true(count_noted(PRECISION_TF32, CUDNN_NUMERICAL_NOTE_TENSOR_CORE, &tf32) > 0);
    assert_true(tf32 > fp32);
}

static void test_all_are_deterministic(void **state)
{
    (void)state;
    int candidates;
    for (int precision = PRECISION_FP32; precision <= PRECISION_TF32; precision++)
        assert_int_equal(count_noted((enum precision)precision, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC, &candidates), 0);
}

/* Runs of one version must come to the same choice: the cache names a candidate by its place. */
static void test_candidates_keep_their_order(void **state)
{
    (void)state;
    cudnnBackendDescriptor_t device = describe(&gpus[0]);
    struct conv conv = conv_of(&layers[1], 256);
    struct conv_graph *first = conv_graph_open(device, &conv, PRECISION_FP32);
    struct conv_graph *second = conv_graph_open(device, &conv, PRECISION_FP32);
    assert_int_equal(first->count, second->count);
    for (int i = 0; i < first->count; i++)
        assert_true(first->candidates[i].engine == second->candidates[i].engine);
    conv_graph_close(second);
    conv_graph_close(first);
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(device));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layer_has_plans),
        cmocka_unit_test(test_fp32_is_fp32),
        cmocka_unit_test(test_all_are_deterministic),
        cmocka_unit_test(test_candidates_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
