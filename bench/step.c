/* step - where the time of a training step of the CPU engine goes.
 *
 *   step [--json] [NETS]     NETS: letters of the study's nets, AD if not given
 *   step --engine cudnn ...  a GPU engine instead, or fused: nodes.h
 *
 * Trains on synthetic pictures until the net is past its first moves, compares a gradient with the
 * double-precision reference, times whole steps of 256 samples (conversion of bytes, masks, exact sums and
 * update included), then has the engine mark the end of each layer (kernels/cpu/tile.h) in the tiles of ten
 * batches, again and again. Of a step the least time is taken, and so it is of each layer in each tile, which
 * is short enough to be found undisturbed on a machine that does other work. Ends VALID, or INVALID with exit
 * code 1 when the gradient is off by 1e-5 or a layer was not marked.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gradient.h"
#include "bench/needed.h"
#include "bench/nodes.h"
#include "clock.h"
#include "kernels/cpu/vector.h"
#include "memory.h"
#include "synthetic.h"
#include "version.h"

enum {
    BATCH = 256,
    BATCHES = 10,
    PICTURES = BATCHES * BATCH,
    WARM_UP = 100,
    STEPS = 90,
    ROUNDS = 20,
    CHECKED = 64,
    TILES = PICTURES / TILE
};

/* Multiply-adds a second of one core: independent chains, enough of them to hide the latency. */
static double measure_peak(void)
{
    enum { CHAINS = 12, LOOPS = 50000 };
    double best = 0;
    for (int round = 0; round < 30; round++) {
        vec sum[CHAINS], factor = vec_all(0.999f);
        UNROLL for (int k = 0; k < CHAINS; k++) sum[k] = vec_all((float)(k + round));
        double start = clock_seconds();
        for (int i = 0; i < LOOPS; i++)
            UNROLL for (int k = 0; k < CHAINS; k++) sum[k] = vec_fma(sum[k], factor, factor);
        double spent = clock_seconds() - start;
        float total = 0; /* used below, lest all of it be optimised away */
        UNROLL for (int k = 0; k < CHAINS; k++) total += sum[k][0];
        if (total > 0)
            best = fmax(best, (double)LOOPS * CHAINS * LANES / spent);
    }
    return best;
}

/* --- a net ------------------------------------------------------------------------------------------- */

struct bench {
    struct dataset data;
    uint8_t *records;
    uint32_t order[PICTURES];
    struct engine *engine;
    uint64_t step;
};

static const struct cpu *cpu_of(const struct bench *b)
{
    return (const struct cpu *)b->engine;
}

struct times {
    double seconds[LAYERS];
    size_t needed[LAYERS];
};

struct result {
    const struct net *net;
    double samples_per_second, step_seconds, error; /* error: the worst tensor's, against the reference */
    struct times times;                             /* of one step */
};

static void *get(size_t bytes)
{
    return memory_allocate_aligned(64, bytes, "the benchmark");
}

static void add_batch(struct bench *b, size_t first, size_t samples)
{
    cpu_prepare(b->engine);
    for (size_t position = 0; position < samples; position += TILE)
        cpu_add_tile(b->engine, b->step, first, position, TILE);
}

static void train(struct bench *b, int steps)
{
    for (int i = 0; i < steps; i++, b->step++) {
        add_batch(b, b->step * BATCH % PICTURES, BATCH);
        engine_cpu.update(b->engine, 0.01f, BATCH);
    }
}

static void open_bench(struct bench *b, const struct net *net)
{
    static const float momentum = 0.9f;
    float weights[LENET5_WEIGHTS];
    struct error error = {0};
    b->step = 0;
    for (uint32_t i = 0; i < PICTURES; i++)
        b->order[i] = i;
    struct engine_setup setup = {.data = &b->data,
                                 .masks = masks_make(1, net->p_conv, net->p_fc),
                                 .batch_size = BATCH,
                                 .momentum = momentum};
    b->engine = engine_cpu.open(&setup, &error);
    if (b->engine == NULL) {
        fprintf(stderr, "step: %s\n", error.text);
        exit(error.code);
    }
    engine_cpu.begin_epoch(b->engine, b->order);
    lenet5_initialise(1, weights);
    engine_cpu.write(b->engine, weights, NULL);
    train(b, WARM_UP);
}

/* The worst relative error of a tensor's gradient over CHECKED samples, against the reference. */
static double check_gradient(struct bench *b)
{
    const struct masks *masks = &b->engine->setup.masks;
    const uint8_t *records[CHECKED];
    struct sample_mask drawn[CHECKED];
    float *w = get(2 * LENET5_WEIGHTS * sizeof *w), *actual = w + LENET5_WEIGHTS;
    double *weights = get(2 * LENET5_WEIGHTS * sizeof *weights), *expected = weights + LENET5_WEIGHTS;

    engine_cpu.read(b->engine, w, NULL);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        weights[i] = w[i];
    masks_draw(masks, b->step, 0, CHECKED, drawn);
    gradient_pick(&b->data.train, weights, masks, drawn, CHECKED, b->order, records);
    add_batch(b, 0, CHECKED);
    engine_read_gradient(b->engine, CHECKED, actual);
    reference_gradient(weights, masks, CHECKED, records, drawn, expected);
    double error = gradient_error(actual, expected, CHECKED);
    free(weights);
    free(w);
    return error;
}

