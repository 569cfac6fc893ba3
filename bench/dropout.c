/* dropout - the bandwidth of the dropout family beside a plain copy, on the GPU if there is one, else on a core.
 *
 *   dropout [--json] [MIB]     MIB: of a tensor; 256 on a GPU, 64 on the CPU
 *
 * --json is for the script bench/dropout, of a GPU alone: without one, nothing is measured and "skipped" says why.
 * Bandwidth counts every number read once and written once. (What is dropped with its whole channel is not
 * even read, so the feature kinds can pass a copy.) Every result is compared with one made on the host under
 * the same mask. Ends VALID, or INVALID with exit code 1 when a number is wrong.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu_name.h"
#include "clock.h"
#include "median.h"
#include "memory.h"
#include "version.h"

enum { SAMPLE = 8192, WINDOWS = 9, MOST_MIB = 4096 }; /* floats in a sample, of any shape */
static const double P = 0.5, TOLERANCE = 1e-6;

/* --- a pass ------------------------------------------------------------------------------------------ */

static bool run_on_cpu(const struct dropout_pass *pass, size_t count, const float *x, float *y, struct error *error)
{
    if (pass->dropout == NULL)
        memcpy(y, x, count * sizeof *x);
    else if (pass->backward)
        return dropout_backward(pass->dropout, pass->numbers, x, y, error);
    else
        return dropout_forward(pass->dropout, pass->numbers, x, y, error);
    return true;
}

/* As gpu_part's time_dropout. */
static bool time_on_cpu(const struct dropout_pass *pass, size_t count, const float *x, float *y, double *microseconds,
                        struct error *error)
{
    double seconds[WINDOWS + 1]; /* the first warms up */
    for (int i = 0; i < WINDOWS + 1; i++) {
        double begin = clock_seconds();
        if (!run_on_cpu(pass, count, x, y, error))
            return false;
        seconds[i] = clock_seconds() - begin;
    }
    *microseconds = 1e6 * median(seconds + 1, WINDOWS);
    return true;
}

/* --- the family -------------------------------------------------------------------------------------- */

/* shape[0], the samples, is filled in. */
static const struct module {
    const char *name;
    bool feature, alpha;
    size_t dimensions, shape[5];
} modules[] = {
    {"Dropout", false, false, 2, {0, SAMPLE}},     {"Dropout1d", true, false, 3, {0, 8, 1024}},
    {"Dropout2d", true, false, 4, {0, 8, 32, 32}}, {"Dropout3d", true, false, 5, {0, 8, 4, 16, 16}},
    {"AlphaDropout", false, true, 2, {0, SAMPLE}}, {"FeatureAlphaDropout", true, true, 4, {0, 8, 32, 32}},
};
enum { MODULES = sizeof modules / sizeof *modules };

struct bench {
    bool (*time)(const struct dropout_pass *pass, size_t count, const float *x, float *y, double *microseconds,
                 struct error *error);
    size_t samples, count, bytes; /* of a tensor */
    float *input, *result, *wanted;
    uint8_t *keep;
};

struct result {
    double microseconds;
    size_t wrong; /* numbers */
};

/* How many numbers of the last pass are not as they should be. */
static size_t count_wrong(const struct bench *b, const struct dropout_pass *pass)
{
    size_t wrong = 0;
    if (pass->dropout == NULL) {
        memcpy(b->wanted, b->input, b->bytes);
    } else {
        dropout_draw(pass->dropout, pass->numbers, b->keep);
        (pass->backward ? dropout_backward_masked : dropout_forward_masked)(pass->dropout, b->keep, b->input,
                                                                            b->wanted);
    }
    for (size_t i = 0; i < b->count; i++)
        wrong += !(fabs((double)b->result[i] - (double)b->wanted[i]) <= (double)TOLERANCE * fabs((double)b->wanted[i]));
    return wrong;
}

static struct result measure(const struct bench *b, const struct dropout *dropout, bool backward)
{
    const struct dropout_pass pass = {dropout, {.seed = 1, .step = 7, .layer = 3}, backward};
    struct error error = {0};
    double microseconds;
    memset(b->result, 0xff, b->bytes); /* NaN: what nobody writes is seen */
    if (!b->time(&pass, b->count, b->input, b->result, &microseconds, &error)) {
        fprintf(stderr, "dropout: %s\n", error.text);
        exit(error.code);
    }
    return (struct result){microseconds, count_wrong(b, &pass)};
}

/* --- the report -------------------------------------------------------------------------------------- */

static void print_and_delete(cJSON *json)
{
    char *text = cJSON_Print(json);
    puts(text);
    free(text);
    cJSON_Delete(json);
}

static void print_heading(void)
{
    printf("#%39s%s%31s%s\n", "", "forward", "", "backward");
    printf("#%-19s", "");
    for (int i = 0; i < 2; i++)
        printf("  %10s %8s %9s %6s", "us", "GB/s", "of copy", "#wrong");
    printf("\n");
}

