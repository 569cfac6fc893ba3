/* Any bytes as a safetensors file: refused in one line or read whole. */
#include "fuzz.h"

#include "lenet5.h"
#include "src/files/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[200];
    struct error error = {0};
    fuzz_write("file", data, size);
    snprintf(path, sizeof path, "%s/file", fuzz_folder());
    struct safetensors *file = safetensors_open(path, &error);
    fuzz_check_verdict(file != NULL, &error);
    if (file == NULL)
        return 0;
    float values[6];
    struct tensor want = {.name = "weight", .dimensions = 2, .shape = {2, 3}, .count = 6, .data = values};
    fuzz_check_verdict(safetensors_read(file, &want, &error), &error);
    safetensors_metadata(file, "key");
    safetensors_close(file);
    return 0;
}
