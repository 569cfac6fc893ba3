#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "safetensors.h"
#include "safetensors_format.h"

/* The header of a net of ours has 3,000. Parsed, a header takes some forty times as much memory. */
static const size_t MAX_HEADER_BYTES = 1 << 20;
static const size_t MAX_FILE_BYTES = (size_t)1 << 30;
static const double MAX_EXACT_INTEGER = 0x1p53; /* JSON numbers are doubles */

struct safetensors {
    char *path;
    unsigned char *bytes; /* the whole file */
    size_t size, header_bytes, data_bytes;
    const unsigned char *data; /* its tensors */
    cJSON *header;
};

/* Where a tensor lies in the data. */
struct extent {
    const char *name;
    uint64_t begin, end;
};

static bool read_bytes(struct safetensors *file, int fd, struct error *error)
{
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0)
        return error_set(error, EXIT_INPUT, "%s: cannot be read: %s", file->path, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return error_set(error, EXIT_INPUT, "%s: not a regular file", file->path);
    file->size = (size_t)status.st_size;
    if (file->size > MAX_FILE_BYTES)
        return error_set(error, EXIT_INPUT, "%s: has %zu bytes; no file over %zu is read", file->path, file->size,
                         MAX_FILE_BYTES);
    file->bytes = memory_allocate(file->size, 1, "a file of weights");
    for (size_t done = 0; done < file->size;) {
        ssize_t got = TEMP_FAILURE_RETRY(read(fd, file->bytes + done, file->size - done));
        if (got <= 0)
            return error_set(error, EXIT_INPUT, "%s: cannot be read: %s", file->path,
                             got < 0 ? strerror(errno) : "it became shorter meanwhile");
        done += (size_t)got;
    }
    return true;
}

/* What torch.save writes: a zip, or before PyTorch 1.6 a pickle. */
static bool is_of_torch_save(const struct safetensors *file)
{
    return file->size > 4 && (memcmp(file->bytes, "PK\3\4", 4) == 0 || memcmp(file->bytes, "\x80\2\x8a\n", 4) == 0);
}

static bool find_header(struct safetensors *file, struct error *error)
{
    uint64_t length;
    if (is_of_torch_save(file))
        return error_set(
            error, EXIT_INPUT,
            "%s: a file of torch.save, but only safetensors are read: in Python, safetensors.torch.save_file("
            "torch.load(that, weights_only=True), \"weights.safetensors\") converts a state_dict",
            file->path);
    if (file->size < LENGTH_BYTES)
        return error_set(error, EXIT_INPUT,
                         "%s: not a safetensors file, or truncated: %zu bytes, the header's length takes %d",
                         file->path, file->size, LENGTH_BYTES);
    memcpy(&length, file->bytes, LENGTH_BYTES);
    if (length > MAX_HEADER_BYTES && length <= file->size - LENGTH_BYTES)
        return error_set(error, EXIT_INPUT,
                         "%s: has a header of %" PRIu64
                         " bytes, and none over %zu is read (a file of this net needs some "
                         "thousand): store the net's ten tensors alone",
                         file->path, length, MAX_HEADER_BYTES);
    if (length > file->size - LENGTH_BYTES)
        return error_set(error, EXIT_INPUT,
                         "%s: not a safetensors file, or truncated: byte 0 announces a header of %" PRIu64
                         " bytes, the file has %zu",
                         file->path, length, file->size);
    file->header_bytes = length;
    file->data = file->bytes + LENGTH_BYTES + length;
    file->data_bytes = file->size - LENGTH_BYTES - length;
    return true;
}

static bool has_checksum(const struct safetensors *file)
{
    return file->header_bytes >= CHECKSUM_START_BYTES + CHECKSUM_DIGITS &&
           memcmp(file->bytes + LENGTH_BYTES, CHECKSUM_START, CHECKSUM_START_BYTES) == 0;
}

