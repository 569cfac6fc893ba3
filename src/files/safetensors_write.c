#include <cjson/cJSON.h>
#include <stdlib.h>

#include "files.h"
#include "memory.h"
#include "safetensors.h"
#include "safetensors_format.h"

/* The JSON header, to be freed. */
static char *print_header(const struct tensor *tensors, size_t n_tensors, const struct metadata *metadata,
                          size_t n_metadata)
{
    cJSON *header = cJSON_CreateObject();
    cJSON *strings = cJSON_AddObjectToObject(header, METADATA_NAME);
    cJSON_AddStringToObject(strings, "checksum", "0000000000000000");
    for (size_t i = 0; i < n_metadata; i++)
        cJSON_AddStringToObject(strings, metadata[i].key, metadata[i].value);
    size_t offset = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        cJSON *entry = cJSON_AddObjectToObject(header, tensors[i].name);
        cJSON_AddStringToObject(entry, "dtype", "F32");
        cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
        for (size_t d = 0; d < tensors[i].dimensions; d++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensors[i].shape[d]));
        cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
        offset += tensors[i].count * sizeof(float);
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
    }
    char *text = cJSON_PrintUnformatted(header);
    cJSON_Delete(header);
    return text;
}

/* The whole file, to be freed. */
static unsigned char *make_file(const char *header, const struct tensor *tensors, size_t n_tensors, size_t *size)
{
    size_t header_bytes = strlen(header);
    uint64_t padded_bytes = (header_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *size = LENGTH_BYTES + padded_bytes;
    for (size_t i = 0; i < n_tensors; i++)
        *size += tensors[i].count * sizeof(float);
    unsigned char *bytes = memory_allocate(*size, 1, "a file of weights");
    memcpy(bytes, &padded_bytes, LENGTH_BYTES);
    memset(bytes + LENGTH_BYTES, ' ', padded_bytes);
    memcpy(bytes + LENGTH_BYTES, header, header_bytes);
    unsigned char *data = bytes + LENGTH_BYTES + padded_bytes;
    for (size_t i = 0; i < n_tensors; i++) {
        memcpy(data, tensors[i].data, tensors[i].count * sizeof(float));
        data += tensors[i].count * sizeof(float);
    }
    return bytes;
}

bool safetensors_write(const struct folder *folder, const char *name, const char *keep, const struct tensor *tensors,
                       size_t n_tensors, const struct metadata *metadata, size_t n_metadata, struct error *error)
{
    size_t size;
    char digits[CHECKSUM_DIGITS + 1], *header = print_header(tensors, n_tensors, metadata, n_metadata);
    unsigned char *bytes = make_file(header, tensors, n_tensors, &size);
    cJSON_free(header);
    checksum_compute(bytes, size, digits);
    memcpy(bytes + CHECKSUM_PLACE, digits, CHECKSUM_DIGITS);
    bool done = folder_replace(folder, name, keep, bytes, size, error);
    free(bytes);
    return done;
}
