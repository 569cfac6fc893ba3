/* The transports, and which of them a group takes. */
#include "transport.h"

#include <stdio.h>
#include <string.h>

const struct transport transport_mpi = {.name = "mpi"};

/* Best first: "auto" takes the first that suits. A new transport is added here. */
static const struct transport *const transports[] = {&transport_peers, &proxy_nccl, &transport_mpi};
enum { TRANSPORTS = sizeof transports / sizeof *transports };

void comm_names(char *text, size_t bytes, bool notes)
{
    size_t used = (size_t)snprintf(text, bytes, "auto");
    for (int i = 0; i < TRANSPORTS && used < bytes; i++) {
        const char *note = notes ? transports[i]->note : NULL;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s%s%s%s", i == TRANSPORTS - 1 ? " or " : ", ",
                                 transports[i]->name, note != NULL ? " (" : "", note != NULL ? note : "",
                                 note != NULL ? ")" : "");
    }
}

void transport_prepare(void)
{
    for (int i = 0; i < TRANSPORTS; i++)
        if (transports[i]->prepare != NULL)
            transports[i]->prepare();
}

void *transport_survey(struct comm *world, enum comm_use use)
{
    for (int i = 0; i < TRANSPORTS; i++)
        if (transports[i]->survey != NULL)
            return transports[i]->survey(world, use);
    return NULL;
}

/* One rank has nothing to sum: no need to start NCCL. comm->why becomes the first thing that a transport says: why it
 * was taken, or why it was not. */
static const struct transport *choose_best(struct comm *comm, enum comm_use use)
{
    if (use == COMM_FOR_CPU || comm->size == 1)
        return &transport_mpi;
    for (int i = 0; i < TRANSPORTS; i++) {
        char why[sizeof comm->why - 20] = "";
        if (transports[i]->in_kernel && use != COMM_FOR_KERNEL)
            continue;
        bool suits = transports[i]->suits == NULL || transports[i]->suits(comm, use, why, sizeof why);
        if (comm->why[0] == '\0' && why[0] != '\0')
            snprintf(comm->why, sizeof comm->why, "%s%s%s", suits ? "" : transports[i]->name, suits ? "" : ": ", why);
        if (suits)
            return transports[i];
    }
    return &transport_mpi;
}

static const struct transport *choose_named(struct comm *comm, const char *name, enum comm_use use, struct error *error)
{
    char why[sizeof comm->why];
    for (int i = 0; i < TRANSPORTS; i++) {
        if (strcmp(name, transports[i]->name) != 0)
            continue;
        if (transports[i]->suits == NULL || transports[i]->suits(comm, use, why, sizeof why))
            return transports[i];
        error_set(error, EXIT_USAGE, "--comm %s: %s", name, why);
        return NULL;
    }
    char names[200];
    comm_names(names, sizeof names, false);
    error_set(error, EXIT_USAGE, "--comm %s: no such transport; give %s", name, names);
    return NULL;
}

const struct transport *transport_choose(struct comm *comm, const char *name, enum comm_use use, struct error *error)
{
    if (strcmp(name, "auto") == 0)
        return choose_best(comm, use);
    return choose_named(comm, name, use, error);
}
