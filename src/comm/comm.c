#include "comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "halving.h"
#include "transport.h"

static const struct transport transport_mpi = {.name = "mpi"}; /* device memory goes by way of host memory */

/* Best first: "auto" takes the first that suits. */
static const struct transport *const transports[] = {&proxy_nccl, &transport_mpi};

static void wait(struct comm *comm, MPI_Request *request, const char *what)
{
    watch_wait(comm->watch, request, &comm->group, what, NULL, NULL);
}

/* A message or two for each doubling of the ranks, where Open MPI's gathers that do not block send one a rank. */
void comm_combine(struct comm *comm, void *numbers, int count, MPI_Datatype type, MPI_Op operation, const char *what)
{
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, numbers, count, type, operation, comm->mpi, &request));
    wait(comm, &request, what);
}

/* How many of the first ranks are on this host. */
static int count_host(const char *const *hosts, int ranks, const char *host)
{
    int count = 0;
    for (int i = 0; i < ranks; i++)
        count += strcmp(hosts[i], host) == 0;
    return count;
}

/* Fills in who is where. Expects mpi, rank, size and watch. */
static void learn_group(struct comm *comm, MPI_Comm world)
{
    size_t size = (size_t)comm->size;
    int *world_ranks = malloc(size * sizeof *world_ranks), *ranks = malloc(size * sizeof *ranks);
    for (int i = 0; i < comm->size; i++)
        ranks[i] = i;
    MPI_Group ours, all;
    MPI_CHECK(MPI_Comm_group(comm->mpi, &ours));
    MPI_CHECK(MPI_Comm_group(world, &all));
    MPI_CHECK(MPI_Group_translate_ranks(ours, comm->size, ranks, all, world_ranks));
    MPI_CHECK(MPI_Group_free(&ours));
    MPI_CHECK(MPI_Group_free(&all));
    free(ranks);

    char name[MPI_MAX_PROCESSOR_NAME] = "";
    int length;
    MPI_CHECK(MPI_Get_processor_name(name, &length));
    comm->host_names = calloc(size, sizeof *comm->host_names);
    snprintf(comm->host_names[comm->rank], sizeof *comm->host_names, "%.63s", name);
    const char **hosts = malloc(size * sizeof *hosts);
    for (int i = 0; i < comm->size; i++)
        hosts[i] = comm->host_names[i];
    comm->group = (struct watch_group){comm->size, world_ranks, hosts};

    comm_combine(comm, comm->host_names, comm->size * (int)sizeof *comm->host_names, MPI_BYTE, MPI_BOR,
                 "the host names");
    comm->slices = comm->size;
    for (int i = 0; i < comm->size; i++) {
        if (count_host(hosts, i, hosts[i]) > 0) /* not the first of its host */
            continue;
        int here = count_host(hosts, comm->size, hosts[i]);
        comm->host_count++;
        comm->slices = here < comm->slices ? here : comm->slices;
    }
    comm->host_rank = count_host(hosts, comm->rank, hosts[comm->rank]);
    comm->host_size = count_host(hosts, comm->size, hosts[comm->rank]);
}

static struct comm *open_group(MPI_Comm mpi, struct watch *watch)
{
    struct comm *comm = calloc(1, sizeof *comm);
    comm->mpi = mpi;
    comm->watch = watch;
    comm->transport = &transport_mpi;
    comm->outbox.request = MPI_REQUEST_NULL;
    comm->across = MPI_COMM_NULL;
    MPI_CHECK(MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(mpi, &comm->rank));
    MPI_CHECK(MPI_Comm_size(mpi, &comm->size));
    learn_group(comm, MPI_COMM_WORLD);
    return comm;
}

/* To a process that no launcher started, Open MPI 4 adds a daemon for those it might spawn, and ends it where there is
 * no ssh to start daemons with. dtrain spawns none. Nobody else reads this: not a launcher, nor a rank of one. */
static void want_no_daemon(void)
{
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0); /* the user's own setting stays */
}

/* Nets that share a GPU have a thread each, of which one runs (turns.h). One library starts all ranks, and gives all of
 * them as much: rank 0 speaks for them, and ends them. */
