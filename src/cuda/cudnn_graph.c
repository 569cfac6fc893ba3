#include "cudnn_graph.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "memory.h"

enum { KERNEL = 5 };
enum uid { UID_X = 1, UID_W, UID_Y }; /* names of tensors within a graph */

typedef cudnnBackendDescriptor_t descriptor;

/* --- descriptors ----------------------------------------------------------------------------------- */

static descriptor create(cudnnBackendDescriptorType_t type)
{
    descriptor made;
    CUDNN_CHECK(cudnnBackendCreateDescriptor(type, &made));
    return made;
}

static void set(descriptor at, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                const void *values)
{
    CUDNN_CHECK(cudnnBackendSetAttribute(at, name, type, count, values));
}

static void set_descriptor(descriptor at, cudnnBackendAttributeName_t name, descriptor value)
{
    set(at, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_fp32(descriptor at, cudnnBackendAttributeName_t name)
{
    set(at, name, CUDNN_TYPE_DATA_TYPE, 1, &(cudnnDataType_t){CUDNN_DATA_FLOAT});
}

/* Kept until the graph is closed. */
static descriptor own(struct conv_graph *graph, descriptor made)
{
    graph->owned[graph->owned_count++] = made;
    return made;
}

static descriptor add(struct conv_graph *graph, cudnnBackendDescriptorType_t type)
{
    return own(graph, create(type));
}

static int64_t get_number(descriptor from, cudnnBackendAttributeName_t name)
{
    int64_t count, value = 0;
    CUDNN_CHECK(cudnnBackendGetAttribute(from, name, CUDNN_TYPE_INT64, 1, &count, &value));
    return value;
}

/* --- the operation --------------------------------------------------------------------------------- */

/* All begin on 16 bytes. */
static descriptor add_tensor(struct conv_graph *graph, enum uid uid, int n, int c, int side)
{
    int64_t id = uid, dimensions[4] = {n, c, side, side}, alignment = 16;
    int64_t strides[4] = {(int64_t)c * side * side, (int64_t)side * side, side, 1};
    descriptor tensor = add(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set_fp32(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE);
    set(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dimensions);
    set(tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    CUDNN_CHECK(cudnnBackendFinalize(tensor));
    return tensor;
}

static descriptor add_convolution_kind(struct conv_graph *graph)
{
    int64_t dimensions = 2, zeros[2] = {0, 0}, ones[2] = {1, 1};
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    descriptor kind = add(graph, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set_fp32(kind, CUDNN_ATTR_CONVOLUTION_COMP_TYPE);
    set(kind, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(kind, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dimensions);
    set(kind, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, zeros);
    set(kind, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, zeros);
    set(kind, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
    set(kind, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, ones);
    CUDNN_CHECK(cudnnBackendFinalize(kind));
    return kind;
}

static descriptor add_convolution(struct conv_graph *graph, descriptor x, descriptor w, descriptor y)
{
    float alpha = 1, beta = 0;
    descriptor kind = add_convolution_kind(graph);
    descriptor operation = add(graph, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_descriptor(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, kind);
    set_descriptor(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set_descriptor(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    set_descriptor(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &beta);
    CUDNN_CHECK(cudnnBackendFinalize(operation));
    return operation;
}

static descriptor add_graph(struct conv_graph *graph)
{
    const struct conv *conv = &graph->conv;
    int n = conv->samples, k = conv->outputs, side = conv->side - KERNEL + 1;
    descriptor x = add_tensor(graph, UID_X, n, conv->channels, conv->side);
    descriptor w = add_tensor(graph, UID_W, k, conv->channels, KERNEL);
    descriptor y = add_tensor(graph, UID_Y, n, k, side);
    descriptor whole = add(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set_descriptor(whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, add_convolution(graph, x, w, y));
    CUDNN_CHECK(cudnnBackendFinalize(whole));
    return whole;
}

/* --- the candidates -------------------------------------------------------------------------------- */

/* Notes of cuDNN that rule an engine out. */
static bool is_ruled_out(cudnnBackendNumericalNote_t note, enum precision precision)
{
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: /* to less than TF32 */
        return true;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: /* TF32, for fp32 tensors */
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
        return precision == PRECISION_FP32;
    default:
        return false;
    }
}

static bool take_engine(struct conv_candidate *candidate, enum precision precision)
{
    int64_t count;
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    descriptor engine = create(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    CUDNN_CHECK(cudnnBackendGetAttribute(candidate->config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         1, &count, &engine));
    candidate->engine = get_number(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
    CUDNN_CHECK(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                         CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes));
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(engine));
    while (count-- > 0)
        if (is_ruled_out(notes[count], precision))
            return false;
    return true;
}

static void add_candidates(struct conv_graph *graph, descriptor operations, cudnnBackendHeurMode_t mode,
                           enum precision precision)
{
    descriptor configs[CONV_CANDIDATES];
    int64_t found = 0;
    descriptor heuristics = add(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, graph->device);
    if (cudnnBackendFinalize(heuristics) != CUDNN_STATUS_SUCCESS)
        return; /* this mode knows nothing of such graphs */
    for (int i = 0; i < CONV_CANDIDATES; i++)
        configs[i] = create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 CONV_CANDIDATES, &found, configs) != CUDNN_STATUS_SUCCESS)
        found = 0;
    for (int i = 0; i < CONV_CANDIDATES; i++) {
        struct conv_candidate candidate = {.config = configs[i]};
        if (i < found && graph->count < CONV_CANDIDATES && take_engine(&candidate, precision)) {
            own(graph, candidate.config);
            graph->candidates[graph->count++] = candidate;
        } else {
            CUDNN_CHECK(cudnnBackendDestroyDescriptor(configs[i]));
        }
    }
}

struct conv_graph *conv_graph_open(descriptor device, const struct conv *conv, enum precision precision)
{
    struct conv_graph *graph = memory_allocate(1, sizeof *graph, "the plans of a convolution");
    graph->conv = *conv;
    graph->device = device;
    descriptor operations = add_graph(graph);
    add_candidates(graph, operations, CUDNN_HEUR_MODE_A, precision);
    add_candidates(graph, operations, CUDNN_HEUR_MODE_FALLBACK, precision);
    return graph;
}

void conv_graph_close(struct conv_graph *graph)
{
    while (graph->owned_count > 0)
        cudnnBackendDestroyDescriptor(graph->owned[--graph->owned_count]);
    free(graph);
}

bool conv_graph_build(struct conv_graph *graph, int number)
{
    struct conv_candidate *candidate = &graph->candidates[number];
    if (candidate->plan != NULL)
        return true;
    descriptor plan = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_descriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, candidate->config);
    set_descriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, graph->device);
    if (cudnnBackendFinalize(plan) != CUDNN_STATUS_SUCCESS) {
        cudnnBackendDestroyDescriptor(plan);
        return false;
    }
    candidate->plan = own(graph, plan);
    candidate->workspace_bytes = get_number(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    return true;
}

/* --- running --------------------------------------------------------------------------------------- */

descriptor conv_bind(const struct conv_tensors *tensors, void *workspace)
{
    static const int64_t uids[] = {UID_X, UID_W, UID_Y};
    void *data[] = {tensors->x, tensors->w, tensors->y};
    descriptor bound = create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(bound, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, uids);
    set(bound, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, data);
    set(bound, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    CUDNN_CHECK(cudnnBackendFinalize(bound));
    return bound;
}

bool conv_graph_run(const struct conv_graph *graph, int candidate, cudnnHandle_t handle, descriptor bound)
{
    return cudnnBackendExecute(handle, graph->candidates[candidate].plan, bound) == CUDNN_STATUS_SUCCESS;
}

/* --- devices --------------------------------------------------------------------------------------- */

descriptor conv_device_of(cudnnHandle_t handle)
{
    descriptor device = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    set(device, CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    CUDNN_CHECK(cudnnBackendFinalize(device));
    return device;
}

descriptor conv_device_described(const char *json)
{
    descriptor device = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    set(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    CUDNN_CHECK(cudnnBackendFinalize(device));
    return device;
}
