/* scaling_rank - one rank of bench/scaling: where the time of a training step goes when ranks share the work.
 *
 *   mpirun -np N scaling_rank [OPTIONS of dtrain]      --max-steps: how many steps are timed, 320 if not given
 *
 * Trains as dtrain does, whole batches only, through the same interface. After a warm-up, blocks of undisturbed
 * steps alternate with blocks in which every part of a step is timed, with a barrier before the sum: what a rank
 * waits there is imbalance, what follows is the sum itself. Rank 0 prints one line of JSON: milliseconds a step,
 * medians over the blocks, by rank; what a step takes at least, which other work on the machine does not spoil:
 * the timed blocks repeat the same BLOCK steps, of each of which, part and rank the least time is taken; and the
 * digest of the weights at the end, which depends on nothing but the options. An engine that runs its steps itself
 * (on a GPU) is timed as a whole.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "abort.h"
#include "clock.h"
#include "engine.h"
#include "find_data.h"
#include "median.h"
#include "memory.h"
#include "sampler.h"
#include "step.h"
#include "trials.h"
#include "version.h"

enum { WARM_UP = 48, BLOCK = 16, STEPS = 320, MAX_BLOCKS = 1000 };

enum part { STEP, COMPUTE, WAIT, SUM, UPDATE, PARTS };
static const char *const names[PARTS] = {"step", "compute", "wait", "sum", "update"};

struct bench {
    const struct options *options;
    struct dataset data;
    struct comm *comm;
    struct engine *engine;
    uint32_t *order;
    size_t in_epoch; /* samples of the epoch's order that are used up */
    uint64_t step;
    double times[PARTS][MAX_BLOCKS]; /* seconds a step */
    double least[PARTS][BLOCK];      /* seconds of each step that the timed blocks repeat */
};

static volatile sig_atomic_t never;

/* --- steps ------------------------------------------------------------------------------------------ */

/* All epochs have the same order, so that a step can be repeated. */
static void begin_epoch(struct bench *b)
{
    sampler_shuffle(b->options->seed, 0, b->data.train.count, b->order);
    b->engine->ops->begin_epoch(b->engine, b->order);
    b->in_epoch = 0;
}

/* Makes sure that so many whole batches are left of the epoch; those of a smaller rest are left out. */
static void reserve(struct bench *b, size_t steps)
{
    if (b->in_epoch + steps * b->options->batch_size > b->data.train.count)
        begin_epoch(b);
}

static void train(struct bench *b, size_t steps)
{
    for (size_t done = 0; done < steps;) {
        reserve(b, 1);
        size_t left = (b->data.train.count - b->in_epoch) / b->options->batch_size;
        left = left < steps - done ? left : steps - done;
        struct span span = {
            .step = b->step,
            .first = b->in_epoch,
            .end = b->in_epoch + left * b->options->batch_size,
            .learning_rate = (float)b->options->learning_rate,
            .stop = &never,
        };
        struct train_report report;
        step_train(b->engine, &span, &report);
        b->step += report.steps;
        b->in_epoch += report.samples;
        done += report.steps;
        if (report.not_finite) {
            fprintf(stderr, "scaling_rank: the loss of step %llu is not finite\n", (unsigned long long)b->step);
            MPI_Abort(MPI_COMM_WORLD, EXIT_RUNTIME);
        }
    }
}

/* Step k, as the plain one, with a clock between its calls. Adds to spent[]. */
static void train_part_by_part(struct bench *b, int k, double spent[PARTS])
{
    struct engine *engine = b->engine;
    size_t batch = b->options->batch_size, first = (size_t)k % (b->data.train.count / batch) * batch;
    double clock[PARTS];
    clock[0] = clock_seconds();
    engine->ops->gradient(engine, (uint64_t)k, first, first + batch);
    clock[COMPUTE] = clock_seconds();
    comm_barrier(b->comm);
    clock[WAIT] = clock_seconds();
    comm_sum(engine->sums);
    clock[SUM] = clock_seconds();
    engine->ops->update(engine, (float)b->options->learning_rate, batch);
    clock[UPDATE] = clock_seconds();
    for (int p = COMPUTE; p < PARTS; p++) {
        spent[p] += clock[p] - clock[p - 1];
        b->least[p][k] = fmin(b->least[p][k], clock[p] - clock[p - 1]);
    }
}

static size_t measure(struct bench *b)
{
    bool whole = b->engine->ops->train != NULL;
    size_t steps = b->options->max_steps ? b->options->max_steps : STEPS;
    size_t blocks = (steps + 2 * BLOCK - 1) / (2 * BLOCK);
    blocks = blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS;
    train(b, WARM_UP);
    for (int p = 0; p < PARTS; p++)
        for (int k = 0; k < BLOCK; k++)
            b->least[p][k] = INFINITY;
    for (size_t i = 0; i < blocks; i++) {
        comm_barrier(b->comm);
        double spent[PARTS] = {0}, start = clock_seconds();
        train(b, BLOCK);
        spent[STEP] = clock_seconds() - start;
        for (int k = 0; k < BLOCK && !whole; k++)
            train_part_by_part(b, k, spent);
        for (int p = 0; p < PARTS; p++)
            b->times[p][i] = spent[p] / BLOCK;
        if (whole)
            train(b, BLOCK);
    }
    return blocks;
}

/* --- the report ------------------------------------------------------------------------------------- */

