/* dropout - the bandwidth of the dropout family beside a plain copy, on the GPU if there is one, else on a core.
 *
 *   dropout [MIB]     MIB: of a tensor; 256 on a GPU, 64 on the CPU
 *
 * Bandwidth counts every number read once and written once. (What is dropped with its whole channel is not
 * even read, so the feature kinds can pass a copy.) Every result is compared with one made on the host under
 * the same mask. Ends VALID, or INVALID with exit code 1 when a number is wrong.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "gpu.h"
#include "median.h"
#include "processor.h"
#include "version.h"

enum { SAMPLE = 8192, WINDOWS = 9, MOST_MIB = 4096 }; /* floats in a sample, of any shape */
static const double P = 0.5, TOLERANCE = 1e-6;

/* --- the CPU ----------------------------------------------------------------------------------------- */

static void cpu_name(char *text, size_t bytes)
{
    snprintf(text, bytes, "one core");
}

static void *cpu_open_stream(void)
{
    return NULL;
}

static void cpu_nothing(void *stream)
{
    (void)stream;
}

static void *cpu_get(size_t bytes)
{
    void *memory = aligned_alloc(64, bytes);
    if (memory == NULL) {
        fprintf(stderr, "dropout: no memory for %zu bytes\n", bytes);
        exit(EXIT_RUNTIME);
    }
    return memory;
}

static void cpu_copy(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    memcpy(to, from, bytes);
}

static double cpu_time(struct timed work, void *stream)
{
    double seconds[WINDOWS + 1]; /* the first warms up */
    for (int i = 0; i < WINDOWS + 1; i++) {
        double begin = clock_seconds();
        work.queue(work.context, stream);
        seconds[i] = clock_seconds() - begin;
    }
    return 1e6 * median(seconds + 1, WINDOWS);
}

static bool cpu_forward(const struct dropout *dropout, struct dropout_stream numbers, const float *x, float *y,
                        void *stream, struct error *error)
{
    (void)stream;
    return dropout_forward(dropout, numbers, x, y, error);
}

static bool cpu_backward(const struct dropout *dropout, struct dropout_stream numbers, const float *dy, float *dx,
                         void *stream, struct error *error)
{
    (void)stream;
    return dropout_backward(dropout, numbers, dy, dx, error);
}

static const struct processor cpu_processor = {
    .name = cpu_name,
    .open_stream = cpu_open_stream,
    .close_stream = cpu_nothing,
    .get = cpu_get,
    .drop = free,
    .copy = cpu_copy,
    .wait = cpu_nothing,
    .time = cpu_time,
    .forward = cpu_forward,
    .backward = cpu_backward,
};

/* --- the family -------------------------------------------------------------------------------------- */

/* shape[0], the samples, is filled in. */
static const struct module {
    const char *name;
    bool feature, alpha;
    size_t dimensions, shape[5];
} modules[] = {
    {"Dropout", false, false, 2, {0, SAMPLE}},
    {"Dropout1d", true, false, 3, {0, 8, 1024}},
    {"Dropout2d", true, false, 4, {0, 8, 32, 32}},
    {"Dropout3d", true, false, 5, {0, 8, 4, 16, 16}},
    {"AlphaDropout", false, true, 2, {0, SAMPLE}},
    {"FeatureAlphaDropout", true, true, 4, {0, 8, 32, 32}},
};
enum { MODULES = sizeof modules / sizeof *modules };
static const struct dropout_stream numbers = {.seed = 1, .step = 7, .layer = 3};

struct bench {
    const struct processor *processor;
    void *stream;
    size_t samples, count, bytes; /* of a tensor */
    float *x, *y;                 /* there */
    float *input, *result, *wanted;
    uint8_t *keep;
    double copy_microseconds;
};

/* A pass on the clock. */
struct pass {
    const struct bench *bench;
    const struct dropout *dropout; /* NULL: a copy */
    bool backward;
};

static void queue(void *context, void *stream)
{
    const struct pass *pass = context;
    const struct bench *b = pass->bench;
    struct error error = {0};
    if (pass->dropout == NULL)
        b->processor->copy(b->y, b->x, b->bytes, stream);
    else if (pass->backward)
        b->processor->backward(pass->dropout, numbers, b->x, b->y, stream, &error);
    else
        b->processor->forward(pass->dropout, numbers, b->x, b->y, stream, &error);
    if (error.code != EXIT_DONE) {
        fprintf(stderr, "dropout: %s\n", error.text);
        exit(error.code);
    }
}

