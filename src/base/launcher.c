#include "launcher.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

void launcher_mend_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int launcher_size(void)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (size == NULL)
        size = getenv("PMI_SIZE");
    return size != NULL && launcher_rank() != NULL ? atoi(size) : 0;
}

const char *launcher_name(void)
{
    if (launcher_rank() == NULL)
        return NULL;
    if (getenv("OMPI_COMM_WORLD_RANK") != NULL)
        return "mpirun";
    return getenv("MPI_LOCALRANKID") != NULL ? "mpiexec (Hydra)" : "srun";
}

/* Whether the process is one of Hydra's, named *_proxy, between the ranks, whose output it passes on, and the launcher.
 * *parent: who started it. */
static bool is_proxy(pid_t process, pid_t *parent)
{
    char path[64], name[64] = "", state;
    int above = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)process);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    bool read = fscanf(file, "%*d (%63[^)]) %c %d", name, &state, &above) == 3;
    fclose(file);
    *parent = above;
    size_t length = strlen(name);
    return read && length > 6 && strcmp(name + length - 6, "_proxy") == 0;
}

/* Open MPI gives every rank a terminal of its own and copies what it prints, so isatty says yes even into a
 * pipe; Hydra gives it a pipe. What counts is the standard output of the launcher, an ancestor, or what
 * launch/run says of its own. */
const char *launcher_terminal(void)
{
    static char terminal[64];
    const char *told = getenv("DTRAIN_TERMINAL");
    if (told != NULL)
        return told;
    char link[64];
    pid_t process = launcher_rank() != NULL ? getppid() : getpid(), parent;
    while (is_proxy(process, &parent))
        process = parent;
    snprintf(link, sizeof link, "/proc/%ld/fd/1", (long)process);
    ssize_t length = readlink(link, terminal, sizeof terminal - 1);
    terminal[length > 0 ? length : 0] = '\0';
    return strncmp(terminal, "/dev/pts/", 9) == 0 || strncmp(terminal, "/dev/tty", 8) == 0 ? terminal : NULL;
}

/* Writes the line into the file that this variable names. launch/run has made it, on its own host; on another host
 * there is none, and none is made. */
static void leave_line(const char *variable, const char *line)
{
    const char *path = getenv(variable);
    FILE *file = path != NULL && *path != '\0' ? fopen(path, "r+") : NULL;
    if (file == NULL)
        return;
    fprintf(file, "%s\n", line);
    fclose(file);
}

void launcher_begin(void)
{
    const char *mark = getenv("DTRAIN_MARK");
    if (mark != NULL)
        fprintf(stderr, "%s\n", mark);
    leave_line("DTRAIN_BEGUN_FILE", "begun");
}

bool launcher_renames_signals(void)
{
    return getenv("DTRAIN_MARK") != NULL;
}

void launcher_tell(enum exit_code code)
{
    char line[20];
    snprintf(line, sizeof line, "%d", code);
    leave_line("DTRAIN_EXIT_FILE", line);
}
