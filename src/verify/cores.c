#include "cores.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

void cores_open(struct cores *cores)
{
    CPU_ZERO(&cores->all);
    cores->count = sched_getaffinity(0, sizeof cores->all, &cores->all) == 0 ? CPU_COUNT(&cores->all) : 0;
}

int cores_take(const struct cores *cores, int n)
{
    int left = cores->count > 0 ? n % cores->count : -1;
    for (int cpu = 0; cpu < CPU_SETSIZE && left >= 0; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &cores->all) || left-- > 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET((size_t)cpu, &one);
        return sched_setaffinity(0, sizeof one, &one) == 0 ? cpu : -1;
    }
    return -1;
}

void cores_release(const struct cores *cores)
{
    if (cores->count > 0)
        sched_setaffinity(0, sizeof cores->all, &cores->all);
}

void cores_model(char *text, size_t bytes)
{
    char line[200];
    struct utsname name = {0};
    uname(&name);
    snprintf(text, bytes, "%s", name.machine);
    FILE *info = fopen("/proc/cpuinfo", "re");
    while (info != NULL && fgets(line, sizeof line, info) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL || colon[1] != ' ')
            continue;
        snprintf(text, bytes, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (info != NULL)
        fclose(info);
}
