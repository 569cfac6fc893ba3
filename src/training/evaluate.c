#include "evaluate.h"

#include "exact_sum.h"
#include "run.h"
#include "sampler.h"

enum { SLICE = 32 * TILE }; /* samples between two looks at the stop flag */

static bool evaluate_share(struct engine *engine, const struct split *split, int rank, int size,
                           const volatile sig_atomic_t *stop, struct evaluation *sum, exact_wide *loss)
{
    size_t first, last;
    sampler_share(split->count, rank, size, &first, &last);
    for (; first < last && !*stop; first += SLICE) {
        sum->loss = 0; /* of a slice alone it cannot wrap */
        engine->ops->evaluate(engine, split, first, last < first + SLICE ? last : first + SLICE, sum);
        *loss += sum->loss;
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
    exact_wide train_loss = 0, test_loss = 0;
    bool stopped = false;
    if (on_all_ranks || comm_rank(comm) == 0)
        stopped = !evaluate_share(engine, &data->train, rank, size, stop, &train, &train_loss) ||
                  !evaluate_share(engine, &data->test, rank, size, stop, &test, &test_loss);
    int64_t sums[] = {train.correct,
                      test.correct,
                      (int64_t)(test_loss >> 32),
                      (int64_t)(test_loss & UINT32_MAX),
                      train.refused + test.refused,
                      stopped};
    comm_sum_control(comm, sums, sizeof sums / sizeof *sums);
    if (sums[5] != 0)
        return EVALUATE_STOPPED;
    if (sums[4] != 0)
        return EVALUATE_NOT_FINITE;
    accuracy->train = 100.0 * (double)sums[0] / (double)data->train.count;
    accuracy->test = 100.0 * (double)sums[1] / (double)data->test.count;
    accuracy->test_loss = (double)(((exact_wide)sums[2] << 32) + sums[3]) * EXACT_UNIT / (double)data->test.count;
    return EVALUATE_DONE;
}
