/* Any metadata, "key=value" a line, in a checkpoint that is whole otherwise: the run's progress or one line. */
#include "fuzz.h"

#include <math.h>
#include <string.h>

#include "checkpoint.h"
#include "lenet5.h"
#include "safetensors.h"

enum { MAX_ENTRIES = 40, MAX_BYTES = 2000, TENSORS = 2 * LENET5_PARAMETERS };

static void write_checkpoint(const char *path, const struct metadata *metadata, size_t count)
{
    static float zeros[LENET5_WEIGHTS];
    char names[TENSORS][32];
    struct tensor tensors[TENSORS];
    struct error error = {0};
    for (int i = 0; i < TENSORS; i++) {
        const struct parameter *parameter = &lenet5_parameters[i % LENET5_PARAMETERS];
        snprintf(names[i], sizeof names[i], "%s%s", i < LENET5_PARAMETERS ? "" : "momentum.", parameter->name);
        tensors[i] = (struct tensor){.name = names[i], .dimensions = parameter->dimensions, .count = parameter->count,
                                     .data = zeros};
        memcpy(tensors[i].shape, parameter->shape, sizeof parameter->shape);
    }
    if (!safetensors_write(path, NULL, tensors, TENSORS, metadata, count, true, &error))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[MAX_BYTES + 1], path[200], *rest = text;
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
    write_checkpoint(path, metadata, count);

    static float weights[LENET5_WEIGHTS], momentum[LENET5_WEIGHTS];
    struct terms terms = {'D', 0.5, 0.5, 1, 64, 0x1234, 335, 0.05, 0.9, 0.5, 150};
    struct progress progress;
    struct error error = {0};
    bool good = checkpoint_read(fuzz_folder(), &terms, &progress, weights, momentum, &error);
    fuzz_check_verdict(good, &error);
    if (good && (progress.in_epoch > terms.train_count || !isfinite(progress.seconds)))
        abort();
    return 0;
}