/* The copy, row 0, has one pass. */
static void print_row(const struct bench *b, struct result results[MODULES + 1][2], int row)
{
    printf("%-20s", row == 0 ? "copy" : modules[row - 1].name);
    for (int k = 0; k < (row == 0 ? 1 : 2); k++)
        printf("  %10.1f %8.1f %8.0f%% %6zu", results[row][k].microseconds,
               2e-3 * (double)b->bytes / results[row][k].microseconds,
               100 * results[0][0].microseconds / results[row][k].microseconds, results[row][k].wrong);
    printf("\n");
}

static void print_json(const struct bench *b, const char *processor, struct result results[MODULES + 1][2])
{
    static const char *const passes[] = {"forward", "backward"};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "processor", processor);
    cJSON_AddNumberToObject(json, "bytes", (double)b->bytes);
    cJSON_AddNumberToObject(json, "p", P);
    cJSON *rows = cJSON_AddArrayToObject(json, "rows");
    for (int i = 0; i < MODULES + 1; i++) {
        for (int k = 0; k < (i == 0 ? 1 : 2); k++) {
            cJSON *row = cJSON_CreateObject();
            cJSON_AddStringToObject(row, "name", i == 0 ? "copy" : modules[i - 1].name);
            cJSON_AddStringToObject(row, "pass", i == 0 ? "" : passes[k]);
            cJSON_AddNumberToObject(row, "us", results[i][k].microseconds);
            cJSON_AddNumberToObject(row, "wrong", (double)results[i][k].wrong);
            cJSON_AddItemToArray(rows, row);
        }
    }
    print_and_delete(json);
}

static void print_skipped(const char *why)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "skipped", why);
    print_and_delete(json);
}

/* --- measuring all ----------------------------------------------------------------------------------- */

static void measure_module(const struct bench *b, int module, struct result results[2])
{
    struct dropout dropout;
    struct error error = {0};
    size_t shape[5];
    memcpy(shape, modules[module].shape, sizeof shape);
    shape[0] = b->samples;
    dropout_make(P, modules[module].feature, modules[module].alpha, modules[module].dimensions, shape, &dropout,
                 &error);
    for (int backward = 0; backward < 2; backward++)
        results[backward] = measure(b, &dropout, backward);
}

/* The copy, then each module, forward and backward; a row is told as soon as it is there, unless silent. Whether no
 * number is wrong. */
static bool measure_all(const struct bench *b, struct result results[MODULES + 1][2], bool silent)
{
    bool valid = true;
    results[0][0] = results[0][1] = measure(b, NULL, false);
    for (int row = 0; row < MODULES + 1; row++) {
        if (row > 0)
            measure_module(b, row - 1, results[row]);
        if (!silent)
            print_row(b, results, row);
        valid = valid && results[row][0].wrong == 0 && results[row][1].wrong == 0;
    }
    return valid;
}

/* --- the program ------------------------------------------------------------------------------------- */

static void open_bench(struct bench *b, size_t mib)
{
    b->bytes = mib << 20;
    b->count = b->bytes / sizeof(float);
    b->samples = b->count / SAMPLE;
    b->input = memory_allocate_aligned(64, b->bytes, "a tensor");
    b->result = memory_allocate_aligned(64, b->bytes, "a tensor");
    b->wanted = memory_allocate_aligned(64, b->bytes, "a tensor");
    b->keep = memory_allocate_aligned(64, b->count, "a mask");
    for (size_t i = 0; i < b->count; i++)
        b->input[i] = (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-23f - 1;
}

static void close_bench(struct bench *b)
{
    free(b->keep);
    free(b->wanted);
    free(b->result);
    free(b->input);
}

int main(int argc, char **argv)
{
    char why[300], name[400] = "one core";
    setvbuf(stdout, NULL, _IOLBF, 0); /* whoever is stopped has told what it knew */
    const struct gpu_part *part = gpu_load(why, sizeof why);
    bool on_gpu = part != NULL && part->cudnn->available(why, sizeof why);
    struct bench bench = {.time = on_gpu ? part->time_dropout : time_on_cpu};
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    char *end = NULL;
    argc -= json, argv += json;
    long mib = argc > 1 ? strtol(argv[1], &end, 10) : on_gpu ? 256 : 64;
    if (argc > 2 || mib < 1 || mib > MOST_MIB || (end != NULL && *end != '\0')) {
        fprintf(stderr, "usage: dropout [--json] [MIB]   MIB: of a tensor, 1 to %d\n", MOST_MIB);
        return EXIT_USAGE;
    }
    if (json && !on_gpu) {
        print_skipped(why);
        return EXIT_DONE;
    }
    if (on_gpu)
        gpu_name(part, name, sizeof name);
    if (!json)
        printf("# dtrain %s, %s; %s%s%s\n# %ld MiB of fp32, p %g, samples of 8,192 numbers or of 8 channels\n",
               version_revision, version_build, name, on_gpu ? "" : ": ", on_gpu ? "" : why, mib, P);
    open_bench(&bench, (size_t)mib);
    struct result results[MODULES + 1][2];
    if (!json)
        print_heading();
    bool valid = measure_all(&bench, results, json);
    if (json)
        print_json(&bench, name, results);
    close_bench(&bench);
    if (!json)
        printf("%s\n", valid ? "VALID" : "INVALID");
    return valid ? EXIT_DONE : EXIT_RUNTIME;
}
