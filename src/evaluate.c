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

bool evaluate(struct engine *engine, bool on_all_ranks, const volatile sig_atomic_t *stop,
              struct accuracy *accuracy)
{
    struct comm *comm = engine->setup.comm;
    const struct dataset *data = engine->setup.data;
    struct {
        struct evaluation train, test;
        int64_t stopped;
    } sum = {0};
    int rank = on_all_ranks ? comm_rank(comm) : 0, size = on_all_ranks ? comm_size(comm) : 1;
    if (on_all_ranks || comm_rank(comm) == 0)
        sum.stopped = !evaluate_share(engine, &data->train, rank, size, stop, &sum.train) ||
                      !evaluate_share(engine, &data->test, rank, size, stop, &sum.test);
    comm_sum_control(comm, (int64_t *)&sum, sizeof sum / sizeof(int64_t));
    if (sum.stopped)
        return false;
    accuracy->train = 100.0 * (double)sum.train.correct / (double)sum.train.samples;
    accuracy->test = 100.0 * (double)sum.test.correct / (double)sum.test.samples;
    accuracy->test_loss = (double)sum.test.loss * EXACT_UNIT / (double)sum.test.samples;
    return true;
}
