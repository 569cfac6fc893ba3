#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort.h"
#include "exact_sum.h"
#include "gpu.h"
#include "memory.h"

static const struct engine_ops *find_cpu(char *why, size_t why_bytes)
{
    (void)why, (void)why_bytes; /* it is always there */
    return &engine_cpu;
}

/* Best first. A new engine is added here and nowhere else. */
static const struct {
    const char *name;                                              /* of its ops, too (test_golden.c) */
    const char *note;                                              /* for whom it is, a word or two for --help; NULL */
    const struct engine_ops *(*find)(char *why, size_t why_bytes); /* NULL: not here, and why */
} engines[] = {
    {"cudnn", "GPUs", gpu_find_cudnn},
    {"fused", "GPUs, to the CPU's bits", gpu_find_fused},
    {"cpu", NULL, find_cpu},
};
enum { ENGINES = sizeof engines / sizeof *engines };

enum comm_use engine_comm_use(const struct engine_ops *ops)
{
    return ops->in_kernel ? COMM_FOR_KERNEL : ops->on_gpu ? COMM_FOR_GPU : COMM_FOR_CPU;
}

const char *engine_name(int number)
{
    return number < ENGINES ? engines[number].name : NULL;
}

const struct engine_ops *engine_find(int number, char *why, size_t why_bytes)
{
    const struct engine_ops *ops = engines[number].find(why, why_bytes);
    return ops != NULL && (ops->available == NULL || ops->available(why, why_bytes)) ? ops : NULL;
}

static const char *const precisions[] = {"fp32", "tf32"};

enum precision engine_precision(const char *name)
{
    return strcmp(name, precisions[PRECISION_TF32]) == 0 ? PRECISION_TF32 : PRECISION_FP32;
}

const char *engine_precision_name(enum precision precision)
{
    return precisions[precision];
}

void engine_names(char *text, size_t bytes, bool notes)
{
    size_t used = (size_t)snprintf(text, bytes, "auto");
    for (int i = 0; i < ENGINES && used < bytes; i++) {
        const char *note = notes ? engines[i].note : NULL;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s%s%s%s", i == ENGINES - 1 ? " or " : ", ",
                                 engines[i].name, note != NULL ? " (" : "", note != NULL ? note : "",
                                 note != NULL ? ")" : "");
    }
}

const struct engine_ops *engine_choose(const char *name, struct comm *comm, char *why, size_t why_bytes,
                                       struct error *error)
{
    bool any = strcmp(name, "auto") == 0, known = any;
    why[0] = '\0';
    for (int i = 0; i < ENGINES; i++) {
        char reason[300] = "";
        if (!any && strcmp(name, engines[i].name) != 0)
            continue;
        known = true;
        if (comm != NULL)
            comm_away(comm);
        const struct engine_ops *found = engine_find(i, reason, sizeof reason);
        if (comm != NULL)
            comm_back(comm);
        if (why[0] == '\0') /* why the best one is not available: the reason for taking the next */
            snprintf(why, why_bytes, "%s%s%s", found || !any ? "" : engines[i].name, found || !any ? "" : ": ", reason);
        if (found != NULL)
            return found;
    }
    char names[100], who[WHO_BYTES];
    engine_names(names, sizeof names, false);
    abort_who(who, sizeof who);
    if (known)
        error_set(error, EXIT_USAGE, "--engine %s: %s cannot run it: %s", name, who, why);
    else
        error_set(error, EXIT_USAGE, "--engine %s: no such engine; give %s", name, names);
    return NULL;
}

void engine_read_gradient(const struct engine *engine, size_t samples, float *gradient)
{
    int64_t *sums = memory_allocate(LENET5_WEIGHTS, sizeof *sums, "a gradient");
    engine->ops->read_sums(engine, engine->sums->totals, sums);
    exact_sum_read(LENET5_WEIGHTS, sums, 1 / (double)samples, gradient);
    free(sums);
}
