#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exact_sum.h"
#include "gpu.h"
#include "memory.h"

/* Best first. A new engine is added here and nowhere else. */
static const struct engine_ops *const engines[] = {&proxy_cudnn, &proxy_fused, &engine_cpu, NULL};

enum comm_place engine_place(const struct engine_ops *ops)
{
    return ops->in_kernel ? COMM_FOR_KERNEL : ops->on_gpu ? COMM_FOR_GPU : COMM_FOR_CPU;
}

const struct engine_ops *const *engine_list(void)
{
    return engines;
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

static void list_names(char *names, size_t bytes)
{
    size_t used = (size_t)snprintf(names, bytes, "auto");
    for (int i = 0; engines[i] != NULL && used < bytes; i++)
        used += (size_t)snprintf(names + used, bytes - used, ", %s", engines[i]->name);
}

void engine_names(char *text, size_t bytes)
{
    size_t used = (size_t)snprintf(text, bytes, "auto");
    for (int i = 0; engines[i] != NULL && used < bytes; i++) {
        const char *note = engines[i]->note;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s%s%s%s", engines[i + 1] == NULL ? " or " : ", ",
                                 engines[i]->name, note != NULL ? " (" : "", note != NULL ? note : "",
                                 note != NULL ? ")" : "");
    }
}

const struct engine_ops *engine_choose(const char *name, char *why, size_t why_bytes, struct error *error)
{
    bool any = strcmp(name, "auto") == 0, known = any;
    why[0] = '\0';
    for (int i = 0; engines[i] != NULL; i++) {
        char reason[300] = "";
        if (!any && strcmp(name, engines[i]->name) != 0)
            continue;
        known = true;
        bool available = engines[i]->available(reason, sizeof reason);
        if (why[0] == '\0') /* why the best one is not available: the reason for taking the next */
            snprintf(why, why_bytes, "%s%s%s", available || !any ? "" : engines[i]->name, available || !any ? "" : ": ",
                     reason);
        if (available)
            return engines[i];
    }
    char names[100];
    list_names(names, sizeof names);
    if (known)
        error_set(error, EXIT_USAGE, "--engine %s: this machine cannot run it: %s", name, why);
    else
        error_set(error, EXIT_USAGE, "--engine %s: no such engine; give one of %s", name, names);
    return NULL;
}

void engine_read_gradient(const struct engine *engine, size_t samples, float *gradient)
{
    int64_t *sums = memory_allocate(LENET5_WEIGHTS, sizeof *sums, "a gradient");
    engine->ops->read_sums(engine, engine->sums->totals, sums);
    exact_sum_read(LENET5_WEIGHTS, sums, 1 / (double)samples, gradient);
    free(sums);
}
