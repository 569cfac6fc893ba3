/* Any bytes as the files of a data set, a sixth each: refused in one line, or every label is a class. */
#include "fuzz.h"

#include "dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dataset dataset;
    struct error error = {0};
    size_t part = size / DATA_FILES;
    /* The last file's length is the input's own, so that files of unlike lengths are met. */
    for (size_t i = 0; i < DATA_FILES; i++)
        fuzz_write(dataset_files[i], data + i * part, i + 1 < DATA_FILES ? part : size - i * part);
    bool good = dataset_open(&dataset, fuzz_folder(), &error);
    fuzz_check_verdict(good, &error);
    if (!good)
        return 0;
    for (size_t i = 0; i < dataset.train.count; i++)
        if (*split_record(&dataset.train, i) > 9)
            abort();
    dataset_close(&dataset);
    return 0;
}
