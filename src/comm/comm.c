#include "comm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "halving.h"
#include "memory.h"
#include "transport.h"

static const double SLOW_SECONDS = 60; /* added to the timeout: 64 ranks on an overloaded machine took 120 to start */

/* Fills in who shares a host with whom. Expects rank, size and host_names. */
static void learn_hosts(struct comm *comm)
{
    int *here = memory_allocate((size_t)comm->size, sizeof *here, "the ranks of a host"); /* at its first rank */
    comm->first_ranks = memory_allocate((size_t)comm->size, sizeof *comm->first_ranks, "the ranks of a host");
    for (int i = 0; i < comm->size; i++) {
        int first = 0;
        while (strcmp(comm->host_names[first], comm->host_names[i]) != 0)
            first++;
        comm->first_ranks[i] = first;
        if (i == comm->rank)
            comm->host_rank = here[first];
        here[first]++;
    }
    comm->host_size = here[comm->first_ranks[comm->rank]];
    comm->slices = comm->size;
    for (int i = 0; i < comm->size; i++) {
        comm->host_count += here[i] > 0;
        if (here[i] > 0 && here[i] < comm->slices)
            comm->slices = here[i];
    }
    free(here);
}

/* Fills in which rank is on which host. Expects mpi, rank, size and watch. */
static void learn_group(struct comm *comm)
{
    size_t size = (size_t)comm->size;
    int *world_ranks = memory_allocate(size, sizeof *world_ranks, "the ranks of a group");
    int *ranks = memory_allocate(size, sizeof *ranks, "the ranks of a group");
    for (int i = 0; i < comm->size; i++)
        ranks[i] = i;
    MPI_Group ours, all;
    MPI_CHECK(MPI_Comm_group(comm->mpi, &ours));
    MPI_CHECK(MPI_Comm_group(MPI_COMM_WORLD, &all));
    MPI_CHECK(MPI_Group_translate_ranks(ours, comm->size, ranks, all, world_ranks));
    MPI_CHECK(MPI_Group_free(&ours));
    MPI_CHECK(MPI_Group_free(&all));
    free(ranks);

    char name[MPI_MAX_PROCESSOR_NAME] = "";
    int length;
    MPI_CHECK(MPI_Get_processor_name(name, &length));
    comm->host_names = memory_allocate(size, sizeof *comm->host_names, "the names of the hosts");
    snprintf(comm->host_names[comm->rank], sizeof *comm->host_names, "%.63s", name);
    const char **hosts = memory_allocate(size, sizeof *hosts, "the names of the hosts");
    for (int i = 0; i < comm->size; i++)
        hosts[i] = comm->host_names[i];
    comm->group = (struct watch_group){comm->size, world_ranks, hosts, NULL};

    comm_combine(comm, comm->host_names, comm->size * (int)sizeof *comm->host_names, MPI_BYTE, MPI_BOR,
                 "the host names");
    learn_hosts(comm);
}

static struct comm *open_group(MPI_Comm mpi, struct watch *watch, struct guard *guard)
{
    struct comm *comm = memory_allocate(1, sizeof *comm, "a group of ranks");
    comm->mpi = mpi;
    comm->watch = watch;
    comm->guard = guard;
    comm->transport = &transport_mpi;
    comm->outbox.request = MPI_REQUEST_NULL;
    comm->slice_peers = MPI_COMM_NULL;
    MPI_CHECK(MPI_Comm_rank(mpi, &comm->rank));
    MPI_CHECK(MPI_Comm_size(mpi, &comm->size));
    learn_group(comm);
    if (comm->host_count > 1)
        comm->slice_peers = comm_split_mpi(comm, comm->host_rank < comm->slices ? comm->host_rank : MPI_UNDEFINED);
    return comm;
}

/* For a process that no launcher started, Open MPI 4 starts a daemon, which a process needs to spawn others; where it
 * finds no ssh to start it with, it ends the process. dtrain spawns none, so this tells Open MPI that the process stays
 * alone. It has no effect under a launcher. */
static void want_no_daemon(void)
{
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0); /* the user's own setting stays */
}

/* Nets that share a GPU have a thread each, of which one at a time runs, and calls MPI (turns.h). All ranks run the
 * same library and get the same level of threads, so rank 0 alone prints the message and ends the job.
 *
 * Errors of MPI come back to MPI_CHECK: on the world's copies and parts, which inherit that, and on the world, by which
 * Open MPI judges what a non-blocking collective of any of them ends with. */
static struct guard *start_mpi(double timeout_seconds)
{
    int threads, rank;
    want_no_daemon();
    transport_prepare();
    struct guard *guard = guard_open(timeout_seconds);
    guard_begin(guard, "starting MPI", SLOW_SECONDS + timeout_seconds);
    MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &threads));
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    if (threads < MPI_THREAD_SERIALIZED && rank == 0)
        abort_job(MPI_COMM_WORLD, EXIT_RUNTIME,
                  "this MPI lets only the main thread call it (level %d of MPI_Init_thread), where dtrain needs "
                  "MPI_THREAD_SERIALIZED (%d): install one that is built with threads",
                  threads, MPI_THREAD_SERIALIZED);
    return guard;
}

