#include "nccl_log.h"

#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *const settings[] = {"NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"};
enum { SETTINGS = sizeof settings / sizeof *settings, KINDS = 8, KIND_BYTES = 40, RING_BYTES = 100, LINE_BYTES = 2000 };

/* Global, as the environment is. */
static int descriptor = -1;
static char path_of_log[40];

/* Whether a file of NCCL's settings, NAME=VALUE each, has one whose name begins so. */
static bool file_sets(const char *path, const char *beginning)
{
    char line[LINE_BYTES];
    bool found = false;
    FILE *file = fopen(path, "r");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL)
        found = strncmp(line, beginning, strlen(beginning)) == 0;
    if (file != NULL)
        fclose(file);
    return found;
}

bool nccl_log_user_sets(const char *beginning)
{
    char path[4096] = "";
    const char *given = getenv("NCCL_CONF_FILE");
    const struct passwd *user = getpwuid(getuid());
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, beginning, strlen(beginning)) == 0)
            return true;
    if (given != NULL && *given != '\0')
        snprintf(path, sizeof path, "%s", given);
    else if (user != NULL)
        snprintf(path, sizeof path, "%s/.nccl.conf", user->pw_dir);
    return file_sets(path, beginning) || file_sets("/etc/nccl.conf", beginning);
}

void nccl_log_open(void)
{
    if (nccl_log_user_sets(settings[0])) /* with which the names of the others begin */
        return;
    descriptor = memfd_create("nccl", MFD_CLOEXEC);
    if (descriptor < 0)
        return;
    snprintf(path_of_log, sizeof path_of_log, "/proc/self/fd/%d", descriptor);
    const char *const values[SETTINGS] = {"INFO", "INIT", path_of_log};
    for (int i = 0; i < SETTINGS; i++)
        setenv(settings[i], values[i], 1);
}

bool nccl_log_has_set(const char *setting)
{
    size_t length = strcspn(setting, "=");
    for (int i = 0; i < SETTINGS; i++)
        if (descriptor >= 0 && strlen(settings[i]) == length && strncmp(setting, settings[i], length) == 0)
            return true;
    return false;
}

struct summary {
    int rings;
    char first[RING_BYTES];
    struct kind {
        char name[KIND_BYTES];
        int count;
    } kinds[KINDS];
};

/* "... Channel 00/1 : 0[0] -> 1[1] [send] via NET/Socket/0" */
static void take_connection(struct summary *summary, const char *name)
{
    int length = (int)strcspn(name, " \n");
    for (int i = 0; i < KINDS; i++) {
        struct kind *kind = &summary->kinds[i];
        if (kind->count == 0)
            snprintf(kind->name, sizeof kind->name, "%.*s", length, name);
        if (strncmp(kind->name, name, (size_t)length) == 0 && kind->name[length] == '\0') {
            kind->count++;
            return;
        }
    }
}

/* "... Channel 00/24 :   0   1   2   3" */
static void take_ring(struct summary *summary, const char *ranks)
{
    char *end;
    if (summary->rings++ > 0)
        return;
    size_t used = 0;
    for (long rank = strtol(ranks, &end, 10); end != ranks && used < RING_BYTES - 1; rank = strtol(ranks, &end, 10)) {
        used += (size_t)snprintf(summary->first + used, RING_BYTES - used, " %ld", rank);
        ranks = end;
    }
}

static void take_line(struct summary *summary, const char *line)
{
    const char *channel = strstr(line, "NCCL INFO Channel "), *via = strstr(line, " via ");
    const char *colon = channel != NULL ? strstr(channel, " : ") : NULL;
    if (colon != NULL && via != NULL)
        take_connection(summary, via + strlen(" via "));
    else if (colon != NULL)
        take_ring(summary, colon + strlen(" : "));
}

/* The log has a position of its own, which NCCL moves; this reads from the beginning. */
static void read_log(struct summary *summary)
{
    char line[LINE_BYTES];
    FILE *file = fopen(path_of_log, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        take_line(summary, line);
    if (file != NULL)
        fclose(file);
}

void nccl_log_summarise(char *text, size_t bytes)
{
    struct summary summary = {0};
    text[0] = '\0';
    if (descriptor < 0)
        return;
    read_log(&summary);
    if (summary.rings == 0 && summary.kinds[0].count == 0)
        return;
    size_t used = (size_t)snprintf(text, bytes, "%d ring%s, the first%s", summary.rings, summary.rings == 1 ? "" : "s",
                                   summary.first);
    for (int i = 0; i < KINDS && summary.kinds[i].count > 0 && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s %d x %s", i == 0 ? ";" : ",", summary.kinds[i].count,
                                 summary.kinds[i].name);
}
