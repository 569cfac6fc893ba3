/* Any metadata, "key=value" a line, in a checkpoint: the run's progress or one line. The file has no tensors at first,
 * as those make it half a megabyte, and slow; only metadata that is refused for nothing else gets them. */
#include "fuzz.h"

#include <math.h>
#include <string.h>

#include "checkpoint.h"
#include "lenet5.h"
#include "src/files/safetensors.h"

enum { MAX_ENTRIES = 40, MAX_BYTES = 2000, TENSORS = 2 * LENET5_PARAMETERS };

static void write_checkpoint(const char *path, int n_tensors, const struct metadata *metadata, size_t count)
{
    static float zeros[LENET5_WEIGHTS];
    char names[TENSORS][32];
    struct tensor tensors[TENSORS];
    struct error error = {0};
    for (int i = 0; i < n_tensors; i++) {
        const struct parameter *parameter = &lenet5_parameters[i % LENET5_PARAMETERS];
        snprintf(names[i], sizeof names[i], "%s%s", i < LENET5_PARAMETERS ? "" : "momentum.", parameter->name);
        tensors[i] = (struct tensor){.name = names[i], .dimensions = parameter->dimensions, .count = parameter->count,
                                     .data = zeros};
        memcpy(tensors[i].shape, parameter->shape, sizeof parameter->shape);
    }
    if (!safetensors_write(path, NULL, tensors, (size_t)n_tensors, metadata, count, true, &error))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[MAX_BYTES + 1], path[200], accepted[300], *rest = text;
    struct metadata metadata[MAX_ENTRIES];
    size_t count = 0;
    size = size < MAX_BYTES ? size : MAX_BYTES;
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *line; count < MAX_ENTRIES && (line = strsep(&rest, "\n")) != NULL;) {
        char *value = strchr(line, '=');
        if (value == NULL)
            continue;
        *value = '\0';
        metadata[count++] = (struct metadata){line, value + 1};
    }
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", fuzz_folder());

    static float weights[LENET5_WEIGHTS], momentum[LENET5_WEIGHTS];
    enum { SAMPLES = 335 };
    struct terms terms = {.count = 4, .list = {
        {"net", "net", NULL, "D"},
        {"train_count", "data with a training set of", NULL, "335"},
        {"momentum", "momentum", NULL, "0.9"},
        {"precision", "precision", "fp32", "fp32"},
    }};
    struct progress progress;
    struct error lacking = {0}, error = {0};
    write_checkpoint(path, 0, metadata, count);
    fuzz_check_verdict(checkpoint_read(fuzz_folder(), &terms, SAMPLES, &progress, weights, momentum, &lacking), &lacking);
    snprintf(accepted, sizeof accepted, "%s: has no tensor '%s'", path, lenet5_parameters[0].name);
    if (strcmp(lacking.text, accepted) != 0)
        return 0;
    write_checkpoint(path, TENSORS, metadata, count);
    bool good = checkpoint_read(fuzz_folder(), &terms, SAMPLES, &progress, weights, momentum, &error);
    if (!good || progress.in_epoch > SAMPLES || !isfinite(progress.seconds))
        abort();
    return 0;
}