struct comm *comm_open_world(double timeout_seconds)
{
    MPI_Comm mpi;
    struct guard *guard = start_mpi(timeout_seconds);
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &mpi));
    struct watch *watch = watch_open(MPI_COMM_WORLD, SLOW_SECONDS + timeout_seconds);
    guard_begin(guard, "starting MPI", HUGE_VAL); /* now the watch counts */
    struct comm *comm = open_group(mpi, watch, guard);
    guard_end(guard);
    watch_set_timeout(watch, timeout_seconds);
    comm->is_world = true;
    if (comm->host_count > 1)
        halving_open();
    comm->local_rank = comm->host_rank;
    return comm;
}

struct comm *comm_split(struct comm *world, int color, const char *transport, enum comm_use use, struct error *error)
{
    struct comm *comm = open_group(comm_split_mpi(world, color), world->watch, world->guard);
    comm->local_rank = world->local_rank;
    comm->survey = transport_survey(world, use);
    const struct transport *chosen = transport_choose(comm, transport, use, error);
    free(comm->survey);
    comm->survey = NULL;
    if (chosen != NULL) {
        comm->transport = chosen;
        comm->group.advice = chosen->advice;
        if (chosen->open == NULL || chosen->open(comm, error))
            return comm;
        comm->transport = &transport_mpi;
    }
    comm_close(comm);
    return NULL;
}

void comm_close(struct comm *comm)
{
    if (comm->transport->close != NULL)
        comm->transport->close(comm);
    mailbox_drain(comm);
    bool is_world = comm->is_world;
    struct guard *guard = comm->guard;
    if (is_world) {
        guard_begin(guard, "ending MPI", SLOW_SECONDS + watch_timeout(comm->watch));
        watch_close(comm->watch);
    }
    if (comm->slice_peers != MPI_COMM_NULL)
        MPI_CHECK(MPI_Comm_free(&comm->slice_peers));
    MPI_CHECK(MPI_Comm_free(&comm->mpi));
    free((void *)comm->group.world_ranks);
    free((void *)comm->group.hosts);
    free(comm->host_names);
    free(comm->first_ranks);
    free(comm);
    if (is_world) {
        halving_close();
        MPI_Finalize();
        guard_close(guard);
    }
}

void comm_library(char *text, size_t bytes)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(version, &length);
    snprintf(text, bytes, "%.*s", (int)strcspn(version, ",\n"), version);
}

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

int comm_size(const struct comm *comm)
{
    return comm->size;
}

const char *comm_transport(const struct comm *comm)
{
    return comm->transport->name;
}

void comm_ways(const struct comm *comm, char *text, size_t bytes)
{
    text[0] = '\0';
    if (comm->transport->ways != NULL)
        comm->transport->ways(comm, text, bytes);
}

const char *comm_why(const struct comm *comm)
{
    return comm->why;
}

int comm_local_rank(const struct comm *comm)
{
    return comm->local_rank;
}

int comm_host_rank(const struct comm *comm)
{
    return comm->host_rank;
}

int comm_host_count(const struct comm *comm)
{
    return comm->host_count;
}

int comm_first_of_host(const struct comm *comm, int rank)
{
    return comm->first_ranks[rank];
}

const char *comm_host_name(const struct comm *comm, int rank)
{
    return comm->host_names[rank];
}

int comm_world_rank(const struct comm *comm, int rank)
{
    return comm->group.world_ranks[rank];
}

bool comm_can_sum_on_device(const struct comm *comm)
{
    return comm->transport->sum_on_device != NULL;
}

bool comm_sums_in_kernel(const struct comm *comm)
{
    return comm->transport->in_kernel;
}

bool comm_sums_by_host(const struct comm *comm)
{
    return comm->size > 1 && !comm_can_sum_on_device(comm) && !comm_sums_in_kernel(comm);
}

void comm_sum_on_device(struct comm *comm, int64_t *buffer, size_t count, void *stream)
{
    comm->transport->sum_on_device(comm, buffer, count, stream);
}

struct device_wait {
    struct comm *comm;
    bool (*done)(void *context);
    void *context;
};

static bool look_at_device(void *context)
{
    const struct device_wait *task = context;
    if (task->comm->transport->poll != NULL)
        task->comm->transport->poll(task->comm);
    bool done = task->done(task->context);
    if (!done && task->comm->idle != NULL)
        task->comm->idle(task->comm->idle_context);
    return done;
}

void comm_wait(struct comm *comm, bool (*done)(void *context), void *context, const char *what)
{
    watch_until(comm->watch, look_at_device, &(struct device_wait){comm, done, context}, &comm->group, what);
}

static bool has_passed(void *time)
{
    return clock_seconds() > *(const double *)time;
}

void comm_wait_for_end(struct comm *comm, const char *what)
{
    static const double MPIRUN_SECONDS = 15; /* mpirun takes up to 10 s to see that a host is gone */
    double end = clock_seconds() + MPIRUN_SECONDS;
    watch_until(comm->watch, has_passed, &end, &comm->group, what);
}

void comm_set_idle(struct comm *comm, void (*idle)(void *context), void *context)
{
    comm->idle = idle;
    comm->idle_context = context;
}

void comm_set_step(struct comm *comm, uint64_t step)
{
    watch_set_step(comm->watch, step);
}

void comm_alive(struct comm *comm)
{
    watch_acknowledge(comm->watch);
}
