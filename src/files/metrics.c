#include "metrics.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "memory.h"
#include "tensorboard.h"

struct metrics {
    char path[4096];
    FILE *stream;
    struct tensorboard *board;
};

/* Whether a line is whole and of an epoch up to `epochs_done`. */
static bool is_kept(const char *line, size_t length, uint64_t epochs_done)
{
    const char *end;
    cJSON *json = cJSON_ParseWithLengthOpts(line, length, &end, false);
    const cJSON *epoch = cJSON_GetObjectItemCaseSensitive(json, "epoch");
    bool kept = end == line + length - 1 && *end == '\n' && cJSON_IsNumber(epoch) &&
                epoch->valuedouble >= 1 && epoch->valuedouble <= (double)epochs_done;
    cJSON_Delete(json);
    return kept;
}

/* Cuts the file behind its last line to keep. */
static bool cut_lines(FILE *stream, uint64_t epochs_done)
{
    char *line = NULL;
    size_t capacity = 0;
    off_t kept_bytes = 0;
    ssize_t length;
    while ((length = getline(&line, &capacity, stream)) > 0 && is_kept(line, (size_t)length, epochs_done))
        kept_bytes += length;
    bool end = length > 0 || feof(stream); /* if not, there was no reading on, or no memory */
    free(line);
    return end && ftruncate(fileno(stream), kept_bytes) == 0 &&
           fseeko(stream, 0, SEEK_END) == 0; /* between reading and writing a stream must seek */
}

struct metrics *metrics_open(const char *directory, uint64_t epochs_done, struct error *error)
{
    struct metrics *metrics = memory_allocate(1, sizeof *metrics, "the metrics");
    if (files_path(directory, "metrics.jsonl", metrics->path, error)) {
        metrics->stream = fopen(metrics->path, "a+e");
        if (metrics->stream == NULL || !cut_lines(metrics->stream, epochs_done))
            error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", metrics->path, strerror(errno));
        else if ((metrics->board = tensorboard_open(directory, epochs_done + 1, error)))
            return metrics;
    }
    metrics_close(metrics);
    return NULL;
}

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
    if (!write_line(metrics->stream, epoch))
        return error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", metrics->path, strerror(errno));
    return tensorboard_write(metrics->board, epoch->epoch, scalars, epoch->checked ? 6 : 3, error);
}

void metrics_close(struct metrics *metrics)
{
    if (metrics == NULL)
        return;
    tensorboard_close(metrics->board);
    if (metrics->stream)
        fclose(metrics->stream);
    free(metrics);
}
