#include "checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "safetensors.h"

static const char CURRENT[] = "checkpoint.safetensors";
static const char PREVIOUS[] = "checkpoint-previous.safetensors";
static const char FORMAT_KEY[] = "dtrain-checkpoint", FORMAT[] = "1";

/* Both structs as text, for the file's metadata: one table each says how. */
enum kind { LETTER, WORD, COUNT, SIGNED, HASH, NUMBER };
struct field {
    const char *key;
    enum kind kind;
    size_t offset;      /* in its struct */
    const char *option; /* for people: the option that sets it */
    const char *once;   /* what files that lack it were written with; NULL: none may lack it */
};

static const struct field terms_fields[] = {
    {"net", LETTER, offsetof(struct terms, net), "--net", NULL},
    {"p_conv", NUMBER, offsetof(struct terms, p_conv), "--p-conv", NULL},
    {"p_fc", NUMBER, offsetof(struct terms, p_fc), "--p-fc", NULL},
    {"seed", COUNT, offsetof(struct terms, seed), "--seed", NULL},
    {"batch_size", COUNT, offsetof(struct terms, batch_size), "--batch-size", NULL},
    {"train_count", COUNT, offsetof(struct terms, train_count), "--data with a training set of", NULL},
    {"data_hash", HASH, offsetof(struct terms, data_hash), "--data with xxh64", NULL},
    {"learning_rate", NUMBER, offsetof(struct terms, learning_rate), "--lr", NULL},
    {"momentum", NUMBER, offsetof(struct terms, momentum), "--momentum", NULL},
    {"lr_step", COUNT, offsetof(struct terms, lr_step), "--lr-step", NULL},
    {"lr_gamma", NUMBER, offsetof(struct terms, lr_gamma), "--lr-gamma", NULL},
    {"precision", WORD, offsetof(struct terms, precision), "--precision", "fp32"},
};
static const struct field progress_fields[] = {
    {"epoch", COUNT, offsetof(struct progress, epoch), NULL, NULL},
    {"step", COUNT, offsetof(struct progress, step), NULL, NULL},
    {"in_epoch", COUNT, offsetof(struct progress, in_epoch), NULL, NULL},
    {"loss", SIGNED, offsetof(struct progress, loss), NULL, NULL},
    {"seconds", NUMBER, offsetof(struct progress, seconds), NULL, NULL},
    {"epoch_seconds", NUMBER, offsetof(struct progress, epoch_seconds), NULL, NULL},
    {"best_train", NUMBER, offsetof(struct progress, best_train), NULL, NULL},
    {"best_test", NUMBER, offsetof(struct progress, best_test), NULL, NULL},
};
enum {
    TERMS_FIELDS = sizeof terms_fields / sizeof *terms_fields,
    PROGRESS_FIELDS = sizeof progress_fields / sizeof *progress_fields,
    ENTRIES = 1 + TERMS_FIELDS + PROGRESS_FIELDS,
    VALUE_BYTES = 32,
    NAME_BYTES = 32,
    TENSORS = 2 * LENET5_PARAMETERS,
};

/* --- numbers as text, exactly ---------------------------------------------------------------------- */

/* The fewest digits that read back as the same number. */
static void print_number(double number, char text[VALUE_BYTES])
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, VALUE_BYTES, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            return;
    }
}

static void print_field(const struct field *field, const void *record, char text[VALUE_BYTES])
{
    const void *value = (const char *)record + field->offset;
    switch (field->kind) {
    case LETTER: snprintf(text, VALUE_BYTES, "%c", *(const char *)value); break;
    case WORD: snprintf(text, VALUE_BYTES, "%s", *(const char *const *)value); break;
    case COUNT: snprintf(text, VALUE_BYTES, "%" PRIu64, *(const uint64_t *)value); break;
    case SIGNED: snprintf(text, VALUE_BYTES, "%" PRId64, *(const int64_t *)value); break;
    case HASH: snprintf(text, VALUE_BYTES, "%016" PRIx64, *(const uint64_t *)value); break;
    case NUMBER: print_number(*(const double *)value, text); break;
    }
}

