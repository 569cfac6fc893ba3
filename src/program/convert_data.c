#include "convert_data.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "beside.h"
#include "cache.h"
#include "dataset.h"
#include "memory.h"

/* Where a directory has one of these, launch/convert-cifar10 is asked: it converts CIFAR-10, and says of CIFAR-100 and
 * parquet why it does not. */
static const char *const marks[] = {"data_batch_1",
                                    "cifar-10-batches-py",
                                    "cifar-10-python.tar.gz",
                                    "cifar-10-binary.tar.gz",
                                    "cifar-100-python",
                                    "cifar-100-binary",
                                    "fine_label_names.txt",
                                    "*.parquet",
                                    "*/*.parquet",
                                    "cifar-100-python.tar.gz",
                                    "meta"};
static const char *const suffixes[] = {".tar.gz", ".tgz", ".parquet"};

static bool matches(const char *directory, const char *pattern)
{
    char path[2 * 4096 + 64];
    size_t length = 0;
    glob_t found;
    bool is_pattern = strchr(pattern, '*') != NULL;
    for (const char *c = directory; *c != '\0' && length < 2 * 4096; c++) {
        if (is_pattern && strchr("*?[\\", *c) != NULL)
            path[length++] = '\\'; /* the directory's name is none */
        path[length++] = *c;
    }
    snprintf(path + length, sizeof path - length, "/%s", pattern);
    if (!is_pattern)
        return access(path, F_OK) == 0;
    bool any = glob(path, GLOB_NOSORT, NULL, &found) == 0;
    if (any)
        globfree(&found);
    return any;
}

bool convert_data_wants(const char *named)
{
    struct stat status;
    if (stat(named, &status) != 0)
        return false;
    if (!S_ISDIR(status.st_mode)) {
        size_t length = strlen(named);
        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
            if (length > strlen(suffixes[i]) && strcmp(named + length - strlen(suffixes[i]), suffixes[i]) == 0)
                return true;
        return false;
    }
    for (int i = 0; i < DATA_FILES; i++)
        if (matches(named, dataset_files[i]))
            return false;
    if (matches(named, "cifar-10-batches-bin")) /* unpacked already, whatever lies beside it */
        return false;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (matches(named, marks[i]))
            return true;
    return false;
}

/* Adds size and time of a file, if it is there, to what names the copy in the cache. A directory's would change with
 * whatever else comes into it. */
static void hash_file(XXH64_state_t *hash, const char *path)
{
    struct stat status;
    if (stat(path, &status) != 0 || S_ISDIR(status.st_mode))
        return;
    int64_t words[3] = {status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
    XXH64_update(hash, words, sizeof words);
}

/* Where the copy lies, or will: told by the source's place, sizes and times. */
static bool name_copy(const char *source, char directory[4096], struct error *error)
{
    static const char *const places[] = {"", "cifar-10-batches-py/"};
    char path[4096 + 64], name[64];
    XXH64_state_t *hash = memory_check(XXH64_createState(), "the hash of a name");
    XXH64_reset(hash, 0);
    XXH64_update(hash, source, strlen(source));
    hash_file(hash, source);
    for (size_t place = 0; place < 2; place++)
        for (int i = 0; i < DATA_FILES; i++) {
            snprintf(path, sizeof path, "%s/%s%.*s", source, places[place], (int)strcspn(dataset_files[i], "."),
                     dataset_files[i]);
            hash_file(hash, path);
        }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        snprintf(path, sizeof path, "%s/%s", source, marks[i]);
        hash_file(hash, path);
    }
    snprintf(name, sizeof name, "cifar-10-%016llx", (unsigned long long)XXH64_digest(hash));
    XXH64_freeState(hash);
    return cache_path(name, directory, error);
}

/* Reads to the end of file; keeps the last line, or what fits of it, without this name before it: Python tells there
 * what it has stumbled over. */
static void read_line(int from, const char *name, char line[900])
{
    char more[900];
    size_t kept = 0;
    bool ended = false;
    ssize_t length;
    while ((length = read(from, more, sizeof more)) > 0 || (length < 0 && errno == EINTR))
        for (ssize_t i = 0; i < length; i++) {
            kept = ended ? 0 : kept;
            ended = more[i] == '\n';
            if (!ended && kept < 899)
                line[kept++] = more[i];
        }
    line[kept] = '\0';
    if (strncmp(line, name, strlen(name)) == 0)
        memmove(line, line + strlen(name), kept - strlen(name) + 1);
}

