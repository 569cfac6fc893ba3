#include "cudnn_private.h"

#include <string.h>

#include "check.h"
#include "device.h"
#include "range.h"

_Static_assert((int)CUDA_SUMS == LENET5_WEIGHTS + (int)SUM_SLOTS &&
                   (int)CUDA_SUMS_LOSS == LENET5_WEIGHTS + (int)SLOT_LOSS &&
                   (int)CUDA_SUMS_STOP == LENET5_WEIGHTS + (int)SLOT_STOP,
               "the device sums what the engine sums");

struct cudnn *cudnn_of(struct engine *engine)
{
    device_use(comm_local_rank(engine->setup.comm));
    return (struct cudnn *)engine; /* base is first */
}

/* --- the parts of a step -------------------------------------------------------------------------------- */

void cudnn_queue_step(struct cudnn *cudnn, const struct net_batch *batch, size_t samples)
{
    struct comm *comm = cudnn->base.setup.comm;
    struct cudnn_net *net = &cudnn->net;
    net_gradient(net, batch);
    if (comm_can_sum_on_device(comm)) {
        range_begin("sum over ranks");
        comm_sum_on_device(comm, net->sums, CUDA_SUMS, net->stream);
        net_mark(net, "sums", "all-reduce");
        range_end();
    }
    range_begin("update");
    CUDA_CHECK(cuda_sgd(cudnn->base.setup.momentum, (uint32_t)samples, net->sums, net->velocity, net->weights,
                        cudnn->step, net->stream));
    net_mark(net, "sgd", "update");
    range_end();
}

/* Collective. The step is run once outside the capture first, as libraries initialise lazily; it is marked as stopped,
 * so that it changes no weights. */
static void capture_step(struct cudnn *cudnn, struct step_graph *graph)
{
    struct net_batch batch;
    struct error none = {0};
    cudaGraph_t captured;
    cudaStream_t stream = cudnn->queue.stream;
    if (graph->samples == 0)
        return;
    cudnn_find_batch(cudnn, graph->samples, &batch, &none); /* planned before: it is there */
    batch.stop = &cudnn->queue.words->stop;
    queue_copy(&cudnn->queue, cudnn->step, &(struct cuda_step){.stopped = 1}, sizeof *cudnn->step);
    cudnn_queue_step(cudnn, &batch, graph->samples);
    queue_finish(&cudnn->queue, NULL);
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed)); /* NCCL works in other threads, too */
    cudnn_queue_step(cudnn, &batch, graph->samples);
    CUDA_CHECK(cudaStreamEndCapture(stream, &captured));
    CUDA_CHECK(cudaGraphInstantiate(&graph->exec, captured, 0));
    CUDA_CHECK(cudaGraphDestroy(captured));
    CUDA_CHECK(cudaGraphUpload(graph->exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

void cudnn_capture_steps(struct cudnn *cudnn)
{
    if (comm_sums_by_host(cudnn->base.setup.comm))
        return;
    range_begin("capture");
    capture_step(cudnn, &cudnn->full);
    capture_step(cudnn, &cudnn->tail);
    range_end();
}

/* --- training ------------------------------------------------------------------------------------------ */

static void write_step(struct cudnn *cudnn, uint64_t step, size_t first, float learning_rate)
{
    *cudnn->host_step = (struct cuda_step){.step = step, .position = (uint32_t)first, .learning_rate = learning_rate};
    queue_copy(&cudnn->queue, cudnn->step, cudnn->host_step, sizeof *cudnn->step);
}

static const struct step_graph *find_graph(const struct cudnn *cudnn, size_t samples)
{
    const struct step_graph *graph = samples == cudnn->full.samples ? &cudnn->full : &cudnn->tail;
    return graph->samples == samples ? graph : NULL;
}

/* Queues steps from the span's first on. Those after a stop or a refusal do nothing. */
static void queue_steps(struct cudnn *cudnn, const struct span *span)
{
    size_t first = span->first, batch = cudnn->base.setup.batch_size, steps = span_steps(span, batch);
    for (size_t i = 0; i < steps; i++) {
        size_t samples = span->end - first < batch ? span->end - first : batch;
        const struct step_graph *graph = find_graph(cudnn, samples);
        if (graph == NULL)
            break; /* the next call does it without */
        queue_keep_pace(&cudnn->queue, i, span->stop);
        CUDA_CHECK(cudaGraphLaunch(graph->exec, cudnn->queue.stream));
        first += samples;
    }
}

bool cudnn_train(struct engine *engine, const struct span *span, struct train_report *report)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct queue *queue = &cudnn->queue;
    size_t left = span->end - span->first, batch = engine->setup.batch_size;
    if (comm_sums_by_host(queue->comm) || find_graph(cudnn, left < batch ? left : batch) == NULL)
        return false;
    struct cuda_step *done = cudnn->host_step;
    range_begin("training steps");
    queue->words->stop = *span->stop;
    write_step(cudnn, span->step, span->first, span->learning_rate);
    queue_steps(cudnn, span);
    CUDA_CHECK(cudaMemcpyAsync(done, cudnn->step, sizeof *done, cudaMemcpyDefault, queue->stream));
    if (span->meanwhile != NULL)
        span->meanwhile(span->context);
    queue_finish(queue, span->stop);
    range_end();
    *report = (struct train_report){
        .steps = done->applied,
        .samples = span_samples(span, batch, done->applied),
        .loss = done->loss,
        .stopped = done->stopped,
        .not_finite = done->not_finite,
    };
    return true;
}

/* --- the plain step: sums by way of the host ----------------------------------------------------------- */

void cudnn_gradient(struct engine *engine, uint64_t step, size_t first, size_t end)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct net_batch batch;
    struct error error = {0};
    if (!cudnn_find_batch(cudnn, end - first, &batch, &error))
        gpu_failed("cuDNN", "a batch of another size", __FILE__, __LINE__, error.text);
    write_step(cudnn, step, first, 0);
    net_gradient(&cudnn->net, &batch);
    queue_copy(&cudnn->queue, engine->sums->terms, cudnn->net.sums, CUDA_SUMS * sizeof *cudnn->net.sums);
}

void cudnn_update(struct engine *engine, float learning_rate, size_t samples)
{
    struct cudnn *cudnn = cudnn_of(engine);
    struct cudnn_net *net = &cudnn->net;
    queue_copy(&cudnn->queue, net->sums, engine->sums->totals, CUDA_SUMS * sizeof *net->sums);
    write_step(cudnn, 0, 0, learning_rate);
    CUDA_CHECK(cuda_sgd(engine->setup.momentum, (uint32_t)samples, net->sums, net->velocity, net->weights, cudnn->step,
                        net->stream));
    CUDA_CHECK(cudaStreamSynchronize(net->stream));
}

void cudnn_read_sums(const struct engine *engine, const int64_t *sums, int64_t *canonical)
{
    memcpy(canonical, sums, engine->n_gradient * sizeof *canonical); /* its layout is the canonical one */
}