/* Milliseconds of a step, the mean of those repeated, if nothing disturbs it: the slowest rank's gradient, and the sum
 * and the update at their fastest, for they have the same to do in every step. Collective; rank 0 gets it. */
static double least_step(struct bench *b)
{
    int size = comm_size(b->comm);
    double *all = memory_allocate((size_t)size, sizeof b->least, "the least times of all ranks"), total = 0;
    comm_gather(b->comm, b->least, sizeof b->least, all);
    for (int p = COMPUTE; p < PARTS; p++)
        for (int k = 0; k < BLOCK; k++)
            for (int r = 1; r < size; r++)
                all[p * BLOCK + k] = fmax(all[p * BLOCK + k], all[(r * PARTS + p) * BLOCK + k]);
    for (int k = 0; k < BLOCK; k++)
        total += all[COMPUTE * BLOCK + k] / BLOCK;
    for (int p = SUM; p <= UPDATE; p++) {
        double rest = INFINITY;
        for (int k = 0; k < BLOCK; k++)
            rest = fmin(rest, all[p * BLOCK + k]);
        total += rest;
    }
    free(all);
    return 1e3 * total;
}

/* Collective. */
static void report(struct bench *b, size_t blocks)
{
    int size = comm_size(b->comm), odd;
    double mine[PARTS], least = least_step(b),
                        *all = memory_allocate((size_t)size, sizeof mine, "the times of all ranks");
    float weights[LENET5_WEIGHTS];
    for (int p = 0; p < PARTS; p++)
        mine[p] = 1e3 * median(b->times[p], blocks);
    comm_gather(b->comm, mine, sizeof mine, all);
    b->engine->ops->read(b->engine, weights, NULL);
    uint64_t digest = lenet5_digest(weights);
    bool same = comm_same(b->comm, digest, &odd);

    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "revision", version_revision);
    cJSON_AddStringToObject(json, "engine", b->engine->ops->name);
    cJSON_AddNumberToObject(json, "ranks", size);
    cJSON_AddNumberToObject(json, "hosts", comm_host_count(b->comm));
    cJSON_AddNumberToObject(json, "batch", (double)b->options->batch_size);
    cJSON_AddNumberToObject(json, "steps", (double)b->step);
    for (int p = 0; p < PARTS; p++) {
        cJSON *list = cJSON_AddArrayToObject(json, names[p]);
        for (int r = 0; r < size; r++)
            cJSON_AddItemToArray(list, cJSON_CreateNumber(all[r * PARTS + p]));
    }
    if (b->engine->ops->train == NULL)
        cJSON_AddNumberToObject(json, "least", least);
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)digest);
    cJSON_AddStringToObject(json, "digest", text);
    cJSON_AddBoolToObject(json, "same", same); /* on all ranks */
    if (comm_rank(b->comm) == 0) {
        char *line = cJSON_PrintUnformatted(json);
        puts(line);
        free(line);
    }
    cJSON_Delete(json);
    free(all);
}

/* --- opening ---------------------------------------------------------------------------------------- */

static bool open_data(struct bench *b, struct comm *world, struct error *error)
{
    char directory[4096];
    if (find_data(b->options->data, world, directory, error) && dataset_open(&b->data, directory, error) &&
        b->data.train.count < b->options->batch_size)
        error_set(error, EXIT_USAGE, "--batch-size: more than the %zu pictures there are", b->data.train.count);
    return comm_agree(world, error);
}

static bool open_engine(struct bench *b, struct comm *world, struct error *error)
{
    char why[300];
    struct trial trials[MOST_TRIALS];
    const struct options *o = b->options;
    const struct engine_ops *ops = engine_choose(o->engine, world, why, sizeof why, error);
    trials_list(o, trials);
    if (comm_agree(world, error))
        b->comm = comm_split(world, 0, o->comm, engine_comm_use(ops), error);
    if (!comm_agree(world, error))
        return false;
    struct engine_setup setup = {.data = &b->data,
                                 .comm = b->comm,
                                 .batch_size = o->batch_size,
                                 .masks = masks_make(o->seed, trials[0].net.p_conv, trials[0].net.p_fc),
                                 .momentum = (float)o->momentum,
                                 .precision = engine_precision(o->precision)};
    b->engine = ops->open(&setup, error);
    return comm_agree(world, error);
}

static void run(const struct options *options, struct comm *world, struct error *error)
{
    struct bench *b = memory_allocate(1, sizeof *b, "the benchmark");
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS] = {0};
    b->options = options;
    if (!open_data(b, world, error) || !open_engine(b, world, error))
        return; /* the process ends */
    b->order = memory_allocate(b->data.train.count, sizeof *b->order, "the order of an epoch");
    lenet5_initialise(options->seed, weights);
    b->engine->ops->write(b->engine, weights, velocity);
    begin_epoch(b);
    report(b, measure(b));
    b->engine->ops->close(b->engine);
    comm_close(b->comm);
    dataset_close(&b->data);
    free(b->order);
    free(b);
}

int main(int argc, char **argv)
{
    struct options options;
    struct error error = {0};
    options_parse(argc, argv, &options, &error);
    struct comm *world = comm_open_world(60);
    if (comm_agree(world, &error))
        run(&options, world, &error);
    if (comm_rank(world) == 0 && error.code != EXIT_DONE)
        fprintf(stderr, "scaling_rank: %s\n", error.text);
    comm_close(world);
    return (int)error.code;
}
