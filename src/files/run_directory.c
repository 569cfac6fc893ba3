#include "run_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"

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
    char path[4200], owner[200] = "";
    snprintf(path, sizeof path, "%s/lock", directory->path);
    directory->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (directory->lock < 0)
        return error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s; give another --out", path,
                         strerror(errno));
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(directory->lock, F_OFD_SETLK, &whole) != 0) {
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
        close(directory->lock);
        return error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
    }
    return true;
}

bool run_directory_open(struct run_directory *directory, const char *path, bool resume, struct error *error)
{
    if (strlen(path) > sizeof directory->path - 200)
        return error_set(error, EXIT_USAGE, "--out: the path is longer than %zu bytes",
                         sizeof directory->path - 200);
    strcpy(directory->path, path);
    if (!make_with_parents(path, error) || !take_lock(directory, error))
        return false;
    char run_json[4200];
    snprintf(run_json, sizeof run_json, "%s/run.json", path);
    if (!resume && (access(run_json, F_OK) == 0 || checkpoint_exists(path))) {
        run_directory_close(directory);
        return error_set(error, EXIT_USAGE, "%s holds a run already: --resume goes on with it, another --out starts anew",
                         path);
    }
    return true;
}

bool run_directory_describe(const struct run_directory *directory, const cJSON *json, struct error *error)
{
    char path[4200], partial[4300];
    snprintf(path, sizeof path, "%s/run.json", directory->path);
    snprintf(partial, sizeof partial, "%s.tmp", path);
    char *text = cJSON_Print(json);
    FILE *file = fopen(partial, "w");
    bool written = file != NULL && fputs(text, file) >= 0 && fputc('\n', file) >= 0;
    written = file != NULL && fclose(file) == 0 && written;
    free(text);
    if (!written || rename(partial, path) != 0)
        return error_set(error, EXIT_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
    return true;
}

void run_directory_close(struct run_directory *directory)
{
    close(directory->lock);
}
