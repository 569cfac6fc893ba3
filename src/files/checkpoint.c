#include "checkpoint.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "safetensors.h"

static const char CURRENT[] = "checkpoint.safetensors";
static const char PREVIOUS[] = "checkpoint-previous.safetensors";
static const char BEST[] = "model-best.safetensors", BEST_KEY[] = "test_accuracy";
static const char FORMAT_KEY[] = "dtrain-checkpoint", FORMAT[] = "1";

/* Progress as text, for the file's metadata. */
enum kind { COUNT, WIDE, NUMBER };
struct field {
    const char *key;
    enum kind kind;
    size_t offset; /* in struct progress */
};

static const struct field progress_fields[] = {
    {"epoch", COUNT, offsetof(struct progress, epoch)},
    {"step", COUNT, offsetof(struct progress, step)},
    {"in_epoch", COUNT, offsetof(struct progress, in_epoch)},
    {"loss", WIDE, offsetof(struct progress, loss)},
    {"seconds", NUMBER, offsetof(struct progress, seconds)},
    {"epoch_seconds", NUMBER, offsetof(struct progress, epoch_seconds)},
    {"best_train", NUMBER, offsetof(struct progress, best_train)},
    {"best_test", NUMBER, offsetof(struct progress, best_test)},
};
enum {
    PROGRESS_FIELDS = sizeof progress_fields / sizeof *progress_fields,
    ENTRIES = 1 + MOST_TERMS + PROGRESS_FIELDS,
    NAME_BYTES = 32,
    TENSORS = 2 * LENET5_PARAMETERS,
};

/* --- numbers as text, exactly ---------------------------------------------------------------------- */

static void print_wide(exact_wide value, char text[VALUE_BYTES])
{
    char reversed[VALUE_BYTES];
    size_t count = 0, length = 0;
    bool negative = value < 0;
    do {
        int digit = (int)(value % 10);
        reversed[count++] = (char)('0' + (negative ? -digit : digit));
        value /= 10;
    } while (value != 0 && count < VALUE_BYTES - 2);
    if (negative)
        text[length++] = '-';
    while (count > 0)
        text[length++] = reversed[--count];
    text[length] = '\0';
}

/* Reads what print_wide prints. Any other text becomes a number that it prints otherwise, which parse_field notices. */
static exact_wide parse_wide(const char *text)
{
    exact_wide value = 0;
    bool negative = *text == '-';
    for (const char *digit = text + negative; isdigit((unsigned char)*digit) && digit - text < VALUE_BYTES - 1; digit++)
        value = 10 * value + (negative ? '0' - *digit : *digit - '0');
    return value;
}

static void print_field(const struct field *field, const struct progress *progress, char text[VALUE_BYTES])
{
    const void *value = (const char *)progress + field->offset;
    switch (field->kind) {
    case COUNT:
        snprintf(text, VALUE_BYTES, "%" PRIu64, *(const uint64_t *)value);
        break;
    case WIDE:
        print_wide(*(const exact_wide *)value, text);
        break;
    case NUMBER:
        run_print_number(*(const double *)value, text);
        break;
    }
}

/* Accepts only what print_field prints, and only finite numbers. */
static bool parse_field(const struct field *field, const char *text, struct progress *progress)
{
    void *value = (char *)progress + field->offset;
    switch (field->kind) {
    case COUNT:
        *(uint64_t *)value = strtoull(text, NULL, 10);
        break;
    case WIDE:
        *(exact_wide *)value = parse_wide(text);
        break;
    case NUMBER:
        *(double *)value = strtod(text, NULL);
        break;
    }
    char canonical[VALUE_BYTES];
    print_field(field, progress, canonical);
    return strcmp(text, canonical) == 0 && (field->kind != NUMBER || isfinite(*(double *)value));
}

/* --- tensors --------------------------------------------------------------------------------------- */

