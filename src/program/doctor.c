#include "doctor.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

#include "dataset.h"
#include "devices.h"
#include "engine.h"
#include "find_data.h"
#include "gpu.h"
#include "launcher.h"
#include "memory.h"
#include "version.h"

/* What rank 0 learns of each rank. */
struct rank_facts {
    int cores;      /* this process may use */
    int processors; /* of its host */
};

static void row(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void row(const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("%-10s ", name);
    error_print_line(format, arguments);
    putchar('\n');
    va_end(arguments);
}

/* All processors of the host, where it does not tell which. */
static int usable_cores(int processors)
{
    cpu_set_t sets[16]; /* of 1,024 processors each */
    return sched_getaffinity(0, sizeof sets, sets) == 0 ? CPU_COUNT_S(sizeof sets, sets) : processors;
}

static void print_versions(void)
{
    char mpi[100];
    comm_library(mpi, sizeof mpi);
    row("dtrain", "%s, built with %s", version_revision, version_build);
    row("libraries", "%s; cJSON %s; xxHash %u.%u.%u", mpi, cJSON_Version(), XXH_versionNumber() / 10000,
        XXH_versionNumber() / 100 % 100, XXH_versionNumber() % 100);
}

static void print_ranks(const struct comm *world, const struct rank_facts *facts)
{
    int size = comm_size(world);
    const char *launcher = launcher_name();
    row("launcher", "%s", launcher != NULL ? launcher : "none: a single process (launch/run -np N ... for more)");
    row("ranks", "%d on %d host%s", size, comm_host_count(world), comm_host_count(world) == 1 ? "" : "s");
    for (int i = 0; i < size; i++)
        if (comm_first_of_host(world, i) == i) {
            int here = 0;
            for (int j = i; j < size; j++)
                here += comm_first_of_host(world, j) == i;
            row("", "%s: %d rank%s; each may use %d core%s%s", comm_host_name(world, i), here, here == 1 ? "" : "s",
                facts[i].cores, facts[i].cores == 1 ? "" : "s",
                here > facts[i].processors ? "; more ranks than cores: they take turns" : "");
        }
}

/* Says what the GPU part consists of, also where no driver is, and which rank would use which GPU. */
static void print_devices(const struct device *devices, int count)
{
    char text[400];
    const char *paths[GPU_LIBRARIES];
    const struct gpu_part *part = gpu_load_without_driver(text, sizeof text);
    if (part == NULL) {
        row("gpu", "%s", text);
        return;
    }
    part->versions(text, sizeof text);
    row("gpu", "%s", text);
    part->libraries(paths);
    for (int i = 0; i < GPU_LIBRARIES; i++)
        row("", "%s", paths[i]);
    if (gpu_load(text, sizeof text) == NULL)
        return; /* the engine's row says why */
    for (int i = 0; i < count; i++) {
        devices_line(devices, i, text, sizeof text);
        row("", "%s", text);
    }
    devices_advice(devices, count, text, sizeof text);
    if (text[0] != '\0')
        row("", "note: %s", text);
}

static void print_engines(const struct options *options, struct comm *world, enum comm_use *use, struct error *error)
{
    char why[400] = "";
    for (int i = 0; engine_name(i) != NULL; i++) {
        why[0] = '\0';
        bool available = engine_find(i, why, sizeof why) != NULL;
        row("engine", "%s: %s%s%s", engine_name(i), available ? "available" : "not available", *why ? ": " : "", why);
    }
    const struct engine_ops *chosen = engine_choose(options->engine, world, why, sizeof why, error);
    if (chosen == NULL)
        return;
    row("", "--engine %s would choose %s", options->engine, chosen->name);
    *use = engine_comm_use(chosen);
}

/* Collective: opens the transport that a run would choose, of which rank 0 tells. */
static void try_comm(const struct options *options, struct comm *world, enum comm_use use, struct error *error)
{
    struct comm *comm = comm_split(world, 0, options->comm, use, error);
    if (comm == NULL)
        return;
    if (comm_rank(world) == 0)
        row("comm", "--comm %s would choose %s%s%s", options->comm, comm_transport(comm), comm_why(comm)[0] ? ": " : "",
            comm_why(comm));
    comm_close(comm);
}

static void print_data(const struct options *options, struct error *error)
{
    char directory[4096];
    struct data_choice choice;
    struct dataset data;
    if (!find_data_choose(options->data, &choice, error))
        return;
    if (choice.kind == DATA_SYNTHETIC) {
        row("data", "synthetic: %zu + %zu pictures, made in the cache when first used", choice.train, choice.test);
    } else if (choice.kind == DATA_TO_CONVERT) {
        row("data", "%s: not of the binary version; converted into the cache when first used", choice.named);
    } else if (dataset_find(options->data, directory, error) && dataset_open(&data, directory, error)) {
        row("data", "%s: %zu + %zu pictures", data.directory, data.train.count, data.test.count);
        dataset_close(&data);
    }
}

enum exit_code doctor(const struct options *options, struct comm *world)
{
    int processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
    struct rank_facts ours = {usable_cores(processors), processors};
    struct rank_facts *facts = memory_allocate((size_t)comm_size(world), sizeof *facts, "the list of ranks");
    struct error errors[3] = {0};
    bool speaks = comm_rank(world) == 0;
    enum comm_use use = COMM_FOR_CPU;
    struct device *devices = memory_allocate((size_t)comm_size(world), sizeof *devices, "the list of GPUs");
    comm_gather(world, &ours, sizeof ours, facts);
    devices_gather(world, devices);
    if (speaks) {
        print_versions();
        print_ranks(world, facts);
        print_devices(devices, comm_size(world));
        print_engines(options, world, &use, &errors[0]);
    }
    comm_broadcast(world, &use, sizeof use, 0);
    try_comm(options, world, use, &errors[1]);
    if (speaks) {
        comm_away(world);
        print_data(options, &errors[2]);
        comm_back(world);
    }
    free(devices);
    free(facts);

    enum exit_code code = EXIT_DONE;
    for (int i = 0; i < 3 && speaks; i++) {
        if (errors[i].code != EXIT_DONE)
            row("PROBLEM", "%s", errors[i].text);
        if (code == EXIT_DONE)
            code = errors[i].code;
    }
    comm_broadcast(world, &code, sizeof code, 0);
    return code;
}
