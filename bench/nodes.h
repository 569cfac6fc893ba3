/* nodes.h - a training step of the GPU engine: as a whole, in its CUDA graph, and node by node.
 *
 *   step --engine cudnn|fused [--json] [--batch N] [NETS]     N: of the global batch, 256 if not given
 *
 * Of the fused engine's one kernel the phases, by clocks that its blocks read: in the mean over the blocks, and of the
 * slowest block. On an emulated GPU the times mean nothing.
 * Runs alone, or under mpirun with a GPU a rank. The gradient of one rank's second step is compared with the
 * double-precision reference, several ranks' weights with each other: VALID, or INVALID with exit code 1.
 * The sum of the nodes is more than the step: between them lies an event, and a graph starts its kernels sooner.
 */
#ifndef DTRAIN_BENCH_NODES_H
#define DTRAIN_BENCH_NODES_H

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu_name.h"
#include "bench/gradient.h"
#include "clock.h"
#include "median.h"
#include "memory.h"
#include "step.h"
#include "synthetic.h"
#include "version.h"

enum { NODES_PICTURES = 256, NODES_EPOCH = 50, NODES_ROUNDS = 25, NODES_MOST = 40, NODES_MOST_BATCH = 4096 };
static const double NODES_SECONDS = 3, NODES_SLOW_SECONDS = 0.1;

struct nodes {
    const struct gpu_part *part;
    bool fused; /* the engine; else cudnn */
    struct comm *world, *comm;
    struct dataset data; /* a few pictures again and again: an epoch of NODES_EPOCH full batches */
    uint8_t *records;
    uint32_t *order;
    size_t batch;
    double started, first_step_seconds; /* from the program's start to the end of the first step */

    const struct net *net;
    struct engine *engine;
    uint64_t step;
    double step_seconds, error; /* error: the worst tensor's, against the reference; 0 on several ranks */
    bool alike, kept;           /* the replicas; the weights, by what looked at the nodes */
    struct gpu_node list[NODES_MOST];
    int count;
};

static _Noreturn void nodes_fail(struct nodes *n, const struct error *error)
{
    if (n->world == NULL || comm_rank(n->world) == 0)
        fprintf(stderr, "step: %s\n", error->text);
    exit(error->code);
}

/* --- data ------------------------------------------------------------------------------------------------ */

static void nodes_draw(struct nodes *n)
{
    size_t per_file = NODES_EPOCH * n->batch / TRAINING_FILES;
    n->records = memory_allocate(per_file, RECORD_BYTES, "the pictures");
    n->order = memory_allocate(NODES_EPOCH * n->batch, sizeof *n->order, "the order of an epoch");
    for (uint32_t i = 0; i < per_file; i++)
        if (i < NODES_PICTURES)
            synthetic_draw(false, i, n->records + i * RECORD_BYTES);
        else
            memcpy(n->records + i * RECORD_BYTES, n->records + i % NODES_PICTURES * RECORD_BYTES, RECORD_BYTES);
    for (uint32_t i = 0; i < NODES_EPOCH * n->batch; i++)
        n->order[i] = i;
    n->data.train = (struct split){.count = TRAINING_FILES * per_file, .per_file = per_file};
    for (int i = 0; i < TRAINING_FILES; i++)
        n->data.train.files[i] = n->records;
    n->data.test = (struct split){.count = n->batch, .per_file = n->batch, .files = {n->records}};
}

/* --- one net --------------------------------------------------------------------------------------------- */

static void nodes_train(struct nodes *n, size_t steps)
{
    static const volatile sig_atomic_t stop = 0;
    struct train_report done;
    for (size_t first = 0; first < steps * n->batch; first += done.samples) {
        struct span span = {
            .step = n->step, .first = first, .end = steps * n->batch, .learning_rate = 0.01f, .stop = &stop};
        step_train(n->engine, &span, &done);
        n->step += done.steps;
    }
}

static void nodes_open(struct nodes *n, const struct engine_ops *ops, const struct net *net)
{
    float weights[LENET5_WEIGHTS];
    struct error error = {0};
    struct engine_setup setup = {.data = &n->data,
                                 .comm = n->comm,
                                 .masks = masks_make(1, net->p_conv, net->p_fc),
                                 .batch_size = n->batch,
                                 .momentum = 0.9f,
                                 .precision = PRECISION_FP32};
    n->net = net;
    n->step = 0;
    n->engine = ops->open(&setup, &error);
    if (n->engine == NULL)
        nodes_fail(n, &error);
    lenet5_initialise(1, weights);
    n->engine->ops->write(n->engine, weights, (float[LENET5_WEIGHTS]){0});
    n->engine->ops->begin_epoch(n->engine, n->order);
    nodes_train(n, 1);
    if (n->first_step_seconds == 0)
        n->first_step_seconds = clock_seconds() - n->started;
}