/* Accepts only what print_field prints, and only finite numbers. */
static bool parse_field(const struct field *field, const char *text, void *record)
{
    void *value = (char *)record + field->offset;
    switch (field->kind) {
    case COUNT: *(uint64_t *)value = strtoull(text, NULL, 10); break;
    case SIGNED: *(int64_t *)value = strtoll(text, NULL, 10); break;
    case NUMBER: *(double *)value = strtod(text, NULL); break;
    case LETTER:
    case WORD:
    case HASH: return false; /* only terms have these: compared as text, not parsed */
    }
    char canonical[VALUE_BYTES];
    print_field(field, record, canonical);
    return strcmp(text, canonical) == 0 && (field->kind != NUMBER || isfinite(*(double *)value));
}

/* --- tensors --------------------------------------------------------------------------------------- */

/* The ten tensors over `values` (LENET5_WEIGHTS), their names behind `prefix`. */
static void list_tensors(const char *prefix, float *values, char names[][NAME_BYTES],
                         struct tensor *tensors)
{
    for (int i = 0; i < LENET5_PARAMETERS; i++) {
        const struct parameter *parameter = &lenet5_parameters[i];
        snprintf(names[i], NAME_BYTES, "%s%s", prefix, parameter->name);
        tensors[i] = (struct tensor){.name = names[i],
                                     .dimensions = parameter->dimensions,
                                     .count = parameter->count,
                                     .data = values + parameter->offset};
        memcpy(tensors[i].shape, parameter->shape, sizeof parameter->shape);
    }
}

static bool read_tensors(const struct safetensors *file, const char *prefix, float *values,
                         struct error *error)
{
    struct tensor tensors[LENET5_PARAMETERS];
    char names[LENET5_PARAMETERS][NAME_BYTES];
    list_tensors(prefix, values, names, tensors);
    for (int i = 0; i < LENET5_PARAMETERS; i++)
        if (!safetensors_read(file, &tensors[i], error))
            return false;
    return true;
}

/* --- checkpoints ----------------------------------------------------------------------------------- */

bool checkpoint_write(const char *directory, const struct terms *terms, const struct progress *progress,
                      const float *weights, const float *momentum, struct error *error)
{
    char path[4096], previous[4096];
    if (!files_path(directory, CURRENT, path, error) || !files_path(directory, PREVIOUS, previous, error))
        return false;

    struct metadata metadata[ENTRIES] = {{FORMAT_KEY, FORMAT}};
    char values[ENTRIES][VALUE_BYTES];
    size_t n = 1;
    for (size_t i = 0; i < TERMS_FIELDS; i++, n++) {
        print_field(&terms_fields[i], terms, values[n]);
        metadata[n] = (struct metadata){terms_fields[i].key, values[n]};
    }
    for (size_t i = 0; i < PROGRESS_FIELDS; i++, n++) {
        print_field(&progress_fields[i], progress, values[n]);
        metadata[n] = (struct metadata){progress_fields[i].key, values[n]};
    }

    struct tensor tensors[TENSORS];
    char names[TENSORS][NAME_BYTES];
    list_tensors("", (float *)weights, names, tensors); /* writing only reads them */
    list_tensors("momentum.", (float *)momentum, names + LENET5_PARAMETERS, tensors + LENET5_PARAMETERS);
    return safetensors_write(path, previous, tensors, TENSORS, metadata, ENTRIES, true, error);
}

bool checkpoint_exists(const char *directory)
{
    struct error ignored = {0};
    char path[4096];
    return (files_path(directory, CURRENT, path, &ignored) && access(path, F_OK) == 0) ||
           (files_path(directory, PREVIOUS, path, &ignored) && access(path, F_OK) == 0);
}

static bool check_format(const struct safetensors *file, const char *path, struct error *error)
{
    const char *format = safetensors_metadata(file, FORMAT_KEY);
    if (!format)
        return error_set(error, EXIT_INPUT, "%s: not a checkpoint of dtrain: its metadata has no '%s'", path,
                         FORMAT_KEY);
    if (strcmp(format, FORMAT) != 0)
        return error_set(error, EXIT_INPUT,
                         "%s: a checkpoint of format %s, this dtrain reads format %s: resume with the one "
                         "that wrote it",
                         path, format, FORMAT);
    if (!safetensors_metadata(file, "checksum"))
        return error_set(error, EXIT_INPUT, "%s: damaged: a checkpoint has a checksum", path);
    return true;
}