static void start_mpi(void)
{
    int threads, rank;
    want_no_daemon();
    MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &threads));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    if (threads < MPI_THREAD_SERIALIZED && rank == 0)
        abort_job(MPI_COMM_WORLD, EXIT_RUNTIME,
                  "this MPI lets only the main thread call it (level %d of MPI_Init_thread), where dtrain needs "
                  "MPI_THREAD_SERIALIZED (%d): install one that is built with threads",
                  threads, MPI_THREAD_SERIALIZED);
}

struct comm *comm_open_world(double timeout_seconds)
{
    MPI_Comm mpi;
    start_mpi();
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &mpi));
    struct comm *comm = open_group(mpi, watch_open(MPI_COMM_WORLD, timeout_seconds));
    comm->is_world = true;
    if (comm->host_count > 1)
        halving_open();
    comm->slot = comm->host_rank;
    return comm;
}

/* One sums nothing: what starts fastest is best. */
static const struct transport *choose_best(struct comm *comm, bool on_gpu)
{
    for (size_t i = 0; on_gpu && comm->size > 1 && i < sizeof transports / sizeof *transports; i++)
        if (transports[i]->suits == NULL || transports[i]->suits(comm, on_gpu, comm->why, sizeof comm->why))
            return transports[i];
    return &transport_mpi;
}

static const struct transport *choose_named(struct comm *comm, const char *name, bool on_gpu,
                                            struct error *error)
{
    char why[sizeof comm->why];
    for (size_t i = 0; i < sizeof transports / sizeof *transports; i++) {
        if (strcmp(name, transports[i]->name) != 0)
            continue;
        if (transports[i]->suits == NULL || transports[i]->suits(comm, on_gpu, why, sizeof why))
            return transports[i];
        error_set(error, EXIT_USAGE, "--comm %s: %s", name, why);
        return NULL;
    }
    error_set(error, EXIT_USAGE, "--comm %s: no such transport; give auto, nccl or mpi", name);
    return NULL;
}

MPI_Comm comm_split_mpi(struct comm *comm, int color)
{
    MPI_Comm part;
    comm_barrier(comm);
    abort_after("a split of the ranks", watch_timeout(comm->watch)); /* MPI has no request for it to watch */
    MPI_CHECK(MPI_Comm_split(comm->mpi, color, comm->rank, &part));
    abort_after(NULL, 0);
    return part;
}

struct comm *comm_split(struct comm *parent, int color, const char *transport, bool on_gpu,
                        struct error *error)
{
    struct comm *comm = open_group(comm_split_mpi(parent, color), parent->watch);
    comm->slot = parent->slot;
    const struct transport *chosen = strcmp(transport, "auto") == 0
                                         ? choose_best(comm, on_gpu)
                                         : choose_named(comm, transport, on_gpu, error);
    if (chosen != NULL) {
        comm->transport = chosen;
        if (chosen->open == NULL || chosen->open(comm, error))
            return comm;
        comm->transport = &transport_mpi;
    }
    comm_close(comm);
    return NULL;
}

static bool has_left(struct outbox *outbox)
{
    int left;
    MPI_CHECK(MPI_Test(&outbox->request, &left, MPI_STATUS_IGNORE));
    return left;
}

