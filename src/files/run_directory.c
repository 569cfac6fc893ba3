#include "run_directory.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lenet5.h"
#include "memory.h"

static const char RUN_JSON[] = "run.json";
#define PROCESS "process " /* what a run's lock begins with */

/* Any of them tells that a run was here. */
static const char *const files_of_a_run[] = {RUN_JSON, "checkpoint.safetensors", "checkpoint-previous.safetensors",
                                             "metrics.jsonl", "model-best.safetensors"};
enum { FILES_OF_A_RUN = sizeof files_of_a_run / sizeof *files_of_a_run };

static bool make_with_parents(const char *path, struct error *error)
{
    char partial[4096];
    snprintf(partial, sizeof partial, "%s", path);
    for (char *slash = partial + 1;; slash++) {
        slash = strchr(slash, '/');
        if (slash != NULL)
            *slash = '\0';
        if (access(partial, F_OK) != 0 && mkdir(partial, 0777) != 0 && errno != EEXIST)
            return error_set(error, EXIT_RUNTIME, "%s: cannot be made: %s; give another --out", partial,
                             strerror(errno));
        if (slash == NULL)
            return true;
        *slash = '/';
    }
}

static bool is_unsupported(int reason)
{
    return reason == ENOLCK || reason == ENOSYS || reason == EOPNOTSUPP;
}

/* Who holds the lock writes its name into the file, for the message another run prints, but not over what no run has
 * written. *no_locks: why there are none, or NULL. */
static bool take_lock(struct folder *folder, const char **no_locks, struct error *error)
{
    char owner[200] = "", host[100] = "";
    folder->lock = folder_open_file(folder, "lock", O_RDWR | O_CREAT, error);
    if (folder->lock < 0)
        return false;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    bool locked = fcntl(folder->lock, F_OFD_SETLK, &whole) == 0;
    *no_locks = !locked && is_unsupported(errno) ? strerror(errno) : NULL;
    if (!locked && *no_locks == NULL && errno != EAGAIN && errno != EACCES)
        return error_set(error, EXIT_RUNTIME, "%s/lock: cannot be locked: %s; give an --out on another file system",
                         folder->path, strerror(errno));
    ssize_t length = read(folder->lock, owner, sizeof owner - 1);
    owner[length > 0 ? length : 0] = '\0';
    if (!locked && *no_locks == NULL)
        return error_set(error, EXIT_USAGE, "%s is in use by another run (%s); give another --out, or wait for it",
                         folder->path, owner);
    if (owner[0] != '\0' && strncmp(owner, PROCESS, sizeof PROCESS - 1) != 0)
        return error_set(error, EXIT_USAGE,
                         "%s/lock is no run's, whose lock would replace it: move it away, or give another --out",
                         folder->path);
    gethostname(host, sizeof host - 1);
    length = snprintf(owner, sizeof owner, PROCESS "%ld on %s", (long)getpid(), host);
    return (ftruncate(folder->lock, 0) == 0 && pwrite(folder->lock, owner, (size_t)length, 0) == length) ||
           error_set(error, EXIT_RUNTIME, "%s/lock: cannot be written: %s", folder->path, strerror(errno));
}

/* One line about what the file system lacks of that which keeps files safe. */
static void tell_of_lacks(const struct folder *folder, const char *no_locks)
{
    char text[500], probe[40];
    int length = 0, at = folder->descriptor;
    if (no_locks != NULL)
        length += snprintf(text, sizeof text, " locks (%s): nothing keeps a second run out of it;", no_locks);
    snprintf(probe, sizeof probe, "lock.tmp-%ld", (long)getpid());
    unlinkat(at, probe, 0);
    if (linkat(at, "lock", at, probe, 0) != 0 && (is_unsupported(errno) || errno == EPERM))
        length += snprintf(text + length, sizeof text - (size_t)length,
                           " hard links (%s): a crash while saving may leave checkpoint-previous.safetensors alone;",
                           strerror(errno));
    unlinkat(at, probe, 0);
    if (fsync(at) != 0 && folder_cannot_sync(errno))
        length += snprintf(text + length, sizeof text - (size_t)length,
                           " syncing of directories (%s): a power cut may undo the newest checkpoint;",
                           strerror(errno));
    if (length > 0)
        error_note("the file system of %s has no%.*s", folder->path, length - 1, text);
}

