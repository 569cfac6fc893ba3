#include "cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const time_t ABANDONED_SECONDS = 86400;

bool cache_path(const char *name, char path[4096], struct error *error)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length;
    if (xdg != NULL && xdg[0] == '/')
        length = snprintf(path, 4096, "%s/dtrain/%s", xdg, name);
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, 4096, "%s/.cache/dtrain/%s", home, name);
    else
        return error_set(error, EXIT_RUNTIME,
                         "no cache directory: neither XDG_CACHE_HOME nor HOME is set to an absolute path");
    if (length >= 4096)
        return error_set(error, EXIT_RUNTIME,
                         "the cache directory's path is too long: set XDG_CACHE_HOME "
                         "to a path of less than 4,000 bytes");
    return true;
}

int cache_make_parents(const char *path)
{
    char parent[4096];
    int reason = 0;
    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
        int made = mkdir(parent, 0700); /* 0700: as the XDG Base Directory Specification asks */
        if (made != 0 && errno != EEXIST && reason == 0)
            reason = errno;
    }
    return reason;
}

void cache_remove(const char *path)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = directory >= 0 ? fdopendir(directory) : NULL;
    for (struct dirent *entry; entries != NULL && (entry = readdir(entries)) != NULL;)
        unlinkat(directory, entry->d_name, 0);
    if (entries != NULL)
        closedir(entries);
    if (rmdir(path) != 0)
        unlink(path);
}

void cache_remove_abandoned(const char *directory)
{
    char parent[4096], path[4096 + 256];
    struct stat status;
    const char *base = strrchr(directory, '/') + 1;
    snprintf(parent, sizeof parent, "%.*s", (int)(base - directory), directory);
    DIR *entries = opendir(parent);
    for (struct dirent *entry; entries != NULL && (entry = readdir(entries)) != NULL;) {
        size_t length = strlen(base);
        if (strncmp(entry->d_name, base, length) != 0 || strncmp(entry->d_name + length, ".tmp-", 5) != 0)
            continue;
        snprintf(path, sizeof path, "%s%s", parent, entry->d_name);
        if (lstat(path, &status) == 0 && S_ISDIR(status.st_mode) && time(NULL) - status.st_mtime > ABANDONED_SECONDS)
            cache_remove(path);
    }
    if (entries != NULL)
        closedir(entries);
}
