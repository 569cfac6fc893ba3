#include "evaluate.h"

#include "exact_sum.h"
#include "sampler.h"

enum { SLICE = 32 * TILE }; /* samples between two looks at the stop flag */

static bool evaluate_share(struct engine *engine, const struct split *split, int rank, int size,
                           const volatile sig_atomic_t *stop, struct evaluation *sum)
{
    size_t first, last;
    sampler_share(split->count, rank, size, &first, &last);
    for (; first < last && !*stop; first += SLICE) {
        engine->ops->evaluate(engine, split, first, last < first + SLICE ? last : first + SLICE, sum);
        comm_alive(engine->setup.comm);
    }
    return !*stop;
}

enum evaluate_status evaluate(struct engine *engine, bool on_all_ranks, const volatile sig_atomic_t *stop,
                              struct accuracy *accuracy)
{
    struct comm *comm = engine->setup.comm;
    const struct dataset *data = engine->setup.data;
    struct evaluation train = {0}, test = {0};
    int rank = on_all_ranks ? comm_rank(comm) : 0, size = on_all_ranks ? comm_size(comm) : 1;
    bool stopped = false;
    if (on_all_ranks || comm_rank(comm) == 0)
        stopped = !evaluate_share(engine, &data->train, rank, size, stop, &train) ||
                  !evaluate_share(engine, &data->test, rank, size, stop, &test);
    int64_t sums[] = {train.correct, test.correct, test.loss, train.refused + test.refused, stopped};
    comm_sum_control(comm, sums, sizeof sums / sizeof *sums);
    if (sums[4] != 0)
        return EVALUATE_STOPPED;
    if (sums[3] != 0)
        return EVALUATE_NOT_FINITE;
    accuracy->train = 100.0 * (double)sums[0] / (double)data->train.count;
    accuracy->test = 100.0 * (double)sums[1] / (double)data->test.count;
    accuracy->test_loss = (double)sums[2] * EXACT_UNIT / (double)data->test.count;
    return EVALUATE_DONE;
}
