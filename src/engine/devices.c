#include "devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int devices_index(int local_rank, int visible)
{
    return visible > 0 ? local_rank % visible : -1;
}

void devices_gather(struct comm *comm, struct device *all)
{
    struct device mine = {.index = -1};
    comm_away(comm); /* CUDA may take long to load */
    const struct gpu_part *part = gpu_load(mine.why, sizeof mine.why);
    const char *host = getenv("NCCL_HOSTID"), *list = getenv("CUDA_VISIBLE_DEVICES");
    snprintf(mine.host, sizeof mine.host, "%s", host != NULL ? host : comm_host_name(comm, comm_rank(comm)));
    snprintf(mine.visible_list, sizeof mine.visible_list, "%s", list != NULL ? list : "");
    if (part != NULL)
        part->look(comm_local_rank(comm), &mine);
    comm_back(comm);
    comm_gather(comm, &mine, sizeof mine, all);
    comm_broadcast(comm, all, (size_t)comm_size(comm) * sizeof *all, 0);
}

/* As NCCL tells them apart, which takes slices of one card for one GPU. */
static bool same_gpu(const struct device *a, const struct device *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->bus, b->bus) == 0;
}

bool devices_are_apart(const struct device *all, int count, char *why, size_t why_bytes)
{
    for (int i = 0; i < count; i++)
        if (all[i].index < 0) {
            snprintf(why, why_bytes, "rank %d on host %s has no GPU (%s)", i, all[i].host, all[i].why);
            return false;
        }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++)
            if (same_gpu(&all[i], &all[j])) {
                snprintf(why, why_bytes,
                         "ranks %d and %d share one GPU of host %s (%s): start no more ranks than GPUs there, or sum "
                         "by MPI (--comm mpi)",
                         j, i, all[i].host, all[i].bus);
                return false;
            }
    snprintf(why, why_bytes, "every rank has a GPU of its own");
    return true;
}

void devices_line(const struct device *all, int rank, char *text, size_t bytes)
{
    const struct device *device = &all[rank];
    if (device->index < 0)
        snprintf(text, bytes, "rank %d  %s  no GPU: %s", rank, device->host, device->why);
    else
        snprintf(text, bytes, "rank %d  %s  GPU %d of %d  %s  %s", rank, device->host, device->index, device->visible,
                 device->name, device->uuid);
}

/* The ranks of one host, as its first rank sees them. */
struct host_view {
    int ranks;
    int gpus;         /* that they use together */
    int most_present; /* GPUs of the host */
    int alone;        /* ranks that see one GPU only */
};

static struct host_view view_host(const struct device *all, int count, int first)
{
    struct host_view view = {0};
    for (int i = first; i < count; i++) {
        if (strcmp(all[i].host, all[first].host) != 0 || all[i].index < 0)
            continue;
        bool seen = false;
        for (int j = first; j < i && !seen; j++)
            seen = all[j].index >= 0 && same_gpu(&all[i], &all[j]);
        view.ranks++;
        view.gpus += !seen;
        view.alone += all[i].visible == 1;
        if (all[i].present > view.most_present)
            view.most_present = all[i].present;
    }
    return view;
}

static bool is_first_of_host(const struct device *all, int rank)
{
    for (int i = 0; i < rank; i++)
        if (strcmp(all[i].host, all[rank].host) == 0)
            return false;
    return true;
}

void devices_advice(const struct device *all, int count, char *text, size_t bytes)
{
    text[0] = '\0';
    for (int i = 0; i < count && text[0] == '\0'; i++) {
        if (!is_first_of_host(all, i))
            continue;
        struct host_view view = view_host(all, count, i);
        const struct device *first = &all[i];
        if (view.ranks > 1 && view.alone == view.ranks && view.gpus == 1 && view.most_present > 1)
            snprintf(text, bytes, "all %d ranks of host %s see the same single GPU of its %d%s%s: %s", view.ranks,
                     first->host, view.most_present, first->visible_list[0] ? ", by CUDA_VISIBLE_DEVICES=" : "",
                     first->visible_list,
                     first->visible_list[0]
                         ? "unset it, or ask SLURM for --gpus-per-node with --gpu-bind=none"
                         : "ask SLURM for --gpus-per-node with --gpu-bind=none instead of binding each task");
        else if (view.ranks > view.gpus && view.most_present > view.gpus)
            snprintf(text, bytes,
                     "%d ranks of host %s share %d of its %d GPUs: ask the launcher for %d GPUs on that host",
                     view.ranks, first->host, view.gpus, view.most_present,
                     view.ranks < view.most_present ? view.ranks : view.most_present);
        else if (view.ranks > view.gpus)
            snprintf(text, bytes, "%d ranks of host %s share %d GPU%s: start no more ranks than GPUs there", view.ranks,
                     first->host, view.gpus, view.gpus == 1 ? "" : "s");
    }
}
