#include "metrics.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "memory.h"
#include "tensorboard.h"

static const char NAME[] = "metrics.jsonl";

struct metrics {
    const struct folder *folder;
    FILE *stream;
    struct tensorboard *board;
};

/* --- what a resumed run keeps ---------------------------------------------------------------------------- */

enum line { EPOCH, LATER_EPOCH, TORN, FOREIGN };

/* Zeros, which some file systems leave after a crash, or how a line of ours begins. */
static bool is_torn(const char *line, size_t length)
{
    static const char start[] = "{\"epoch\":";
    size_t common = length < sizeof start - 1 ? length : sizeof start - 1;
    return line[0] == '\0' || memcmp(line, start, common) == 0;
}

/* A note of the user's may have an epoch; ours also has a step and a loss, which is null where it is not finite. */
static enum line judge(const char *line, size_t length, uint64_t epochs_done, double *last)
{
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(line, length, &end, false);
    const cJSON *epoch = cJSON_GetObjectItemCaseSensitive(json, "epoch");
    bool ours = cJSON_IsNumber(epoch) && epoch->valuedouble >= 1 &&
                cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(json, "step")) && cJSON_HasObjectItem(json, "loss");
    bool later = ours && epoch->valuedouble > (double)epochs_done;
    bool whole = json != NULL;
    if (ours && !later)
        *last = fmax(*last, epoch->valuedouble);
    cJSON_Delete(json);
    while (whole && end < line + length && isspace((unsigned char)*end))
        end++;
    whole = whole && end == line + length;
    if (ours && whole)
        return later ? LATER_EPOCH : EPOCH;
    return !whole && line[length - 1] != '\n' && is_torn(line, length) ? TORN : FOREIGN;
}

/* The lines to keep of a stream, in memory, and what was met on the way. */
struct kept {
    char *text; /* to be freed */
    size_t bytes;
    bool whole;                  /* all were read */
    bool is_start;               /* of the file, which need only be cut behind it */
    double last;                 /* epoch of those before the end, 0: none */
    long foreign, first_foreign; /* lines that are not dtrain's: how many, and the number of the first */
};

static struct kept read_lines(FILE *stream, uint64_t epochs_done)
{
    struct kept kept = {.is_start = true};
    char *line = NULL;
    size_t capacity = 0, reached = 0;
    ssize_t got;
    FILE *text = memory_check(open_memstream(&kept.text, &kept.bytes), "the metrics");
    for (long number = 1; (got = getline(&line, &capacity, stream)) > 0; number++) {
        size_t length = (size_t)got;
        enum line kind = judge(line, length, epochs_done, &kept.last);
        bool dropped = kind == LATER_EPOCH || kind == TORN, ended = line[length - 1] == '\n';
        if (kind == FOREIGN && kept.foreign++ == 0)
            kept.first_foreign = number;
        if (!dropped) {
            kept.is_start = kept.is_start && ended && (size_t)ftello(text) == reached;
            fwrite(line, 1, length, text);
            fputs(ended ? "" : "\n", text);
        }
        reached += length;
    }
    free(line);
    kept.whole = feof(stream); /* if not, reading has failed */
    if (fclose(text) != 0)
        memory_check(NULL, "the metrics");
    return kept;
}

static bool open_stream(struct metrics *metrics, struct error *error)
{
    int file = folder_open_file(metrics->folder, NAME, O_RDWR | O_APPEND | O_CREAT, error);
    metrics->stream = file >= 0 ? fdopen(file, "a+") : NULL;
    return metrics->stream != NULL ||
           error_set(error, EXIT_RUNTIME, "%s/%s: cannot be written: %s", metrics->folder->path, NAME, strerror(errno));
}

/* Takes out the lines of epochs that will be done again, and a torn one at the end; nothing else. */
static bool cut_lines(struct metrics *metrics, uint64_t epochs_done, struct error *error)
{
    const char *path = metrics->folder->path;
    struct kept kept = read_lines(metrics->stream, epochs_done);
    bool good = kept.whole;
    if (!good) {
        error_set(error, EXIT_RUNTIME, "%s/%s: cannot be read: %s", path, NAME, strerror(errno));
    } else if (kept.is_start) { /* between reading and writing a stream must seek */
        good = (ftruncate(fileno(metrics->stream), (off_t)kept.bytes) == 0 &&
                fseeko(metrics->stream, 0, SEEK_END) == 0) ||
               error_set(error, EXIT_RUNTIME, "%s/%s: cannot be written: %s", path, NAME, strerror(errno));
    } else {
        fclose(metrics->stream);
        metrics->stream = NULL;
        good = folder_replace(metrics->folder, NAME, NULL, kept.text, kept.bytes, error) && open_stream(metrics, error);
    }
    if (good && kept.foreign > 0)
        error_note("%s/%s: lines that are not dtrain's are kept: %ld, from line %ld on", path, NAME, kept.foreign,
                   kept.first_foreign);
    if (good && kept.last < (double)epochs_done && epochs_done != UINT64_MAX)
        error_note("%s/%s lacks epochs %.0f to %" PRIu64 ", which the checkpoint has", path, NAME, kept.last + 1,
                   epochs_done);
    free(kept.text);
    return good;
}

