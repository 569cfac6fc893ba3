/* Which plans a rank needs for its parts of batches, and who of the ranks chooses them. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "cudnn_private.h"
#include "memory.h"
#include "sampler.h"

void cudnn_share(const struct cudnn *cudnn, size_t samples, size_t *position, size_t *count)
{
    size_t end;
    struct comm *comm = cudnn->base.setup.comm;
    sampler_share(samples, comm_rank(comm), comm_size(comm), position, &end);
    *count = end - *position;
}

bool cudnn_find_batch(struct cudnn *cudnn, size_t samples, struct net_batch *batch, struct error *error)
{
    size_t position, count;
    cudnn_share(cudnn, samples, &position, &count);
    *batch = (struct net_batch){
        .records = cudnn->queue.train,
        .order = cudnn->order,
        .step = cudnn->step,
        .masks = &cudnn->base.setup.masks,
        .first = (uint32_t)position,
    };
    if (count > 0)
        batch->shape = net_find_shape(&cudnn->net, (uint32_t)count, true, error);
    return count == 0 || batch->shape != NULL;
}

static void plan(struct cudnn *cudnn, size_t evaluated, struct error *error)
{
    struct net_batch batch;
    cudnn->evaluated = net_find_shape(&cudnn->net, (uint32_t)evaluated, false, error);
    if (cudnn->evaluated != NULL && cudnn_find_batch(cudnn, cudnn->full.samples, &batch, error))
        cudnn_find_batch(cudnn, cudnn->tail.samples, &batch, error);
}

/* Ranks of a kind need the same plans. */
struct kind {
    uint64_t device; /* a hash */
    size_t full, tail;
};

/* Collective: every rank's kind, which the caller frees. */
static struct kind *gather_kinds(const struct cudnn *cudnn)
{
    struct comm *comm = cudnn->base.setup.comm;
    size_t position, bytes = (size_t)comm_size(comm) * sizeof(struct kind);
    struct kind ours = {.device = XXH64(cudnn->chooser.device, strlen(cudnn->chooser.device), 0)};
    cudnn_share(cudnn, cudnn->full.samples, &position, &ours.full);
    cudnn_share(cudnn, cudnn->tail.samples, &position, &ours.tail);
    struct kind *kinds = memory_allocate(1, bytes, "the list of ranks");
    comm_gather(comm, &ours, sizeof ours, kinds);
    comm_broadcast(comm, kinds, bytes, 0);
    return kinds;
}

static bool is_first_of_kind(const struct kind *kinds, int rank)
{
    for (int i = 0; i < rank; i++)
        if (memcmp(&kinds[i], &kinds[rank], sizeof *kinds) == 0)
            return false;
    return true;
}

/* Collective: all have what the rank has chosen. */
static void share_choices(struct cudnn *cudnn, int rank)
{
    struct comm *comm = cudnn->base.setup.comm;
    char *text = comm_rank(comm) == rank ? cJSON_PrintUnformatted(cudnn->chooser.all) : NULL;
    size_t bytes = text != NULL ? strlen(text) + 1 : 0;
    comm_broadcast(comm, &bytes, sizeof bytes, rank);
    if (text == NULL)
        text = memory_allocate(1, bytes, "the plans of another rank");
    comm_broadcast(comm, text, bytes, rank);
    cJSON *all = comm_rank(comm) == rank ? NULL : cJSON_Parse(text);
    chooser_import(&cudnn->chooser, all);
    cJSON_Delete(all);
    free(text);
}

/* One rank of each kind chooses for all: clocks differ, and run.json has one choice of each kind to go on with. */
void cudnn_plan(struct cudnn *cudnn, size_t evaluated, struct error *error)
{
    struct comm *comm = cudnn->base.setup.comm;
    struct kind *kinds = gather_kinds(cudnn);
    chooser_import(&cudnn->chooser, cudnn->base.setup.choices);
    for (int rank = 0; rank < comm_size(comm); rank++) {
        if (!is_first_of_kind(kinds, rank))
            continue;
        if (rank == comm_rank(comm))
            plan(cudnn, evaluated, error);
        if (comm_size(comm) > 1)
            share_choices(cudnn, rank);
    }
    free(kinds);
    if (error->code == EXIT_DONE)
        plan(cudnn, evaluated, error); /* of the same kind as another: recalled */
    comm_away(cudnn->base.setup.comm);
    chooser_save(&cudnn->chooser);
    comm_back(cudnn->base.setup.comm);
}
