#include "files.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

enum { MOST_PATH_BYTES = 4000, MOST_JSON_BYTES = 16 << 20 };
static const char suffix[] = ".tmp-"; /* and the writer's process id */

/* --- folders ----------------------------------------------------------------------------------------- */

bool folder_open(struct folder *folder, const char *path, struct error *error)
{
    *folder = (struct folder){.descriptor = -1, .lock = -1}; /* which folder_close takes */
    size_t length = strlen(path);
    if (length > MOST_PATH_BYTES)
        return error_set(error, EXIT_RUNTIME, "%.40s...: a path of %zu bytes, %d is the most that works", path, length,
                         MOST_PATH_BYTES);
    memcpy(folder->path, path, length + 1);
    folder->descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return folder->descriptor >= 0 ||
           error_set(error, EXIT_RUNTIME, "%s: cannot be opened: %s; give another --out", path, strerror(errno));
}

void folder_close(struct folder *folder)
{
    if (folder->lock >= 0)
        close(folder->lock);
    if (folder->descriptor >= 0)
        close(folder->descriptor);
    folder->lock = folder->descriptor = -1;
}

/* Whether the name, in directory `at`, is surely not what `descriptor` is open on. */
static bool is_another(int at, const char *name, int flags, int descriptor)
{
    struct stat named, opened;
    if (fstatat(at, name, &named, flags) != 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ESTALE;
    return fstat(descriptor, &opened) == 0 && (named.st_ino != opened.st_ino || named.st_dev != opened.st_dev);
}

bool folder_is_ours(const struct folder *folder, struct error *error)
{
    if (folder->lock < 0)
        return true;
    if (is_another(AT_FDCWD, folder->path, 0, folder->descriptor))
        return error_set(
            error, EXIT_RUNTIME,
            "%s was removed, moved or replaced while the run used it: the run ends, and leaves alone what is "
            "there now; where the directory was moved to, --resume goes on",
            folder->path);
    if (is_another(folder->descriptor, "lock", AT_SYMLINK_NOFOLLOW, folder->lock))
        return error_set(
            error, EXIT_RUNTIME,
            "%s/lock was removed or replaced while the run held it: the run ends, as another one may be there; "
            "if there is none, --resume goes on from the last checkpoint",
            folder->path);
    return true;
}

int folder_open_file(const struct folder *folder, const char *name, int flags, struct error *error)
{
    struct stat status;
    int file = openat(folder->descriptor, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    if (file >= 0 && fstat(file, &status) == 0 && S_ISREG(status.st_mode))
        return file;
    if (file >= 0 || errno == ELOOP || errno == ENXIO)
        error_set(error, EXIT_RUNTIME,
                  "%s/%s is %s: dtrain writes regular files only; remove it, or give another --out", folder->path, name,
                  file < 0 && errno == ELOOP ? "a symbolic link" : "no regular file");
    else
        error_set(error, EXIT_RUNTIME, "%s/%s: cannot be written: %s; give another --out", folder->path, name,
                  strerror(errno));
    if (file >= 0)
        close(file);
    return -1;
}

DIR *folder_list(const struct folder *folder)
{
    int directory = openat(folder->descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = directory >= 0 ? fdopendir(directory) : NULL;
    if (entries == NULL && directory >= 0)
        close(directory);
    return entries;
}

bool folder_cannot_sync(int reason)
{
    return reason == EINVAL || reason == ENOSYS || reason == EOPNOTSUPP;
}

/* --- files that are complete or absent ----------------------------------------------------------------- */

/* NAME.tmp-PID; cut off where that is too long, as for none of a run's names. */
static void name_aside(const char *name, char aside[NAME_MAX + 1])
{
    snprintf(aside, NAME_MAX + 1, "%s%s%ld", name, suffix, (long)getpid());
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

/* A new file, whatever has the name: a process of the same number left it, or others put a link there, which O_EXCL
 * does not follow. */
static int create_anew(const struct folder *folder, const char *name)
{
    enum { FLAGS = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC };
    int file = openat(folder->descriptor, name, FLAGS, 0666);
    if (file < 0 && errno == EEXIST && unlinkat(folder->descriptor, name, 0) == 0)
        file = openat(folder->descriptor, name, FLAGS, 0666);
    return file;
}

static bool write_aside(const struct folder *folder, const char *name, const void *data, size_t bytes)
{
    int file = create_anew(folder, name);
    if (file < 0)
        return false;
    bool done = write_all(file, data, bytes) && (fsync(file) == 0 || folder_cannot_sync(errno));
    int reason = errno;
    if (close(file) != 0 && done)
        return false;
    errno = reason;
    return done;
}

/* The file `name`, if any, also gets the name `keep`, atomically. */
static bool keep_old(const struct folder *folder, const char *name, const char *keep)
{
    int at = folder->descriptor;
    char aside[NAME_MAX + 1];
    name_aside(keep, aside);
    unlinkat(at, aside, 0);
    if (linkat(at, name, at, aside, 0) != 0) /* nothing to keep, or no hard links here */
        return renameat(at, name, at, keep) == 0 || errno == ENOENT;
    return renameat(at, aside, at, keep) == 0; /* onto a name of the same file: does nothing, a leftover stays */
}

/* Whether `entry` is `name`.tmp-DIGITS. */
bool folder_is_leftover(const char *entry, const char *name)
{
    size_t length = strlen(name);
    if (strncmp(entry, name, length) != 0 || strncmp(entry + length, suffix, sizeof suffix - 1) != 0)
        return false;
    const char *digits = entry + length + sizeof suffix - 1;
    return *digits && digits[strspn(digits, "0123456789")] == '\0';
}

/* Syncs the directory, so that the renames outlast a crash, and removes what killed writers have left. */
static bool settle(const struct folder *folder, const char *name, const char *keep)
{
    DIR *entries = folder_list(folder);
    if (entries == NULL)
        return false;
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        if (folder_is_leftover(entry->d_name, name) || (keep != NULL && folder_is_leftover(entry->d_name, keep)))
            unlinkat(dirfd(entries), entry->d_name, 0);
    bool done = fsync(dirfd(entries)) == 0 || folder_cannot_sync(errno);
    int reason = errno;
    closedir(entries);
    errno = reason;
    return done;
}

bool folder_replace(const struct folder *folder, const char *name, const char *keep, const void *data, size_t bytes,
                    struct error *error)
{
    int at = folder->descriptor;
    char aside[NAME_MAX + 1];
    name_aside(name, aside);
    const char *failed = name;
    if (write_aside(folder, aside, data, bytes) && folder_is_ours(folder, error)) {
        if (keep != NULL && !keep_old(folder, name, keep))
            failed = keep;
        else if (renameat(at, aside, at, name) == 0 && settle(folder, name, keep))
            return true;
    }
    int reason = errno;
    if (folder_is_ours(folder, error))
        error_set(error, EXIT_RUNTIME, "%s/%s: cannot be written: %s", folder->path, failed, strerror(reason));
    unlinkat(at, aside, 0);
    return false;
}

/* --- reading ------------------------------------------------------------------------------------------- */

cJSON *folder_read_json(const struct folder *folder, const char *name)
{
    struct stat status;
    char *text = memory_allocate(MOST_JSON_BYTES, 1, "a JSON file");
    size_t bytes = 0;
    ssize_t got;
    int file = openat(folder->descriptor, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO must not block */
    if (file >= 0 && fstat(file, &status) == 0 && S_ISREG(status.st_mode))
        while ((got = TEMP_FAILURE_RETRY(read(file, text + bytes, MOST_JSON_BYTES - bytes))) > 0)
            bytes += (size_t)got;
    if (file >= 0)
        close(file);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    free(text);
    if (cJSON_IsObject(json))
        return json;
    cJSON_Delete(json);
    return NULL;
}