/* Called before the header is parsed, so that a damaged file is called damaged, and not bad JSON. */
static bool check_checksum(const struct safetensors *file, struct error *error)
{
    char digits[CHECKSUM_DIGITS + 1];
    if (!has_checksum(file))
        return true;
    checksum_compute(file->bytes, file->size, digits);
    return memcmp(file->bytes + CHECKSUM_PLACE, digits, CHECKSUM_DIGITS) == 0 ||
           error_set(error, EXIT_INPUT, "%s: damaged: its bytes have checksum %s, not the one it states", file->path,
                     digits);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No name occurs twice: readers differ in which of the two they take. */
static bool check_names(const struct safetensors *file, const cJSON *object, struct error *error)
{
    size_t count = 0;
    const char **names = memory_allocate((size_t)cJSON_GetArraySize(object), sizeof *names, "a file of weights");
    for (const cJSON *item = object->child; item != NULL; item = item->next)
        names[count++] = item->string;
    qsort(names, count, sizeof *names, compare_names);
    bool good = true;
    for (size_t i = 1; i < count && good; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            good = error_set(error, EXIT_INPUT, "%s: the header names '%s' twice", file->path, names[i]);
    free(names);
    return good;
}

static bool parse_header(struct safetensors *file, struct error *error)
{
    const char *text = (const char *)file->bytes + LENGTH_BYTES, *stop = text;
    const char *end = text + file->header_bytes;
    file->header = cJSON_ParseWithLengthOpts(text, file->header_bytes, &stop, false);
    while (stop < end && *stop == ' ')
        stop++;
    if (!cJSON_IsObject(file->header) || *text != '{' || stop != end)
        return error_set(error, EXIT_INPUT,
                         "%s: not a safetensors file, or damaged: its header is no JSON object (byte %td)", file->path,
                         stop - text + LENGTH_BYTES);
    return check_names(file, file->header, error);
}

static bool check_metadata(const struct safetensors *file, struct error *error)
{
    const cJSON *metadata = cJSON_GetObjectItemCaseSensitive(file->header, METADATA_NAME);
    if (metadata == NULL)
        return true;
    bool strings = cJSON_IsObject(metadata);
    for (const cJSON *item = metadata->child; item != NULL && strings; item = item->next)
        strings = cJSON_IsString(item);
    if (!strings)
        return error_set(error, EXIT_INPUT, "%s: " METADATA_NAME " is no object of strings", file->path);
    if (safetensors_metadata(file, "checksum") != NULL && !has_checksum(file))
        return error_set(error, EXIT_INPUT,
                         "%s: its checksum cannot be verified, as it is not the first entry of the header: who "
                         "rewrites a file is to leave it out",
                         file->path);
    return check_names(file, metadata, error);
}

static bool read_integer(const cJSON *item, uint64_t *integer)
{
    *integer = 0;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= MAX_EXACT_INTEGER))
        return false;
    *integer = (uint64_t)item->valuedouble;
    return (double)*integer == item->valuedouble;
}

/* Bytes of an F32 tensor of this shape. */
static bool shape_bytes(const cJSON *shape, uint64_t *bytes)
{
    uint64_t dimension;
    *bytes = sizeof(float);
    for (const cJSON *item = shape->child; item != NULL; item = item->next)
        if (!read_integer(item, &dimension) || __builtin_mul_overflow(*bytes, dimension, bytes))
            return false;
    return true;
}

/* One tensor of the header: dtype, shape and offsets are there and agree. */
static bool check_entry(const struct safetensors *file, const cJSON *entry, struct extent *extent, struct error *error)
{
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2)
        return error_set(error, EXIT_INPUT, "%s: tensor '%s' lacks a dtype, a shape or data_offsets of [begin, end]",
                         file->path, entry->string);
    extent->name = entry->string;
    if (!read_integer(offsets->child, &extent->begin) || !read_integer(offsets->child->next, &extent->end) ||
        extent->begin > extent->end || extent->end > file->data_bytes)
        return error_set(error, EXIT_INPUT,
                         "%s: truncated or damaged: the data_offsets of '%s' do not lie within the %zu "
                         "bytes of data",
                         file->path, entry->string, file->data_bytes);
    uint64_t bytes;
    if (!shape_bytes(shape, &bytes))
        return error_set(error, EXIT_INPUT, "%s: tensor '%s' has an impossible shape", file->path, entry->string);
    if (strcmp(dtype->valuestring, "F32") == 0 && bytes != extent->end - extent->begin)
        return error_set(error, EXIT_INPUT, "%s: tensor '%s' needs %" PRIu64 " bytes for its shape and has %" PRIu64,
                         file->path, entry->string, bytes, extent->end - extent->begin);
    return true;
}