/* The ten tensors over `values` (LENET5_WEIGHTS), their names behind `prefix`. */
static void list_tensors(const char *prefix, float *values, char names[][NAME_BYTES], struct tensor *tensors)
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

static bool read_tensors(const struct safetensors *file, const char *prefix, float *values, struct error *error)
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

/* Returns how many there are. */
static size_t list_terms(const struct terms *terms, struct metadata *metadata)
{
    for (int i = 0; i < terms->count; i++)
        metadata[i] = (struct metadata){terms->list[i].key, terms->list[i].value};
    return (size_t)terms->count;
}

bool checkpoint_write(const struct folder *folder, const struct terms *terms, const struct progress *progress,
                      const float *weights, const float *velocity, struct error *error)
{
    struct metadata metadata[ENTRIES] = {{FORMAT_KEY, FORMAT}};
    char values[PROGRESS_FIELDS][VALUE_BYTES];
    size_t n = 1;
    n += list_terms(terms, metadata + n);
    for (size_t i = 0; i < PROGRESS_FIELDS; i++) {
        print_field(&progress_fields[i], progress, values[i]);
        metadata[n++] = (struct metadata){progress_fields[i].key, values[i]};
    }

    struct tensor tensors[TENSORS];
    char names[TENSORS][NAME_BYTES];
    list_tensors("", (float *)weights, names, tensors); /* writing only reads them */
    list_tensors("momentum.", (float *)velocity, names + LENET5_PARAMETERS, tensors + LENET5_PARAMETERS);
    return safetensors_write(folder, CURRENT, PREVIOUS, tensors, TENSORS, metadata, n, error);
}

static bool exists(const struct folder *folder, const char *name)
{
    return faccessat(folder->descriptor, name, F_OK, 0) == 0;
}

bool checkpoint_exists(const struct folder *folder)
{
    return exists(folder, CURRENT) || exists(folder, PREVIOUS);
}

bool checkpoint_has_best(const struct folder *folder)
{
    struct stat status;
    return fstatat(folder->descriptor, BEST, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode);
}

static bool check_format(const struct safetensors *file, struct error *error)
{
    const char *path = safetensors_path(file);
    const char *format = safetensors_metadata(file, FORMAT_KEY);
    if (format == NULL)
        return error_set(error, EXIT_INPUT, "%s: not a checkpoint of dtrain: its metadata has no '%s'", path,
                         FORMAT_KEY);
    if (strcmp(format, FORMAT) != 0)
        return error_set(error, EXIT_INPUT,
                         "%s: a checkpoint of format %s, this dtrain reads format %s: resume with the one "
                         "that wrote it",
                         path, format, FORMAT);
    if (safetensors_metadata(file, "checksum") == NULL)
        return error_set(error, EXIT_INPUT, "%s: damaged: a checkpoint has a checksum", path);
    return true;
}

/* The step of a checkpoint that is whole, of whatever run. */
static bool find_step(const struct folder *folder, const char *name, uint64_t *step)
{
    struct error ignored = {0};
    struct safetensors *file = safetensors_open_in(folder, name, &ignored);
    const char *text = NULL;
    if (file != NULL && check_format(file, &ignored))
        text = safetensors_metadata(file, "step");
    *step = text != NULL ? strtoull(text, NULL, 10) : 0;
    safetensors_close(file);
    return text != NULL;
}

void checkpoint_recover(const struct folder *folder)
{
    char best[256] = "";
    uint64_t furthest = 0, step;
    if (exists(folder, CURRENT))
        return;
    bool found = find_step(folder, PREVIOUS, &furthest);
    DIR *entries = folder_list(folder);
    for (struct dirent *entry; entries != NULL && (entry = readdir(entries)) != NULL;) {
        if (!folder_is_leftover(entry->d_name, CURRENT) || !find_step(folder, entry->d_name, &step))
            continue;
        if (found && step <= furthest)
            continue;
        furthest = step;
        found = true;
        snprintf(best, sizeof best, "%s", entry->d_name);
    }
    if (entries != NULL)
        closedir(entries);
    if (best[0] != '\0' && renameat(folder->descriptor, best, folder->descriptor, CURRENT) == 0)
        error_note("%s/%s is not there: %s, left by a write that was interrupted, is whole and takes its place",
                   folder->path, CURRENT, best);
}