struct metrics *metrics_open(const struct folder *folder, uint64_t epochs_done, struct error *error)
{
    struct metrics *metrics = memory_allocate(1, sizeof *metrics, "the metrics");
    metrics->folder = folder;
    if (open_stream(metrics, error) && cut_lines(metrics, epochs_done, error) &&
        (metrics->board = tensorboard_open(folder, epochs_done + 1, error)) != NULL)
        return metrics;
    metrics_close(metrics);
    return NULL;
}

double metrics_last_epoch(const struct folder *folder)
{
    int file = openat(folder->descriptor, NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0)
        return 0;
    FILE *stream = memory_check(fdopen(file, "r"), "the metrics");
    struct kept kept = read_lines(stream, UINT64_MAX);
    fclose(stream);
    free(kept.text);
    return kept.last;
}

/* --- writing --------------------------------------------------------------------------------------------- */

/* JSON has no infinity and no NaN. */
static void put_number(FILE *stream, const char *key, double value)
{
    if (isfinite(value))
        fprintf(stream, ",\"%s\":%.9g", key, value);
    else
        fprintf(stream, ",\"%s\":null", key);
}

static bool write_line(FILE *stream, const struct epoch_metrics *epoch)
{
    fprintf(stream, "{\"epoch\":%" PRIu64 ",\"step\":%" PRIu64, epoch->epoch, epoch->step);
    put_number(stream, "loss", epoch->loss);
    put_number(stream, "lr", epoch->learning_rate);
    put_number(stream, "seconds", epoch->seconds);
    put_number(stream, "images_per_second", epoch->images_per_second);
    if (epoch->checked) {
        put_number(stream, "train_accuracy", epoch->train_accuracy);
        put_number(stream, "test_accuracy", epoch->test_accuracy);
        put_number(stream, "test_loss", epoch->test_loss);
    }
    fprintf(stream, "}\n");
    return fflush(stream) == 0 && !ferror(stream);
}

void metrics_sync(struct metrics *metrics)
{
    if (metrics->stream != NULL)
        fdatasync(fileno(metrics->stream)); /* what failed has been told when it was written */
}

static bool is_in_place(const struct metrics *metrics)
{
    struct stat ours, there;
    return fstatat(metrics->folder->descriptor, NAME, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           fstat(fileno(metrics->stream), &ours) == 0 && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
}

/* Where the file was removed, or an editor has put another in its place, what is written would be lost: the lines are
 * put there again, also in the place of a link, or those to come appended to what is there. */
static bool stay_in_place(struct metrics *metrics, struct error *error)
{
    const struct folder *folder = metrics->folder;
    bool good = true;
    if (is_in_place(metrics))
        return true;
    struct stat there;
    bool is_there = fstatat(folder->descriptor, NAME, &there, AT_SYMLINK_NOFOLLOW) == 0;
    if (is_there ? !S_ISREG(there.st_mode) : errno == ENOENT) {
        rewind(metrics->stream);
        struct kept kept = read_lines(metrics->stream, UINT64_MAX);
        good = kept.whole
                   ? folder_replace(folder, NAME, NULL, kept.text, kept.bytes, error)
                   : error_set(error, EXIT_RUNTIME, "%s/%s: cannot be read: %s", folder->path, NAME, strerror(errno));
        free(kept.text);
    }
    fclose(metrics->stream);
    metrics->stream = NULL;
    good = good && open_stream(metrics, error) && cut_lines(metrics, UINT64_MAX, error);
    if (good)
        error_note("%s/%s was removed or replaced while the run used it, which goes on with it", folder->path, NAME);
    return good;
}

bool metrics_write(struct metrics *metrics, const struct epoch_metrics *epoch, struct error *error)
{
    const struct scalar scalars[] = {
        {"train/loss", epoch->loss},
        {"train/learning_rate", epoch->learning_rate},
        {"train/images_per_second", epoch->images_per_second},
        {"check/train_accuracy", epoch->train_accuracy},
        {"check/test_accuracy", epoch->test_accuracy},
        {"check/test_loss", epoch->test_loss},
    };
    enum { OF_EVERY_EPOCH = 3, ALL = sizeof scalars / sizeof *scalars }; /* the others are of a check */
    if (!folder_is_ours(metrics->folder, error) || !stay_in_place(metrics, error))
        return false;
    if (!write_line(metrics->stream, epoch))
        return error_set(error, EXIT_RUNTIME, "%s/%s: cannot be written: %s", metrics->folder->path, NAME,
                         strerror(errno));
    return tensorboard_write(metrics->board, epoch->epoch, scalars, epoch->checked ? ALL : OF_EVERY_EPOCH, error);
}

void metrics_close(struct metrics *metrics)
{
    if (metrics == NULL)
        return;
    tensorboard_close(metrics->board);
    if (metrics->stream != NULL)
        fclose(metrics->stream);
    free(metrics);
}
