#include "cores.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

void cores_open(struct cores *cores)
{
    *cores = (struct cores){0};
    if (sched_getaffinity(0, sizeof cores->all, cores->all) == 0)
        cores->count = CPU_COUNT_S(sizeof cores->all, cores->all);
}

int cores_take(struct cores *cores, int n)
{
    int left = cores->count > 0 ? n % cores->count : -1;
    for (int cpu = 0; cpu < CORE_SETS * CPU_SETSIZE && left >= 0; cpu++) {
        if (!CPU_ISSET_S((size_t)cpu, sizeof cores->all, cores->all) || left-- > 0)
            continue;
        cpu_set_t one[CORE_SETS] = {0};
        CPU_SET_S((size_t)cpu, sizeof one, one);
        if (sched_setaffinity(0, sizeof one, one) != 0)
            return -1;
        CPU_SET_S((size_t)cpu, sizeof cores->taken, cores->taken);
        return cpu;
    }
    return -1;
}

void cores_release(const struct cores *cores)
{
    if (cores->count > 0)
        sched_setaffinity(0, sizeof cores->all, cores->all);
}

int cores_taken(const struct cores *cores, int *first)
{
    int count = CPU_COUNT_S(sizeof cores->taken, cores->taken);
    for (*first = 0; count > 0 && !CPU_ISSET_S((size_t)*first, sizeof cores->taken, cores->taken);)
        ++*first;
    return count;
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