static bool check_terms(const struct safetensors *file, const struct terms *terms, struct error *error)
{
    const char *path = safetensors_path(file);
    for (int i = 0; i < terms->count; i++) {
        const struct term *term = &terms->list[i];
        const char *theirs = safetensors_metadata(file, term->key);
        if (theirs == NULL)
            theirs = term->absent;
        if (theirs == NULL)
            return error_set(error, EXIT_INPUT, "%s: damaged: its metadata lacks '%s'", path, term->key);
        if (strcmp(theirs, term->value) != 0)
            return error_set(error, EXIT_INPUT,
                             "%s: its run has --%s %s, but this one has %s: resume under the same options, or choose "
                             "another --out, and --init-from this file to begin with its weights",
                             path, term->option, theirs, term->value);
    }
    return true;
}

static bool read_progress(const struct safetensors *file, size_t samples, struct progress *progress,
                          struct error *error)
{
    const char *path = safetensors_path(file);
    for (size_t i = 0; i < PROGRESS_FIELDS; i++) {
        const char *text = safetensors_metadata(file, progress_fields[i].key);
        if (text == NULL || !parse_field(&progress_fields[i], text, progress))
            return error_set(error, EXIT_INPUT, "%s: damaged: its metadata '%s' is %s, not a number", path,
                             progress_fields[i].key, text != NULL ? text : "missing");
    }
    return progress->in_epoch <= samples ||
           error_set(error, EXIT_INPUT, "%s: damaged: %" PRIu64 " samples used of an epoch of %zu", path,
                     progress->in_epoch, samples);
}

static bool read_checkpoint(const struct folder *folder, const char *name, const struct terms *terms, size_t samples,
                            struct progress *progress, float *weights, float *velocity, struct error *error)
{
    struct safetensors *file = safetensors_open_in(folder, name, error);
    bool good = file != NULL && check_format(file, error) && check_terms(file, terms, error) &&
                read_progress(file, samples, progress, error) && read_tensors(file, "", weights, error) &&
                read_tensors(file, "momentum.", velocity, error);
    safetensors_close(file);
    return good;
}

/* What this user may not read is no damage. */
static bool may_be_read(const struct folder *folder, const char *name)
{
    return faccessat(folder->descriptor, name, R_OK, AT_EACCESS) == 0;
}

/* Whether there is something of that name, which cannot be read, or is not what its checksum says. */
static bool is_damaged(const struct folder *folder, const char *name)
{
    struct safetensors *file = safetensors_open_in(folder, name, &(struct error){0});
    bool opened = file != NULL;
    safetensors_close(file);
    return !opened && may_be_read(folder, name);
}

/* Says what is left to do where no checkpoint can be read. */
static bool fail_without(const struct folder *folder, const char *cause, const char *other, struct error *error)
{
    bool best = checkpoint_has_best(folder);
    return error_set(error, EXIT_INPUT, "%s%s%s%s: start anew with another --out%s%s%s%s", cause, *other ? "; " : "",
                     other, *other ? " is damaged, too" : "", best ? " and --init-from " : "", best ? folder->path : "",
                     best ? "/" : "", best ? BEST : "");
}

