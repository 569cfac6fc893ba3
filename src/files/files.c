#include "files.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memory.h"

enum { PATH_BYTES = 4096, SUFFIX_BYTES = 24, MOST_JSON_BYTES = 1 << 20 };
static const char suffix[] = ".tmp-"; /* and the writer's process id */

bool files_path(const char *directory, const char *name, char path[PATH_BYTES], struct error *error)
{
    int length = snprintf(path, PATH_BYTES, "%s/%s", directory, name);
    if (length >= 0 && length < PATH_BYTES - SUFFIX_BYTES)
        return true;
    return error_set(error, EXIT_RUNTIME, "%.40s...: a path of %d bytes, %d is the most that works",
                     directory, length, PATH_BYTES - SUFFIX_BYTES - 1);
}

static void name_temporary(const char *path, char temporary[PATH_BYTES + SUFFIX_BYTES])
{
    snprintf(temporary, PATH_BYTES + SUFFIX_BYTES, "%s%s%ld", path, suffix, (long)getpid());
}

static bool write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = TEMP_FAILURE_RETRY(write(fd, data, bytes));
        if (written < 0)
            return false;
        data += written;
        bytes -= (size_t)written;
    }
    return true;
}

static bool write_aside(const char *temporary, const void *data, size_t bytes)
{
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return false;
    bool done = write_all(fd, data, bytes) && fsync(fd) == 0;
    int reason = errno;
    if (close(fd) != 0 && done)
        return false;
    errno = reason;
    return done;
}

/* The file at `path`, if any, also gets the name `keep`, atomically. */
static bool keep_old(const char *path, const char *keep)
{
    char temporary[PATH_BYTES + SUFFIX_BYTES];
    name_temporary(keep, temporary);
    unlink(temporary);
    if (link(path, temporary) != 0)
        return errno == ENOENT || rename(path, keep) == 0; /* nothing to keep, or no hard links here */
    return rename(temporary, keep) == 0; /* onto a name of the same file: does nothing, a leftover stays */
}

/* Whether `name` is `base`.tmp-DIGITS. */
static bool is_leftover(const char *name, const char *base)
{
    size_t length = strlen(base);
    if (strncmp(name, base, length) != 0 || strncmp(name + length, suffix, sizeof suffix - 1) != 0)
        return false;
    const char *digits = name + length + sizeof suffix - 1;
    return *digits && digits[strspn(digits, "0123456789")] == '\0';
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Makes the renames last, and removes what killed writers left. */
static bool settle_directory(const char *path, const char *keep)
{
    char directory[PATH_BYTES];
    int length = (int)(base_name(path) - path);
    snprintf(directory, sizeof directory, "%.*s.", length, path); /* "runs/D-1/." or "." */
    DIR *entries = opendir(directory);
    if (entries == NULL)
        return false;
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        if (is_leftover(entry->d_name, base_name(path)) ||
            (keep && is_leftover(entry->d_name, base_name(keep))))
            unlinkat(dirfd(entries), entry->d_name, 0);
    bool done = fsync(dirfd(entries)) == 0 || errno == EINVAL; /* EINVAL: cannot be synced here */
    int reason = errno;
    closedir(entries);
    errno = reason;
    return done;
}

bool files_replace(const char *path, const char *keep, const void *data, size_t bytes,
                   struct error *error)
{
    char temporary[PATH_BYTES + SUFFIX_BYTES];
    name_temporary(path, temporary);
    if (write_aside(temporary, data, bytes) && (keep == NULL || keep_old(path, keep)) &&
        rename(temporary, path) == 0 && settle_directory(path, keep))
        return true;
    error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
    unlink(temporary);
    return false;
}

struct cJSON *files_read_json(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return NULL;
    char *text = memory_allocate(MOST_JSON_BYTES, 1, "a JSON file");
    size_t bytes = fread(text, 1, MOST_JSON_BYTES, file);
    fclose(file);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    free(text);
    return json;
}
