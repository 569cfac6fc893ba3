/* Any metadata, "key=value" a line, in a checkpoint: the run's progress or one line. The file has no tensors at first,
 * as those make it half a megabyte, and slow; only metadata that is refused for nothing else gets them. */
#include "fuzz.h"

#include <math.h>
#include <string.h>

#include "checkpoint.h"
#include "lenet5.h"
#include "src/files/safetensors.h"

enum { MAX_ENTRIES = 40, MAX_BYTES = 2000, TENSORS = 2 * LENET5_PARAMETERS };

static void write_checkpoint(const struct folder *folder, int n_tensors, const struct metadata *metadata, size_t count)
{
    static float zeros[LENET5_WEIGHTS];
    char names[TENSORS][32];
    struct tensor tensors[TENSORS];
    struct error error = {0};
    for (int i = 0; i < n_tensors; i++) {
        const struct parameter *parameter = &lenet5_parameters[i % LENET5_PARAMETERS];
        snprintf(names[i], sizeof names[i], "%s%s", i < LENET5_PARAMETERS ? "" : "momentum.", parameter->name);
        tensors[i] = (struct tensor){.name = names[i],
                                     .dimensions = parameter->dimensions,
                                     .count = parameter->count,
                                     .data = zeros};
        memcpy(tensors[i].shape, parameter->shape, sizeof parameter->shape);
    }
    if (!safetensors_write(folder, "checkpoint.safetensors", NULL, tensors, (size_t)n_tensors, metadata, count, &error))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[MAX_BYTES + 1], accepted[300], *rest = text;
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
    static float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    enum { SAMPLES = 335 };
    struct terms terms = {.count = 4,
                          .list = {
                              {"net", "net", NULL, "D"},
                              {"train_count", "data with a training set of", NULL, "335"},
                              {"momentum", "momentum", NULL, "0.9"},
                              {"precision", "precision", "fp32", "fp32"},
                          }};
    struct progress progress;
    struct error lacking = {0}, error = {0};
    struct folder folder;
    if (!folder_open(&folder, fuzz_folder(), &error))
        abort();
    write_checkpoint(&folder, 0, metadata, count);
    fuzz_check_verdict(checkpoint_read(&folder, &terms, SAMPLES, &progress, weights, velocity, &lacking), &lacking);
    snprintf(accepted, sizeof accepted, "%s/checkpoint.safetensors: has no tensor '%s'", folder.path,
             lenet5_parameters[0].name);
    if (strcmp(lacking.text, accepted) != 0) {
        folder_close(&folder);
        return 0;
    }
    write_checkpoint(&folder, TENSORS, metadata, count);
    bool good = checkpoint_read(&folder, &terms, SAMPLES, &progress, weights, velocity, &error);
    if (!good || progress.in_epoch > SAMPLES || !isfinite(progress.seconds))
        abort();
    folder_close(&folder);
    return 0;
}
