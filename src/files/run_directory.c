#include "run_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"
#include "files.h"

static bool make_with_parents(const char *path, struct error *error)
{
    char partial[4096];
    snprintf(partial, sizeof partial, "%s", path);
    for (char *slash = partial + 1;; slash++) {
        slash = strchr(slash, '/');
        if (slash != NULL)
            *slash = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST)
            return error_set(error, EXIT_RUNTIME, "%s: cannot be made: %s; give another --out", partial,
                             strerror(errno));
        if (slash == NULL)
            return true;
        *slash = '/';
    }
}

/* Who holds the lock writes its name into the file, for the message another run prints. */
static bool take_lock(struct run_directory *directory, struct error *error)
{
    char path[4096], owner[200] = "";
    if (!files_path(directory->path, "lock", path, error))
        return false;
    directory->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (directory->lock < 0)
        return error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s; give another --out", path,
                         strerror(errno));
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    bool locked = fcntl(directory->lock, F_OFD_SETLK, &whole) == 0;
    if (!locked && (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP)) {
        fprintf(stderr, "dtrain: note: the file system of %s has no locks (%s): nothing keeps a second run out of it\n",
                directory->path, strerror(errno));
        locked = true;
    }
    if (!locked && errno != EAGAIN && errno != EACCES) {
        error_set(error, EXIT_RUNTIME, "%s: cannot be locked: %s; give an --out on another file system", path,
                  strerror(errno));
        close(directory->lock);
        return false;
    }
    if (!locked) {
        ssize_t length = read(directory->lock, owner, sizeof owner - 1);
        owner[length > 0 ? length : 0] = '\0';
        close(directory->lock);
        return error_set(error, EXIT_USAGE, "%s is in use by another run (%s); give another --out, or wait for it",
                         directory->path, owner);
    }
    char host[100] = "";
    gethostname(host, sizeof host - 1);
    int length = snprintf(owner, sizeof owner, "process %ld on %s", (long)getpid(), host);
    if (ftruncate(directory->lock, 0) != 0 || pwrite(directory->lock, owner, (size_t)length, 0) != length) {
        error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
        close(directory->lock);
        return false;
    }
    return true;
}

bool run_directory_open(struct run_directory *directory, const char *path, bool resume, struct error *error)
{
    char run_json[4096];
    if (!files_path(path, "run.json", run_json, error))
        return false;
    snprintf(directory->path, sizeof directory->path, "%s", path);
    if (!make_with_parents(path, error) || !take_lock(directory, error))
        return false;
    if (!resume && (access(run_json, F_OK) == 0 || checkpoint_exists(path))) {
        run_directory_close(directory);
        return error_set(error, EXIT_USAGE, "%s holds a run already: --resume goes on with it, another --out starts anew",
                         path);
    }
    return true;
}

cJSON *run_directory_read(const struct run_directory *directory)
{
    char path[4096];
    struct error none = {0};
    return files_path(directory->path, "run.json", path, &none) ? files_read_json(path) : NULL;
}

bool run_directory_write(const struct run_directory *directory, const cJSON *json, struct error *error)
{
    char path[4096], *text = cJSON_Print(json);
    bool done = files_path(directory->path, "run.json", path, error) &&
                files_replace(path, NULL, text, strlen(text), error);
    free(text);
    return done;
}

void run_directory_close(struct run_directory *directory)
{
    close(directory->lock);
}