static int compare_extents(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Together the tensors cover the data once. */
static bool check_layout(const struct safetensors *file, struct extent *extents, size_t count, struct error *error)
{
    uint64_t reached = 0;
    qsort(extents, count, sizeof *extents, compare_extents);
    for (size_t i = 0; i < count; i++) {
        if (extents[i].begin != reached)
            return error_set(error, EXIT_INPUT,
                             "%s: tensor '%s' begins at byte %" PRIu64 " of the data, where %" PRIu64
                             " would follow on the tensor before",
                             file->path, extents[i].name, extents[i].begin, reached);
        reached = extents[i].end;
    }
    return reached == file->data_bytes ||
           error_set(error, EXIT_INPUT, "%s: has %zu bytes of data, but tensors for %" PRIu64, file->path,
                     file->data_bytes, reached);
}

static bool check_tensors(const struct safetensors *file, struct error *error)
{
    size_t count = 0;
    struct extent *extents = memory_allocate((size_t)cJSON_GetArraySize(file->header), sizeof *extents,
                                             "a file of weights");
    bool good = true;
    for (const cJSON *entry = file->header->child; entry != NULL && good; entry = entry->next)
        if (strcmp(entry->string, METADATA_NAME) != 0)
            good = check_entry(file, entry, &extents[count++], error);
    good = good && check_layout(file, extents, count, error);
    free(extents);
    return good;
}

/* path: for messages. */
static struct safetensors *open_at(int directory, const char *name, const char *path, struct error *error)
{
    struct safetensors *file = memory_allocate(1, sizeof *file, "a file of weights");
    file->path = memory_allocate(strlen(path) + 1, 1, "a file of weights");
    strcpy(file->path, path);
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block */
    bool good = read_bytes(file, fd, error);
    if (fd >= 0)
        close(fd);
    if (good && find_header(file, error) && check_checksum(file, error) && parse_header(file, error) &&
        check_metadata(file, error) && check_tensors(file, error))
        return file;
    safetensors_close(file);
    return NULL;
}

struct safetensors *safetensors_open(const char *path, struct error *error)
{
    return open_at(AT_FDCWD, path, path, error);
}

struct safetensors *safetensors_open_in(const struct folder *folder, const char *name, struct error *error)
{
    char path[sizeof folder->path + 100];
    snprintf(path, sizeof path, "%s/%s", folder->path, name);
    return open_at(folder->descriptor, name, path, error);
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL)
        return;
    cJSON_Delete(file->header);
    free(file->bytes);
    free(file->path);
    free(file);
}

const char *safetensors_path(const struct safetensors *file)
{
    return file->path;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    const cJSON *metadata = cJSON_GetObjectItemCaseSensitive(file->header, METADATA_NAME);
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, key));
}

bool safetensors_has(const struct safetensors *file, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(file->header, name) != NULL;
}

/* "[6,3,5,5]", as cJSON prints it. */
static void print_shape(const struct tensor *tensor, char text[100])
{
    size_t length = (size_t)sprintf(text, "[");
    for (size_t d = 0; d < tensor->dimensions; d++)
        length += (size_t)sprintf(text + length, "%s%zu", d > 0 ? "," : "", tensor->shape[d]);
    strcpy(text + length, "]");
}

bool safetensors_read(const struct safetensors *file, const struct tensor *want, struct error *error)
{
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(file->header, want->name);
    if (entry == NULL)
        return error_set(error, EXIT_INPUT, "%s: has no tensor '%s'", file->path, want->name);
    const char *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype")->valuestring;
    if (strcmp(dtype, "F32") != 0)
        return error_set(error, EXIT_INPUT, "%s: tensor '%s' is %s, but only F32 is read", file->path, want->name,
                         dtype);

    char wanted[100], found[100];
    print_shape(want, wanted);
    if (!cJSON_PrintPreallocated(cJSON_GetObjectItemCaseSensitive(entry, "shape"), found, sizeof found, 0))
        strcpy(found, "of many dimensions");
    if (strcmp(found, wanted) != 0)
        return error_set(error, EXIT_INPUT, "%s: tensor '%s' has shape %s, but %s is needed", file->path, want->name,
                         found, wanted);

    uint64_t begin;
    read_integer(cJSON_GetObjectItemCaseSensitive(entry, "data_offsets")->child, &begin);
    memcpy(want->data, file->data + begin, want->count * sizeof(float));
    return true;
}
