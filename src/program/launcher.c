#include "launcher.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
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

bool launcher_is_none(void)
{
    return getenv("OMPI_COMM_WORLD_RANK") == NULL && getenv("PMIX_RANK") == NULL && getenv("PMI_RANK") == NULL;
}

void launcher_tell(enum exit_code code)
{
    const char *path = getenv("DTRAIN_EXIT_FILE");
    /* r+: it is there on launch/run's own host, and is not to be left on another */
    FILE *file = path != NULL && *path != '\0' ? fopen(path, "r+") : NULL;
    if (file == NULL)
        return;
    fprintf(file, "%d\n", code);
    fclose(file);
}