bool checkpoint_read(const struct folder *folder, const struct terms *terms, size_t samples, struct progress *progress,
                     float *weights, float *velocity, struct error *error)
{
    struct error current_error = {0}, previous_error = {0};
    if (read_checkpoint(folder, CURRENT, terms, samples, progress, weights, velocity, &current_error))
        return true;
    bool gone = !exists(folder, CURRENT);
    if (!gone && !may_be_read(folder, CURRENT)) /* it may be whole */
        return error_set(error, current_error.code, "%s", current_error.text);
    if (!read_checkpoint(folder, PREVIOUS, terms, samples, progress, weights, velocity, &previous_error)) {
        const struct error *cause = gone ? &previous_error : &current_error;
        bool has_previous = !gone && exists(folder, PREVIOUS);
        if (is_damaged(folder, gone ? PREVIOUS : CURRENT) && (!has_previous || is_damaged(folder, PREVIOUS)))
            return fail_without(folder, cause->text, has_previous ? PREVIOUS : "", error);
        return error_set(error, cause->code, "%s", cause->text);
    }
    if (gone) {
        error_note("%s/%s is not there: the run goes on from %s (epoch %" PRIu64 ")", folder->path, CURRENT, PREVIOUS,
                   progress->epoch);
        return true;
    }
    return error_set(error, current_error.code,
                     "%s; %s (epoch %" PRIu64 ") is whole: rename it to %s and --resume goes on from there",
                     current_error.text, PREVIOUS, progress->epoch, CURRENT);
}

/* --- weights alone --------------------------------------------------------------------------------- */

bool checkpoint_write_best(const struct folder *folder, const struct terms *terms, const struct progress *progress,
                           const float *weights, struct error *error)
{
    struct metadata metadata[2 + MOST_TERMS] = {{"format", "pt"}};
    char accuracy[VALUE_BYTES];
    size_t n = 1;
    run_print_number(progress->best_test, accuracy);
    metadata[n++] = (struct metadata){BEST_KEY, accuracy};
    n += list_terms(terms, metadata + n);
    struct tensor tensors[LENET5_PARAMETERS];
    char names[LENET5_PARAMETERS][NAME_BYTES];
    list_tensors("", (float *)weights, names, tensors);
    return safetensors_write(folder, BEST, NULL, tensors, LENET5_PARAMETERS, metadata, n, error);
}

bool checkpoint_check_best(const struct folder *folder, const struct terms *terms, struct progress *progress,
                           bool *has_checksum, struct error *error)
{
    float weights[LENET5_WEIGHTS];
    struct safetensors *file = safetensors_open_in(folder, BEST, error);
    bool good = file != NULL && read_tensors(file, "", weights, error);
    *has_checksum = good && safetensors_metadata(file, "checksum") != NULL;
    if (*has_checksum) {
        const char *text = safetensors_metadata(file, BEST_KEY);
        double accuracy = text != NULL ? strtod(text, NULL) : (double)NAN;
        good = check_terms(file, terms, error) &&
               (accuracy >= progress->best_test ||
                error_set(error, EXIT_INPUT, "%s: of a check with %s%%, where the run's best has %.2f%%",
                          safetensors_path(file), text != NULL ? text : "unknown", progress->best_test));
        if (good)
            progress->best_test = accuracy;
    }
    safetensors_close(file);
    return good;
}

/* What PyTorch's wrappers put before each name: DistributedDataParallel, torch.compile, or one within the other. */
static const char *find_prefix(const struct safetensors *file)
{
    static const char *const prefixes[] = {"module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."};
    char name[NAME_BYTES];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        snprintf(name, sizeof name, "%s%s", prefixes[i], lenet5_parameters[0].name);
        if (!safetensors_has(file, lenet5_parameters[0].name) && safetensors_has(file, name))
            return prefixes[i];
    }
    return "";
}

bool checkpoint_read_model(const char *path, float *weights, struct error *error)
{
    struct safetensors *file = safetensors_open(path, error);
    bool good = file != NULL && read_tensors(file, find_prefix(file), weights, error);
    safetensors_close(file);
    for (int i = 0; i < LENET5_WEIGHTS && good; i++)
        if (!isfinite(weights[i]))
            good = error_set(error, EXIT_INPUT, "%s: weight %d is %g, not a finite number", path, i,
                             (double)weights[i]);
    return good;
}