static const char *find_run(const struct folder *folder)
{
    for (int i = 0; i < FILES_OF_A_RUN; i++)
        if (faccessat(folder->descriptor, files_of_a_run[i], F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            return files_of_a_run[i];
    return NULL;
}

static bool is_of_seeds(const char *entry)
{
    return strncmp(entry, "seed", 4) == 0;
}

/* Whether a study names directories so: A to D, seed1. */
static bool is_of_a_study(const char *entry)
{
    if (is_of_seeds(entry))
        return entry[4] != '\0' && entry[4 + strspn(entry + 4, "0123456789")] == '\0';
    return entry[0] >= 'A' && entry[0] < 'A' + NETS && entry[1] == '\0';
}

/* Finds a directory of a study's that holds a run, so many levels below. */
static bool find_study(const struct folder *folder, int levels, char found[NAME_MAX + 1])
{
    char inner[NAME_MAX + 1];
    bool holds = false;
    DIR *entries = folder_list(folder);
    for (struct dirent *entry; entries != NULL && !holds && (entry = readdir(entries)) != NULL;) {
        if (!is_of_a_study(entry->d_name))
            continue;
        struct folder below = {.lock = -1};
        below.descriptor = openat(dirfd(entries), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        holds = below.descriptor >= 0 &&
                (find_run(&below) != NULL || (levels > 1 && find_study(&below, levels - 1, inner)));
        snprintf(found, NAME_MAX + 1, "%s", entry->d_name);
        folder_close(&below);
    }
    if (entries != NULL)
        closedir(entries);
    return holds;
}

bool run_directory_admits_study(const char *path, const char *below, struct error *error)
{
    struct folder folder;
    char other[NAME_MAX + 1];
    if (!folder_open(&folder, path, &(struct error){0}))
        return true; /* there is none yet, or what is wrong with it is said when those in it are made */
    const char *found = find_run(&folder);
    bool is_other = find_study(&folder, 2, other) && is_of_seeds(other) != is_of_seeds(below);
    folder_close(&folder);
    if (found != NULL)
        return error_set(error, EXIT_USAGE,
                         "%s holds a run of its own (%s): several nets or seeds need a directory without one, give "
                         "another --out",
                         path, found);
    return !is_other ||
           error_set(error, EXIT_USAGE, "%s holds a study of %s (%s/), not of %s: give another --out", path,
                     is_of_seeds(other) ? "seeds" : "nets", other, is_of_seeds(below) ? "seeds" : "nets");
}

static bool admits_run(const struct folder *folder, struct error *error)
{
    char found[NAME_MAX + 1];
    return !find_study(folder, 2, found) ||
           error_set(error, EXIT_USAGE,
                     "%s holds a study (%s/): a single run needs a directory of its own, give "
                     "another --out",
                     folder->path, found);
}

bool run_directory_open(struct folder *folder, const char *path, bool resume, struct error *error)
{
    const char *no_locks, *found;
    *folder = (struct folder){.descriptor = -1, .lock = -1};
    if (!make_with_parents(path, error) || !folder_open(folder, path, error) || !admits_run(folder, error) ||
        !take_lock(folder, &no_locks, error)) {
        folder_close(folder);
        return false;
    }
    if (!resume && (found = find_run(folder)) != NULL) {
        folder_close(folder);
        return error_set(error, EXIT_USAGE,
                         "%s holds a run already (%s): --resume goes on with it, another --out starts anew", path,
                         found);
    }
    tell_of_lacks(folder, no_locks);
    return true;
}

static bool is_left_of_a_run(const char *entry)
{
    bool left = folder_is_leftover(entry, "lock");
    for (int i = 0; i < FILES_OF_A_RUN && !left; i++)
        left = folder_is_leftover(entry, files_of_a_run[i]);
    return left;
}

void run_directory_tidy(const struct folder *folder)
{
    DIR *entries = folder_list(folder);
    for (struct dirent *entry; entries != NULL && (entry = readdir(entries)) != NULL;)
        if (is_left_of_a_run(entry->d_name) && unlinkat(folder->descriptor, entry->d_name, 0) == 0)
            error_note("%s/%s, left by a write that was interrupted, is removed", folder->path, entry->d_name);
    if (entries != NULL)
        closedir(entries);
}

/* Under the first name that is free: run-damaged.json, run-damaged-2.json and so on. */
static void keep_damaged(const struct folder *folder)
{
    char name[40] = "run-damaged.json";
    for (int n = 2; faccessat(folder->descriptor, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0; n++)
        snprintf(name, sizeof name, "run-damaged-%d.json", n);
    if (renameat(folder->descriptor, RUN_JSON, folder->descriptor, name) == 0)
        error_note("%s/%s cannot be read as JSON: kept as %s", folder->path, RUN_JSON, name);
}

cJSON *run_directory_read(const struct folder *folder)
{
    cJSON *json = folder_read_json(folder, RUN_JSON);
    if (json == NULL && faccessat(folder->descriptor, RUN_JSON, F_OK, 0) == 0)
        keep_damaged(folder);
    return json;
}

/* Of the character that the text begins with; 0: it is not UTF-8. */
static size_t character_bytes(const char *text)
{
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *c = (const unsigned char *)text;
    size_t bytes = *c < 0x80 ? 1 : *c >> 5 == 6 ? 2 : *c >> 4 == 14 ? 3 : *c >> 3 == 30 ? 4 : 0;
    unsigned code = bytes > 1 ? *c & 0x7fu >> bytes : *c;
    for (size_t i = 1; i < bytes; i++) {
        if (c[i] >> 6 != 2)
            return 0;
        code = code << 6 | (c[i] & 0x3fu);
    }
    return code >= least[bytes] && code <= 0x10ffff && code >> 11 != 0x1b /* a half of a pair */ ? bytes : 0;
}

cJSON *run_directory_text(const char *text)
{
    char *copy = memory_allocate(strlen(text) + 1, 1, "a text for run.json");
    strcpy(copy, text);
    for (char *c = copy; *c != '\0';) {
        size_t bytes = character_bytes(c);
        if (bytes == 0)
            *c = '?';
        c += bytes > 0 ? bytes : 1;
    }
    cJSON *json = cJSON_CreateString(copy);
    free(copy);
    return json;
}

bool run_directory_write(const struct folder *folder, const cJSON *json, struct error *error)
{
    char *text = cJSON_Print(json);
    size_t length = strlen(text);
    text[length] = '\n'; /* in the place of its end */
    bool done = folder_replace(folder, RUN_JSON, NULL, text, length + 1, error);
    free(text);
    return done;
}
