#include "evaluate.h"

#include "exact_sum.h"
#include "run.h"
#include "sampler.h"

enum { SLICE = 32 * TILE }; /* samples between two looks at the stop flag */

enum { TRAIN_CORRECT, TEST_CORRECT, TEST_LOSS_HIGH, TEST_LOSS_LOW, REFUSED, STOPPED, SUMS };

/* Adds to *sum, and to *loss: the losses, unless loss is NULL. False: it was stopped. */
static bool evaluate_share(struct engine *engine, const struct split *split, int rank, int size,
                           const volatile sig_atomic_t *stop, struct evaluation *sum, exact_wide *loss)
{
    size_t first, end;
    sampler_share(split->count, rank, size, &first, &end);
    for (; first < end && !*stop; first += SLICE) {
        sum->loss = 0; /* of a slice alone it cannot wrap */
        engine->ops->evaluate(engine, split, first, end < first + SLICE ? end : first + SLICE, sum);
        if (loss != NULL)
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
    exact_wide test_loss = 0; /* of training an epoch reports the loss of its steps */
    bool stopped = false;
    if (on_all_ranks || comm_rank(comm) == 0)
        stopped = !evaluate_share(engine, &data->train, rank, size, stop, &train, NULL) ||
                  !evaluate_share(engine, &data->test, rank, size, stop, &test, &test_loss);
    int64_t sums[SUMS] = {
        [TRAIN_CORRECT] = train.correct,
        [TEST_CORRECT] = test.correct,
        [TEST_LOSS_HIGH] = (int64_t)(test_loss >> 32),
        [TEST_LOSS_LOW] = (int64_t)(test_loss & UINT32_MAX),
        [REFUSED] = train.refused + test.refused,
        [STOPPED] = stopped,
    };
    comm_sum_control(comm, sums, SUMS, "the sum of an evaluation");
    if (sums[STOPPED] != 0)
        return EVALUATE_STOPPED;
    if (sums[REFUSED] != 0)
        return EVALUATE_NOT_FINITE;
    test_loss = ((exact_wide)sums[TEST_LOSS_HIGH] << 32) + sums[TEST_LOSS_LOW];
    accuracy->train = 100.0 * (double)sums[TRAIN_CORRECT] / (double)data->train.count;
    accuracy->test = 100.0 * (double)sums[TEST_CORRECT] / (double)data->test.count;
    accuracy->test_loss = (double)test_loss * EXACT_UNIT / (double)data->test.count;
    return EVALUATE_DONE;
}
