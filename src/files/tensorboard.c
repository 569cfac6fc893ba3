#include "tensorboard.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "memory.h"

struct tensorboard {
    char path[4400]; /* for messages */
    FILE *stream;
};

/* --- protocol buffers: a message is a run of (field << 3 | wire type, value) ------------------------- */

enum wire { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

enum event_field { WALL_TIME = 1, STEP = 2, FILE_VERSION = 3, SUMMARY = 5, SESSION_LOG = 7 };
enum summary_field { VALUE = 1 }; /* repeated */
enum value_field { TAG = 1, SIMPLE_VALUE = 2 };
enum session_log_field { STATUS = 1 };
enum session_status { START = 1 };

/* What does not fit is counted, not stored: write_record refuses such a message. */
struct message {
    size_t count;
    uint8_t bytes[4000];
};

static void put_raw(struct message *message, const void *data, size_t count)
{
    if (message->count + count <= sizeof message->bytes)
        memcpy(message->bytes + message->count, data, count);
    message->count += count;
}

static void put_varint(struct message *message, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        put_raw(message, &(uint8_t){(uint8_t)(value | 0x80)}, 1);
    put_raw(message, &(uint8_t){(uint8_t)value}, 1);
}

static void put_key(struct message *message, int field, enum wire wire)
{
    put_varint(message, (uint64_t)field << 3 | wire);
}

static void put_bytes(struct message *message, int field, const void *data, size_t count)
{
    put_key(message, field, BYTES);
    put_varint(message, count);
    put_raw(message, data, count);
}

static struct message start_event(void)
{
    struct message event = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    put_key(&event, WALL_TIME, FIXED64);
    put_raw(&event, &seconds, sizeof seconds);
    return event;
}

/* --- records ------------------------------------------------------------------------------------------ */

static uint32_t crc32c(const void *data, size_t count)
{
    const uint8_t *bytes = data;
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* As TFRecord wants it: rotated and shifted, so that the crc of data that holds crcs stays useful. */
static uint32_t masked_crc32c(const void *data, size_t count)
{
    uint32_t crc = crc32c(data, count);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static bool write_record(struct tensorboard *board, const struct message *event, struct error *error)
{
    if (event->count > sizeof event->bytes)
        return error_set(error, EXIT_RUNTIME, "%s: an event of %zu bytes, %zu is the most", board->path, event->count,
                         sizeof event->bytes);
    uint64_t length = event->count;
    uint32_t length_crc = masked_crc32c(&length, sizeof length);
    uint32_t data_crc = masked_crc32c(event->bytes, event->count);
    fwrite(&length, sizeof length, 1, board->stream);
    fwrite(&length_crc, sizeof length_crc, 1, board->stream);
    fwrite(event->bytes, 1, event->count, board->stream);
    fwrite(&data_crc, sizeof data_crc, 1, board->stream);
    return (fflush(board->stream) == 0 && !ferror(board->stream)) ||
           error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", board->path, strerror(errno));
}

/* --- the file ----------------------------------------------------------------------------------------- */

/* The time, or one second behind the newest file in the directory: another host's clock may be ahead. */
static long long time_behind_all(const struct folder *folder)
{
    long long now = (long long)time(NULL), other;
    DIR *listing = folder_list(folder);
    for (const struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;)
        if (sscanf(entry->d_name, "events.out.tfevents.%lld.", &other) == 1 && other >= now)
            now = other + 1;
    if (listing != NULL)
        closedir(listing);
    return now;
}

/* A name that no other file has, and that sorts behind older ones: TensorBoard reads them in this order. */
static FILE *create_file(const struct folder *folder, char path[4400], struct error *error)
{
    char host[65] = "", name[200];
    long long now = time_behind_all(folder);
    gethostname(host, sizeof host - 1);
    for (int n = 0;; n++) {
        snprintf(name, sizeof name, "events.out.tfevents.%010lld.%s.%07ld.%d", now, host, (long)getpid(), n);
        snprintf(path, 4400, "%s/%s", folder->path, name);
        int file = openat(folder->descriptor, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        FILE *stream = file >= 0 ? fdopen(file, "wb") : NULL;
        if (stream == NULL && errno == EEXIST)
            continue;
        if (stream == NULL)
            error_set(error, EXIT_RUNTIME, "%s: cannot be made: %s", path, strerror(errno));
        return stream;
    }
}

static bool write_start(struct tensorboard *board, uint64_t first_step, struct error *error)
{
    static const char version[] = "brain.Event:2";
    struct message event = start_event();
    put_bytes(&event, FILE_VERSION, version, sizeof version - 1);
    if (!write_record(board, &event, error))
        return false;

    struct message session = {0};
    put_key(&session, STATUS, VARINT);
    put_varint(&session, START);
    event = start_event();
    put_key(&event, STEP, VARINT);
    put_varint(&event, first_step);
    put_bytes(&event, SESSION_LOG, session.bytes, session.count);
    return write_record(board, &event, error);
}

struct tensorboard *tensorboard_open(const struct folder *folder, uint64_t first_step, struct error *error)
{
    struct tensorboard *board = memory_allocate(1, sizeof *board, "TensorBoard's file");
    board->stream = create_file(folder, board->path, error);
    if (board->stream != NULL && write_start(board, first_step, error))
        return board;
    tensorboard_close(board);
    return NULL;
}

bool tensorboard_write(struct tensorboard *board, uint64_t step, const struct scalar *scalars, int count,
                       struct error *error)
{
    struct message summary = {0};
    for (int i = 0; i < count; i++) {
        struct message value = {0};
        float simple_value = (float)scalars[i].value;
        put_bytes(&value, TAG, scalars[i].tag, strlen(scalars[i].tag));
        put_key(&value, SIMPLE_VALUE, FIXED32);
        put_raw(&value, &simple_value, sizeof simple_value);
        put_bytes(&summary, VALUE, value.bytes, value.count);
    }
    struct message event = start_event();
    put_key(&event, STEP, VARINT);
    put_varint(&event, step);
    put_bytes(&event, SUMMARY, summary.bytes, summary.count);
    return write_record(board, &event, error);
}

void tensorboard_close(struct tensorboard *board)
{
    if (board == NULL)
        return;
    if (board->stream != NULL)
        fclose(board->stream);
    free(board);
}