static void time_steps(struct bench *b, struct result *result)
{
    result->step_seconds = INFINITY;
    for (int i = 0; i < STEPS; i++) {
        double start = clock_seconds();
        train(b, 1);
        result->step_seconds = fmin(result->step_seconds, clock_seconds() - start);
    }
    result->samples_per_second = BATCH / result->step_seconds;
}

/* A tile on the clock. */
struct recorder {
    const struct cpu *cpu;
    struct times *times;
    double last; /* mark */
};

static int find_layer(const char *name, const char *pass)
{
    for (int l = 0; l < LAYERS; l++)
        if (strcmp(layers[l].name, name) == 0 && strcmp(layers[l].pass, pass) == 0)
            return l;
    fprintf(stderr, "step: the engine marks '%s %s', which the table of bench/step.c lacks\n", name, pass);
    exit(EXIT_RUNTIME);
}

static void record(void *context, const char *name, const char *pass, int sample)
{
    struct recorder *recorder = context;
    double now = clock_seconds();
    int l = find_layer(name, pass);
    recorder->times->seconds[l] += now - recorder->last;
    for (int s = sample < 0 ? 0 : sample; s < (sample < 0 ? TILE : sample + 1); s++)
        recorder->times->needed[l] += layers[l].needed != NULL ? layers[l].needed(recorder->cpu, s) : 0;
    recorder->last = clock_seconds();
}

/* All tiles of the ten batches once, on the engine's weights. */
static void record_tiles(struct bench *b, int round, struct times (*times)[ROUNDS])
{
    struct tile *tile = &((struct cpu *)b->engine)->tile;
    struct recorder recorder = {.cpu = cpu_of(b)};
    cpu_prepare(b->engine);
    tile->mark = (struct tile_mark){record, &recorder};
    for (size_t t = 0; t < TILES; t++) {
        recorder.times = &times[t][round];
        recorder.last = clock_seconds();
        cpu_add_tile(b->engine, b->step, 0, t * TILE, TILE);
    }
    tile->mark = (struct tile_mark){0};
}

/* Adds a step's share of the tile's least times. */
static void time_tile(const struct times rounds[ROUNDS], struct times *sum)
{
    for (int l = 0; l < UPDATE; l++) {
        double least = INFINITY;
        for (int r = 0; r < ROUNDS; r++)
            least = fmin(least, rounds[r].seconds[l]);
        sum->seconds[l] += least / BATCHES;
    }
}

static double time_update(struct bench *b)
{
    double least = INFINITY;
    for (int r = 0; r < ROUNDS; r++) {
        double start = clock_seconds();
        engine_cpu.update(b->engine, 0.0f, BATCH);
        least = fmin(least, clock_seconds() - start);
    }
    return least;
}

static void time_layers(struct bench *b, struct result *result)
{
    struct times(*all)[ROUNDS] = get(TILES * sizeof *all);
    memset(all, 0, TILES * sizeof *all);
    for (int r = 0; r < ROUNDS; r++)
        record_tiles(b, r, all);
    memset(&result->times, 0, sizeof result->times);
    for (int t = 0; t < TILES; t++) {
        time_tile(all[t], &result->times);
        for (int l = 0; l < LAYERS; l++)
            result->times.needed[l] += all[t][0].needed[l];
    }
    for (int l = 0; l < LAYERS; l++)
        result->times.needed[l] /= BATCHES;
    result->times.seconds[UPDATE] = time_update(b);
    free(all);
}

/* Whether the engine marked every layer. */
static bool all_timed(const struct result *r)
{
    bool all = true;
    for (int l = 0; l < LAYERS; l++)
        all &= r->times.seconds[l] > 0;
    return all;
}

/* --- the report ------------------------------------------------------------------------------------ */

static void print_line(const char *name, const char *pass, const struct result *r, double spent, double dense,
                       double needed, double peak)
{
    printf("  %-8s %-8s %7.3f %6.1f%%", name, pass, spent * 1e3, 100 * spent / r->step_seconds);
    if (dense > 0)
        printf(" %9.1f %9.1f %9.1f %6.1f%%", needed * 1e-6, (dense - needed) * 1e-6, 2e-9 * needed / spent,
               100 * needed / spent / peak);
    printf("\n");
}