static void nodes_time(struct nodes *n)
{
    double rounds[NODES_ROUNDS], begin = clock_seconds();
    size_t count = 0, steps;
    nodes_train(n, 1);
    bool slow = clock_seconds() - begin > NODES_SLOW_SECONDS;
    comm_broadcast(n->comm, &slow, sizeof slow, 0); /* ranks must do as many steps */
    steps = slow ? 1 : NODES_EPOCH;
    nodes_train(n, steps); /* warms up */
    for (bool more = true; more; comm_broadcast(n->comm, &more, sizeof more, 0)) {
        double start = clock_seconds();
        nodes_train(n, steps);
        rounds[count++] = (clock_seconds() - start) / (double)steps;
        more = count < NODES_ROUNDS && clock_seconds() - begin < NODES_SECONDS;
    }
    n->step_seconds = median(rounds, count);
}

/* Of the whole first batch: for one rank alone. Before the steps on the clock: those teach the net its few pictures
 * by heart, and of a gradient that is nearly zero the rounding is a large part. */
static void nodes_check_gradient(struct nodes *n)
{
    float *w = memory_allocate(2 * LENET5_WEIGHTS, sizeof *w, "the weights"), *actual = w + LENET5_WEIGHTS;
    double *weights = memory_allocate(2 * LENET5_WEIGHTS, sizeof *weights, "the weights"),
           *expected = weights + LENET5_WEIGHTS;
    const uint8_t **records = memory_allocate(n->batch, sizeof *records, "a batch");
    struct sample_mask *drawn = memory_allocate(n->batch, sizeof *drawn, "the masks");
    const struct masks *masks = &n->engine->setup.masks;
    n->engine->ops->read(n->engine, w, NULL);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        weights[i] = w[i];
    masks_draw(masks, n->step, 0, (uint32_t)n->batch, drawn);
    gradient_pick(&n->data.train, weights, masks, drawn, n->batch, n->order, records);
    n->engine->ops->begin_epoch(n->engine, n->order);
    n->engine->ops->gradient(n->engine, n->step, 0, n->batch);
    comm_sum(n->engine->sums);
    engine_read_gradient(n->engine, n->batch, actual);
    reference_gradient(weights, masks, n->batch, records, drawn, expected);
    n->error = gradient_error(actual, expected, n->batch);
    free(drawn);
    free(records);
    free(weights);
    free(w);
}

static uint64_t nodes_digest(struct nodes *n)
{
    float weights[LENET5_WEIGHTS];
    n->engine->ops->read(n->engine, weights, NULL);
    return lenet5_digest(weights);
}

static bool nodes_measure(struct nodes *n)
{
    int odd;
    n->error = 0;
    if (comm_size(n->comm) == 1)
        nodes_check_gradient(n);
    nodes_time(n);
    uint64_t digest = nodes_digest(n);
    n->count = (n->fused ? n->part->fused_profile : n->part->cudnn_profile)(n->engine, n->list, NODES_MOST);
    n->kept = nodes_digest(n) == digest;
    n->alike = comm_same(n->comm, digest, &odd);
    n->engine->ops->close(n->engine);
    return n->kept && n->alike && n->error < GRADIENT_TOLERANCE;
}

/* --- the report ------------------------------------------------------------------------------------------ */

static void nodes_print(const struct nodes *n)
{
    double all = 0;
    printf("\nnet %c: %.0f samples/s, %.1f us a step of %zu, by %s\n", n->net->name, (double)n->batch / n->step_seconds,
           n->step_seconds * 1e6, n->batch, n->fused ? "one kernel" : "CUDA graphs");
    printf("  %-8s %-15s %8s %7s%s\n", n->fused ? "" : "layer", n->fused ? "phase" : "pass", "us", "share",
           n->fused ? "  slowest block" : "");
    for (int i = 0; i < n->count; i++)
        all += n->list[i].microseconds;
    for (int i = 0; i < n->count; i++) {
        printf("  %-8s %-15s %8.2f %6.1f%%", n->list[i].layer, n->list[i].pass, n->list[i].microseconds,
               100 * n->list[i].microseconds / all);
        printf(n->fused ? "  %13.2f\n" : "\n", n->list[i].slowest);
    }
    printf("  %-8s %-15d %8.2f\n", n->fused ? "phases" : "nodes", n->count, all);
    if (comm_size(n->comm) == 1)
        printf("  gradient off by %.1e of the reference (limit %.0e)\n", n->error, GRADIENT_TOLERANCE);
    else
        printf("  the %d replicas are %s\n", comm_size(n->comm), n->alike ? "alike" : "NOT ALIKE");
    if (!n->kept)
        printf("  LOOKING AT THE NODES CHANGED THE WEIGHTS\n");
}