/* Runs it to its end; its exit code, or -1 where it cannot be started: errno says why. said: the last line it prints,
 * if any, without its name before, or which signal has ended it. */
static int run_script(const char *script, const char *source, const char *directory, char said[900])
{
    int ends[2], status = 0;
    pid_t child;
    posix_spawn_file_actions_t actions;
    char *const words[] = {"python3", (char *)script, (char *)source, (char *)directory, NULL};
    said[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    int reason = posix_spawnp(&child, words[0], &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (reason == 0) {
        read_line(ends[0], "convert-cifar10: ", said);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
    }
    close(ends[0]);
    if (WIFSIGNALED(status))
        snprintf(said, 900, "python3 was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    errno = reason;
    return reason != 0 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_RUNTIME;
}

static bool find_copy(const char *named, char source[PATH_MAX], char directory[4096], struct error *error)
{
    if (realpath(named, source) == NULL)
        return error_set(error, EXIT_INPUT, "%s cannot be read: %s", named, strerror(errno));
    return name_copy(source, directory, error);
}

bool convert_data_find(const char *named, char directory[4096], struct error *error)
{
    char source[PATH_MAX];
    return find_copy(named, source, directory, error);
}

/* Whether a copy is whole, and what it was when it was made. One without a digest, as a new one, gets it. */
static bool check_copy(const char *directory, struct error *error)
{
    struct dataset data;
    uint64_t digest;
    if (!dataset_open(&data, directory, error))
        return false;
    bool good = true;
    if (dataset_read_digest(directory, &digest))
        good = data.hash == digest || error_set(error, EXIT_INPUT, "%s is no longer what it was", directory);
    else
        dataset_write_digest(directory, data.hash); /* where it cannot be written, the copy goes unchecked */
    dataset_close(&data);
    return good;
}

/* Takes a damaged copy, or a link to one, out of the way: another process may have done so. Else errno says why. */
static bool remove_copy(const char *directory)
{
    char aside[4096 + 16];
    snprintf(aside, sizeof aside, "%s.tmp-XXXXXX", directory);
    if (mkdtemp(aside) == NULL)
        return false;
    bool gone = rename(directory, aside) == 0 || errno == ENOENT;
    int reason = errno;
    gone = gone || unlink(directory) == 0; /* a link */
    cache_remove(aside);
    errno = reason;
    return gone;
}

bool convert_data(const char *named, char directory[4096], struct error *error)
{
    struct error ignored = {0};
    char source[PATH_MAX], script[PATH_MAX], said[900];
    if (!find_copy(named, source, directory, error))
        return false;
    cache_remove_abandoned(directory);
    bool was_there = faccessat(AT_FDCWD, directory, F_OK, AT_SYMLINK_NOFOLLOW) == 0; /* also a link to nothing */
    if (was_there && check_copy(directory, &ignored))
        return true;
    if (!beside_find("launch/convert-cifar10", script) || access(script, R_OK) != 0)
        return error_set(error, EXIT_RUNTIME,
                         "%s is to be converted by %s, which is not there: run launch/convert-cifar10 %s DIR, "
                         "then give --data DIR",
                         named, script, named);
    if (was_there && !remove_copy(directory))
        return error_set(error, EXIT_RUNTIME,
                         "%s is damaged or incomplete, and cannot be removed: %s; remove it, or have XDG_CACHE_HOME "
                         "name another place for the cache",
                         directory, strerror(errno));
    int code = run_script(script, source, directory, said);
    if (code < 0)
        return error_set(error, EXIT_RUNTIME, "%s is to be converted by python3, which cannot be started: %s", named,
                         strerror(errno));
    if (code != 0)
        return error_set(error, code == EXIT_INPUT ? EXIT_INPUT : EXIT_RUNTIME, "%s: %s", named, said);
    if (strncmp(said, "note: ", 6) == 0)
        error_note("%s", said + 6);
    if (was_there)
        error_note("%s was damaged or incomplete, and is converted anew", directory);
    return check_copy(directory, error);
}