void comm_close(struct comm *comm)
{
    if (comm->transport->close != NULL)
        comm->transport->close(comm);
    wait(comm, &comm->outbox.request, "a message to leave");
    bool is_world = comm->is_world;
    if (is_world)
        watch_close(comm->watch);
    if (comm->across != MPI_COMM_NULL)
        MPI_CHECK(MPI_Comm_free(&comm->across));
    MPI_CHECK(MPI_Comm_free(&comm->mpi));
    free((void *)comm->group.world_ranks);
    free((void *)comm->group.hosts);
    free(comm->host_names);
    free(comm);
    if (is_world) {
        halving_close();
        MPI_Finalize();
    }
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

void comm_describe(const struct comm *comm, char *text, size_t bytes)
{
    text[0] = '\0';
    if (comm->transport->describe != NULL)
        comm->transport->describe(comm, text, bytes);
}

const char *comm_why(const struct comm *comm)
{
    return comm->why;
}

int comm_slot(const struct comm *comm)
{
    return comm->slot;
}

int comm_host_rank(const struct comm *comm)
{
    return comm->host_rank;
}

int comm_host_count(const struct comm *comm)
{
    return comm->host_count;
}

const char *comm_host_name(const struct comm *comm, int rank)
{
    return comm->host_names[rank];
}

bool comm_can_sum_on_device(const struct comm *comm)
{
    return comm->transport->sum_on_device != NULL;
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

void comm_set_idle(struct comm *comm, void (*idle)(void *context), void *context)
{
    comm->idle = idle;
    comm->idle_context = context;
}

void comm_barrier(struct comm *comm)
{
    comm_barrier_serving(comm, NULL, NULL);
}

void comm_barrier_serving(struct comm *comm, void (*idle)(void *context), void *context)
{
    MPI_Request request;
    MPI_CHECK(MPI_Ibarrier(comm->mpi, &request));
    watch_wait(comm->watch, &request, &comm->group, "a barrier", idle, context);
}

void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    MPI_Request request;
    MPI_CHECK(MPI_Ibcast(data, (int)bytes, MPI_BYTE, root, comm->mpi, &request));
    wait(comm, &request, "a broadcast");
}

void comm_gather(struct comm *comm, const void *data, size_t bytes, void *all)
{
    MPI_Request request;
    MPI_CHECK(MPI_Igather(data, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, comm->mpi, &request));
    wait(comm, &request, "a gather");
}

void comm_sum_control(struct comm *comm, int64_t *buffer, size_t count)
{
    comm_combine(comm, buffer, (int)count, MPI_INT64_T, MPI_SUM, "the sum of an evaluation");
}

int comm_largest(struct comm *comm, int value)
{
    comm_combine(comm, &value, 1, MPI_INT, MPI_MAX, "an agreement");
    return value;
}

bool comm_agree(struct comm *comm, struct error *error)
{
    int first = comm->size - comm_largest(comm, error->code == EXIT_DONE ? 0 : comm->size - comm->rank);
    if (first == comm->size)
        return true;
    comm_broadcast(comm, error, sizeof *error, first);
    return false;
}

/* Boyer and Moore's majority vote, then the first that is not of the majority. */
static int find_odd(const uint64_t *all, int count)
{
    uint64_t leader = all[0];
    for (int i = 0, votes = 0; i < count; i++) {
        if (votes == 0)
            leader = all[i];
        votes += all[i] == leader ? 1 : -1;
    }
    int votes = 0;
    for (int i = 0; i < count; i++)
        votes += all[i] == leader;
    if (2 * votes <= count)
        leader = all[0];
    for (int i = 0; i < count; i++)
        if (all[i] != leader)
            return i;
    return -1;
}

bool comm_same(struct comm *comm, uint64_t number, int *odd)
{
    uint64_t largest_and_least[] = {number, ~number};
    comm_combine(comm, largest_and_least, 2, MPI_UINT64_T, MPI_MAX, "a comparison");
    *odd = -1;
    if (largest_and_least[0] == ~largest_and_least[1])
        return true;

    /* Only to find the odd one does rank 0 hear of every rank. */
    uint64_t *all = comm->rank == 0 ? malloc((size_t)comm->size * sizeof *all) : NULL;
    comm_gather(comm, &number, sizeof number, all);
    int found = comm->rank == 0 ? find_odd(all, comm->size) : 0;
    free(all);
    comm_broadcast(comm, &found, sizeof found, 0);
    *odd = found;
    return found < 0;
}

bool comm_try_send(struct comm *comm, int to, const void *data, size_t bytes)
{
    struct outbox *outbox = &comm->outbox;
    if (!has_left(outbox))
        return false;
    memcpy(outbox->bytes, data, bytes);
    MPI_CHECK(MPI_Isend(outbox->bytes, (int)bytes, MPI_BYTE, to, 0, comm->mpi, &outbox->request));
    return true;
}

void comm_send(struct comm *comm, int to, const void *data, size_t bytes)
{
    wait(comm, &comm->outbox.request, "a message to leave");
    comm_try_send(comm, to, data, bytes);
}

bool comm_receive(struct comm *comm, void *data, size_t bytes)
{
    int there;
    MPI_Status status;
    MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, 0, comm->mpi, &there, &status));
    if (there)
        MPI_CHECK(MPI_Recv(data, (int)bytes, MPI_BYTE, status.MPI_SOURCE, 0, comm->mpi, MPI_STATUS_IGNORE));
    return there;
}

void comm_set_step(struct comm *comm, uint64_t step)
{
    watch_set_step(comm->watch, step);
}

void comm_alive(struct comm *comm)
{
    watch_acknowledge(comm->watch);
}