static void print_result(const struct result *r, double peak)
{
    double all = 0, dense = 0, needed = 0;
    printf("\nnet %c: %.0f samples/s, %.3f ms a step of %d (the least of %d)\n", r->net->name, r->samples_per_second,
           r->step_seconds * 1e3, BATCH, STEPS);
    printf("  %-8s %-8s %7s %7s %9s %9s %9s %7s\n", "layer", "pass", "ms", "share", "M needed", "M not", "GFLOP/s",
           "of peak");
    for (int l = 0; l < LAYERS; l++) {
        print_line(layers[l].name, layers[l].pass, r, r->times.seconds[l], (double)layers[l].dense * BATCH,
                   (double)r->times.needed[l], peak);
        all += r->times.seconds[l];
        dense += (double)layers[l].dense * BATCH;
        needed += (double)r->times.needed[l];
    }
    print_line("sum", "", r, all, dense, needed, peak);
    printf("  gradient off by %.1e of the reference (limit %.0e)%s\n", r->error, GRADIENT_TOLERANCE,
           all_timed(r) ? "" : "; A LAYER WAS NOT MARKED");
}

static cJSON *json_result(const struct result *r)
{
    cJSON *json = cJSON_CreateObject();
    char name[2] = {r->net->name, '\0'};
    cJSON_AddStringToObject(json, "net", name);
    cJSON_AddNumberToObject(json, "samples_per_second", r->samples_per_second);
    cJSON_AddNumberToObject(json, "step_ms", r->step_seconds * 1e3);
    cJSON_AddNumberToObject(json, "gradient_error", r->error);
    cJSON *list = cJSON_AddArrayToObject(json, "layers");
    for (int l = 0; l < LAYERS; l++) {
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddStringToObject(layer, "layer", layers[l].name);
        cJSON_AddStringToObject(layer, "pass", layers[l].pass);
        cJSON_AddNumberToObject(layer, "ms", r->times.seconds[l] * 1e3);
        if (layers[l].dense > 0) {
            cJSON_AddNumberToObject(layer, "multiply_adds", (double)r->times.needed[l]);
            cJSON_AddNumberToObject(layer, "skipped", (double)(layers[l].dense * BATCH) - (double)r->times.needed[l]);
        }
        cJSON_AddItemToArray(list, layer);
    }
    return json;
}

static void print_json(const struct result *results, int count, double peak, bool valid)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "revision", version_revision);
    cJSON_AddStringToObject(json, "build", version_build);
    cJSON_AddNumberToObject(json, "vector_bits", 32 * LANES);
    cJSON_AddNumberToObject(json, "peak_gflops", 2e-9 * peak);
    cJSON *nets = cJSON_AddArrayToObject(json, "nets");
    for (int i = 0; i < count; i++)
        cJSON_AddItemToArray(nets, json_result(&results[i]));
    cJSON_AddBoolToObject(json, "valid", valid);
    char *text = cJSON_Print(json);
    puts(text);
    free(text);
    cJSON_Delete(json);
}

static void open_data(struct bench *b)
{
    b->records = get(PICTURES * RECORD_BYTES);
    for (uint32_t i = 0; i < PICTURES; i++)
        synthetic_draw(false, i, b->records + i * RECORD_BYTES);
    b->data.train = (struct split){.count = PICTURES, .per_file = PICTURES, .files = {b->records}};
}

static void close_data(struct bench *b)
{
    free(b->records);
    free(b);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* whoever is stopped has told what it knew */
    bool fused = argc > 2 && strcmp(argv[2], "fused") == 0;
    if (argc > 2 && strcmp(argv[1], "--engine") == 0 && (fused || strcmp(argv[2], "cudnn") == 0))
        return nodes_main(fused, argc - 3, argv + 3);
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0, valid = true;
    const char *nets = argc > 1 + json ? argv[1 + json] : "AD";
    int count = (int)strlen(nets);
    if (count > NETS || strspn(nets, "ABCD") != strlen(nets) || argc > 2 + json) {
        fprintf(stderr, "usage: step [--json] [NETS]   NETS: up to four letters of A, B, C, D\n"
                        "       step --engine cudnn|fused [--json] [--batch N] [NETS]\n");
        return EXIT_USAGE;
    }
    struct bench *b = get(sizeof *b);
    struct result results[NETS];
    double peak = measure_peak();
    open_data(b);
    if (!json)
        printf("# dtrain %s, %s, %d-bit vectors, peak of one core %.0f GFLOP/s\n", version_revision, version_build,
               32 * LANES, 2e-9 * peak);
    for (int i = 0; i < count; i++) {
        results[i].net = &lenet5_nets[nets[i] - 'A'];
        open_bench(b, results[i].net);
        results[i].error = check_gradient(b);
        time_steps(b, &results[i]);
        time_layers(b, &results[i]);
        engine_cpu.close(b->engine);
        valid = valid && results[i].error < GRADIENT_TOLERANCE && all_timed(&results[i]);
        if (!json)
            print_result(&results[i], peak);
    }
    if (json)
        print_json(results, count, peak, valid);
    else
        printf("\n%s\n", valid ? "VALID" : "INVALID");
    close_data(b);
    return valid ? EXIT_DONE : EXIT_RUNTIME;
}