static cJSON *nodes_json(const struct nodes *n)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "net", (char[]){n->net->name, '\0'});
    cJSON_AddNumberToObject(json, "step_us", n->step_seconds * 1e6);
    cJSON_AddNumberToObject(json, "gradient_error", n->error);
    cJSON *list = cJSON_AddArrayToObject(json, "nodes");
    for (int i = 0; i < n->count; i++) {
        cJSON *node = cJSON_CreateObject();
        cJSON_AddStringToObject(node, "layer", n->list[i].layer);
        cJSON_AddStringToObject(node, "pass", n->list[i].pass);
        cJSON_AddNumberToObject(node, "us", n->list[i].microseconds);
        if (n->fused)
            cJSON_AddNumberToObject(node, "slowest_us", n->list[i].slowest);
        cJSON_AddItemToArray(list, node);
    }
    return json;
}

static void nodes_print_json(const struct nodes *n, cJSON *nets, const char *versions, bool valid)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "revision", version_revision);
    cJSON_AddStringToObject(json, "gpu", versions);
    cJSON_AddNumberToObject(json, "ranks", comm_size(n->comm));
    cJSON_AddNumberToObject(json, "batch", (double)n->batch);
    cJSON_AddNumberToObject(json, "start_to_first_step_seconds", n->first_step_seconds);
    cJSON_AddItemToObject(json, "nets", nets);
    cJSON_AddBoolToObject(json, "valid", valid);
    char *text = cJSON_Print(json);
    puts(text);
    free(text);
    cJSON_Delete(json);
}

/* --- the program ----------------------------------------------------------------------------------------- */

/* The engine, and what its device is called. */
static const struct engine_ops *nodes_start(struct nodes *n, char *name, size_t bytes)
{
    struct error error = {0};
    n->world = comm_open_world(60);
    const struct engine_ops *ops = engine_choose(n->fused ? "fused" : "cudnn", n->world, name, bytes, &error);
    if (!comm_agree(n->world, &error))
        nodes_fail(n, &error);
    n->comm = comm_split(n->world, 0, "auto", engine_comm_use(ops), &error);
    if (n->comm == NULL)
        nodes_fail(n, &error);
    n->part = gpu_load(name, bytes);
    gpu_name(n->part, name, bytes);
    return ops;
}

static void nodes_end(struct nodes *n)
{
    comm_close(n->comm);
    comm_close(n->world);
    free(n->order);
    free(n->records);
    free(n);
}

static int nodes_main(bool fused, int argc, char **argv)
{
    struct nodes *n = memory_allocate(1, sizeof *n, "the benchmark");
    bool json = argc > 0 && strcmp(argv[0], "--json") == 0, valid = true;
    char name[400];
    n->started = clock_seconds();
    n->fused = fused;
    argc -= json, argv += json;
    bool has_batch = argc > 1 && strcmp(argv[0], "--batch") == 0;
    n->batch = has_batch ? strtoul(argv[1], NULL, 10) : NODES_PICTURES;
    argc -= 2 * has_batch, argv += 2 * has_batch;
    const char *nets = argc > 0 ? argv[0] : "AD";
    if (argc > 1 || strspn(nets, "ABCD") != strlen(nets) || n->batch < 1 || n->batch > NODES_MOST_BATCH) {
        fprintf(stderr,
                "usage: step --engine cudnn|fused [--json] [--batch N] [NETS]\n"
                "       N: up to %d; NETS: letters of A, B, C, D\n",
                NODES_MOST_BATCH);
        return EXIT_USAGE;
    }
    nodes_draw(n);
    const struct engine_ops *ops = nodes_start(n, name, sizeof name);
    bool speaks = comm_rank(n->world) == 0;
    if (speaks && !json)
        printf("# dtrain %s, %s; %s\n# %d rank%s, comm %s\n", version_revision, version_build, name, comm_size(n->comm),
               comm_size(n->comm) == 1 ? "" : "s", comm_transport(n->comm));
    if (speaks && !json && strstr(name, "emulated") != NULL)
        printf("# an emulated GPU: its times mean nothing\n");
    cJSON *list = cJSON_CreateArray();
    for (; *nets != '\0'; nets++) {
        nodes_open(n, ops, &lenet5_nets[*nets - 'A']);
        valid &= nodes_measure(n);
        cJSON_AddItemToArray(list, nodes_json(n));
        if (speaks && !json)
            nodes_print(n);
    }
    if (speaks && json)
        nodes_print_json(n, list, name, valid);
    else
        cJSON_Delete(list);
    if (speaks && !json)
        printf("\nstart to first step: %.2f s\n%s\n", n->first_step_seconds, valid ? "VALID" : "INVALID");
    nodes_end(n);
    return valid ? EXIT_DONE : EXIT_RUNTIME;
}

#endif