/* How many numbers of the last pass are not as they should be. */
static size_t count_wrong(const struct bench *b, const struct pass *pass)
{
    size_t wrong = 0;
    b->processor->copy(b->result, b->y, b->bytes, b->stream);
    b->processor->wait(b->stream);
    if (pass->dropout == NULL) {
        memcpy(b->wanted, b->input, b->bytes);
    } else {
        dropout_draw(pass->dropout, numbers, b->keep);
        (pass->backward ? dropout_backward_masked : dropout_forward_masked)(pass->dropout, b->keep, b->input,
                                                                            b->wanted);
    }
    for (size_t i = 0; i < b->count; i++)
        wrong += !(fabs((double)b->result[i] - b->wanted[i]) <= TOLERANCE * fabs((double)b->wanted[i]));
    return wrong;
}

/* Prints time, bandwidth, share of a copy's and wrong numbers. Returns whether there is none. */
static bool measure(struct bench *b, const struct pass *pass)
{
    memset(b->result, 0xff, b->bytes); /* NaN: what nobody writes is seen */
    b->processor->copy(b->y, b->result, b->bytes, b->stream);
    double microseconds = b->processor->time((struct timed){queue, (void *)pass}, b->stream);
    size_t wrong = count_wrong(b, pass);
    if (pass->dropout == NULL)
        b->copy_microseconds = microseconds;
    printf("  %10.1f %8.1f %8.0f%% %6zu", microseconds, 2e-3 * (double)b->bytes / microseconds,
           100 * b->copy_microseconds / microseconds, wrong);
    fflush(stdout);
    return wrong == 0;
}

static bool measure_module(struct bench *b, const struct module *module)
{
    struct dropout dropout;
    struct error error = {0};
    size_t shape[5];
    memcpy(shape, module->shape, sizeof shape);
    shape[0] = b->samples;
    dropout_describe(P, module->feature, module->alpha, module->dimensions, shape, &dropout, &error);
    printf("%-20s", module->name);
    bool forward = measure(b, &(struct pass){b, &dropout, false});
    bool backward = measure(b, &(struct pass){b, &dropout, true});
    printf("\n");
    return forward && backward;
}

static bool measure_all(struct bench *b)
{
    printf("#%39s%s%31s%s\n", "", "forward", "", "backward");
    printf("#%-19s", "");
    for (int i = 0; i < 2; i++)
        printf("  %10s %8s %9s %6s", "us", "GB/s", "of copy", "#wrong");
    printf("\n%-20s", "copy");
    bool valid = measure(b, &(struct pass){b, NULL, false});
    printf("\n");
    for (int i = 0; i < MODULES; i++)
        valid &= measure_module(b, &modules[i]);
    return valid;
}

/* --- the program ------------------------------------------------------------------------------------- */

static void open_bench(struct bench *b, const struct processor *processor, size_t mib)
{
    b->processor = processor;
    b->stream = processor->open_stream();
    b->bytes = mib << 20;
    b->count = b->bytes / sizeof(float);
    b->samples = b->count / SAMPLE;
    b->x = processor->get(b->bytes);
    b->y = processor->get(b->bytes);
    b->input = cpu_get(b->bytes);
    b->result = cpu_get(b->bytes);
    b->wanted = cpu_get(b->bytes);
    b->keep = cpu_get(b->count);
    for (size_t i = 0; i < b->count; i++)
        b->input[i] = (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-23f - 1;
    processor->copy(b->x, b->input, b->bytes, b->stream);
    processor->wait(b->stream);
}

static void close_bench(struct bench *b)
{
    free(b->keep);
    free(b->wanted);
    free(b->result);
    free(b->input);
    b->processor->drop(b->y);
    b->processor->drop(b->x);
    b->processor->close_stream(b->stream);
}

int main(int argc, char **argv)
{
    struct bench bench;
    char why[300], name[400];
    const struct gpu_part *part = gpu_load(why, sizeof why);
    bool on_gpu = part != NULL && part->engine->available(why, sizeof why);
    const struct processor *processor = on_gpu ? part->processor : &cpu_processor;
    char *end = NULL;
    long mib = argc > 1 ? strtol(argv[1], &end, 10) : on_gpu ? 256 : 64;
    if (argc > 2 || mib < 1 || mib > MOST_MIB || (end != NULL && *end != '\0')) {
        fprintf(stderr, "usage: dropout [MIB]   MIB: of a tensor, 1 to %d\n", MOST_MIB);
        return EXIT_USAGE;
    }
    processor->name(name, sizeof name);
    printf("# dtrain %s, %s; %s%s%s\n", version_revision, version_build, name, on_gpu ? "" : ": ", on_gpu ? "" : why);
    printf("# %ld MiB of fp32, p %g, samples of 8,192 numbers or of 8 channels\n", mib, P);
    open_bench(&bench, processor, (size_t)mib);
    bool valid = measure_all(&bench);
    close_bench(&bench);
    printf("%s\n", valid ? "VALID" : "INVALID");
    return valid ? EXIT_DONE : EXIT_RUNTIME;
}