static bool check_terms(const struct safetensors *file, const char *path, const struct terms *terms,
                        struct error *error)
{
    for (size_t i = 0; i < TERMS_FIELDS; i++) {
        const struct field *field = &terms_fields[i];
        const char *theirs = safetensors_metadata(file, field->key);
        char ours[VALUE_BYTES];
        print_field(field, terms, ours);
        if (!theirs)
            theirs = field->once;
        if (!theirs)
            return error_set(error, EXIT_INPUT, "%s: damaged: its metadata lacks '%s'", path, field->key);
        if (strcmp(theirs, ours) != 0)
            return error_set(error, EXIT_INPUT,
                             "%s: its run has %s %s, but this one has %s: resume under the same options, or "
                             "choose another --out",
                             path, field->option, theirs, ours);
    }
    return true;
}

static bool read_progress(const struct safetensors *file, const char *path, const struct terms *terms,
                          struct progress *progress, struct error *error)
{
    for (size_t i = 0; i < PROGRESS_FIELDS; i++) {
        const char *text = safetensors_metadata(file, progress_fields[i].key);
        if (!text || !parse_field(&progress_fields[i], text, progress))
            return error_set(error, EXIT_INPUT, "%s: damaged: its metadata '%s' is %s, not a number", path,
                             progress_fields[i].key, text ? text : "missing");
    }
    return progress->in_epoch <= terms->train_count ||
           error_set(error, EXIT_INPUT, "%s: damaged: %" PRIu64 " samples used of an epoch of %" PRIu64,
                     path, progress->in_epoch, terms->train_count);
}

static bool read_checkpoint(const char *path, const struct terms *terms, struct progress *progress,
                            float *weights, float *momentum, struct error *error)
{
    struct safetensors *file = safetensors_open(path, error);
    bool good = file && check_format(file, path, error) && check_terms(file, path, terms, error) &&
                read_progress(file, path, terms, progress, error) &&
                read_tensors(file, "", weights, error) &&
                read_tensors(file, "momentum.", momentum, error);
    safetensors_close(file);
    return good;
}

bool checkpoint_read(const char *directory, const struct terms *terms, struct progress *progress,
                     float *weights, float *momentum, struct error *error)
{
    char path[4096], previous[4096];
    if (!files_path(directory, CURRENT, path, error) || !files_path(directory, PREVIOUS, previous, error))
        return false;
    struct error current_error = {0}, previous_error = {0};
    if (read_checkpoint(path, terms, progress, weights, momentum, &current_error))
        return true;
    if (!read_checkpoint(previous, terms, progress, weights, momentum, &previous_error))
        return error_set(error, current_error.code, "%s", current_error.text);
    return error_set(error, current_error.code,
                     "%s; %s (epoch %" PRIu64 ") is whole: rename it to %s and --resume goes on from there",
                     current_error.text, PREVIOUS, progress->epoch, CURRENT);
}

/* --- weights alone --------------------------------------------------------------------------------- */

bool checkpoint_write_model(const char *path, const float *weights, struct error *error)
{
    struct metadata format = {"format", "pt"};
    struct tensor tensors[LENET5_PARAMETERS];
    char names[LENET5_PARAMETERS][NAME_BYTES];
    list_tensors("", (float *)weights, names, tensors);
    return safetensors_write(path, NULL, tensors, LENET5_PARAMETERS, &format, 1, false, error);
}

bool checkpoint_read_model(const char *path, float *weights, struct error *error)
{
    struct safetensors *file = safetensors_open(path, error);
    bool good = file && read_tensors(file, "", weights, error);
    safetensors_close(file);
    for (int i = 0; i < LENET5_WEIGHTS && good; i++)
        if (!isfinite(weights[i]))
            good = error_set(error, EXIT_INPUT, "%s: weight %d is %g, not a finite number", path, i,
                             (double)weights[i]);
    return good;
}
