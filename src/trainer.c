#include "trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "evaluate.h"
#include "exact_sum.h"
#include "files.h"
#include "run_directory.h"
#include "sampler.h"

struct trainer {
    struct trainer_setup setup;
    bool leader; /* rank 0 of the group: has the files */
    struct terms terms;
    struct progress progress;
    struct engine *engine;
    uint32_t *order;          /* of the open epoch */
    float *weights, *momentum; /* canonical copies, for files and digests */
    struct run_directory directory;
    struct metrics *metrics;
    bool owns_directory;

    double mark;        /* when the clock was last read into progress */
    double next_report; /* of a step */
    double images_per_second;
    bool saved;          /* the newest checkpoint holds just this progress */
    uint64_t saved_step; /* of the newest checkpoint; UINT64_MAX: none */
};

static struct terms make_terms(const struct trainer_setup *setup)
{
    const struct options *options = setup->options;
    return (struct terms){
        .net = setup->net->name,
        .p_conv = setup->net->p_conv,
        .p_fc = setup->net->p_fc,
        .seed = options->seed,
        .batch_size = options->batch_size,
        .data_hash = setup->data->hash,
        .train_count = setup->data->train.count,
        .learning_rate = options->learning_rate,
        .momentum = options->momentum,
        .lr_gamma = options->lr_gamma,
        .lr_step = options->lr_step,
        .precision = options->precision,
    };
}

/* --- opening -------------------------------------------------------------------------------------- */

/* Rank 0 finds out where the run starts, from the checkpoint, the file given or the seed. */
static bool load_start(struct trainer *trainer, struct error *error)
{
    const struct options *options = trainer->setup.options;
    const char *path = trainer->directory.path;
    trainer->progress = (struct progress){.best_train = -1, .best_test = -1};
    if (options->resume && checkpoint_exists(path)) {
        if (!checkpoint_read(path, &trainer->terms, &trainer->progress, trainer->weights, trainer->momentum,
                             error))
            return false;
        trainer->saved = true;
        trainer->saved_step = trainer->progress.step;
        return true;
    }
    memset(trainer->momentum, 0, LENET5_WEIGHTS * sizeof *trainer->momentum);
    if (options->init_from != NULL)
        return checkpoint_read_model(options->init_from, trainer->weights, error);
    lenet5_initialise(options->seed, trainer->weights);
    return true;
}

/* run.json: the description of the whole run, and what is this net's own. */
static bool describe(struct trainer *trainer, struct error *error)
{
    const struct trainer_setup *setup = &trainer->setup;
    char ways[400];
    comm_describe(setup->comm, ways, sizeof ways);
    cJSON *json = cJSON_Duplicate(setup->description, true);
    cJSON *net = cJSON_AddObjectToObject(json, "net");
    cJSON_AddStringToObject(net, "name", (char[]){setup->net->name, '\0'});
    cJSON_AddNumberToObject(net, "p_conv", setup->net->p_conv);
    cJSON_AddNumberToObject(net, "p_fc", setup->net->p_fc);
    cJSON_AddNumberToObject(net, "ranks", comm_size(setup->comm));
    cJSON_AddStringToObject(net, "engine", setup->engine->name);
    cJSON_AddStringToObject(net, "comm", comm_transport(setup->comm));
    if (ways[0] != '\0')
        cJSON_AddStringToObject(net, "comm_ways", ways);
    if (trainer->engine->ops->describe != NULL)
        cJSON_AddItemToObject(net, "choices", trainer->engine->ops->describe(trainer->engine));
    cJSON_AddNumberToObject(net, "first_epoch", (double)trainer->progress.epoch + 1);
    bool done = run_directory_describe(&trainer->directory, json, error);
    cJSON_Delete(json);
    return done;
}

static void open_files(struct trainer *trainer, struct error *error)
{
    const struct trainer_setup *setup = &trainer->setup;
    trainer->owns_directory =
        run_directory_open(&trainer->directory, setup->directory, setup->options->resume, error);
    if (trainer->owns_directory)
        load_start(trainer, error);
}

static bool open_engine(struct trainer *trainer, struct error *error)
{
    const struct trainer_setup *setup = &trainer->setup;
    cJSON *before = trainer->leader ? run_directory_description(&trainer->directory) : NULL; /* it goes on alike */
    struct engine_setup engine = {
        .data = setup->data,
        .comm = setup->comm,
        .masks = masks_make(trainer->terms.seed, trainer->terms.p_conv, trainer->terms.p_fc),
        .batch_size = trainer->terms.batch_size,
        .momentum = (float)trainer->terms.momentum,
        .precision = engine_precision(setup->options->precision),
        .choices = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(before, "net"), "choices"),
    };
    trainer->engine = setup->engine->open(&engine, error);
    cJSON_Delete(before);
    return trainer->engine != NULL;
}

struct trainer *trainer_open(const struct trainer_setup *setup, struct error *error)
{
    struct trainer *trainer = calloc(1, sizeof *trainer);
    trainer->setup = *setup;
    trainer->leader = comm_rank(setup->comm) == 0;
    trainer->terms = make_terms(setup);
    trainer->saved_step = UINT64_MAX;
    trainer->weights = malloc(LENET5_WEIGHTS * sizeof *trainer->weights);
    trainer->momentum = malloc(LENET5_WEIGHTS * sizeof *trainer->momentum);
    trainer->order = malloc(setup->data->train.count * sizeof *trainer->order);
    if (trainer->leader)
        open_files(trainer, error);
    if (comm_agree(setup->comm, error))
        open_engine(trainer, error);
    if (!comm_agree(setup->comm, error)) {
        trainer_close(trainer);
        return NULL;
    }
    comm_broadcast(setup->comm, &trainer->progress, sizeof trainer->progress, 0);
    comm_broadcast(setup->comm, trainer->weights, LENET5_WEIGHTS * sizeof(float), 0);
    comm_broadcast(setup->comm, trainer->momentum, LENET5_WEIGHTS * sizeof(float), 0);
    trainer->engine->ops->write(trainer->engine, trainer->weights, trainer->momentum);
    return trainer;
}

bool trainer_begin(struct trainer *trainer, struct error *error)
{
    if (trainer->leader && describe(trainer, error))
        trainer->metrics = metrics_open(trainer->directory.path, trainer->progress.epoch, error);
    return comm_agree(trainer->setup.comm, error);
}

void trainer_close(struct trainer *trainer)
{
    if (trainer->engine != NULL)
        trainer->engine->ops->close(trainer->engine);
    if (trainer->metrics != NULL)
        metrics_close(trainer->metrics);
    if (trainer->owns_directory)
        run_directory_close(&trainer->directory);
    free(trainer->order);
    free(trainer->momentum);
    free(trainer->weights);
    free(trainer);
}

/* --- telling -------------------------------------------------------------------------------------- */

static void read_clock(struct trainer *trainer)
{
    double time = clock_seconds();
    trainer->progress.seconds += time - trainer->mark;
    trainer->mark = time;
}

static void report(struct trainer *trainer, enum event_kind kind, const struct epoch_metrics *metrics)
{
    const struct progress *progress = &trainer->progress;
    if (!trainer->leader)
        return;
    struct event event = {
        .kind = kind,
        .net = trainer->setup.net_index,
        .epochs_done = (double)progress->epoch + (double)progress->in_epoch / (double)trainer->terms.train_count,
        .images_per_second = trainer->images_per_second,
        .best_test = progress->best_test,
    };
    if (progress->in_epoch > 0)
        event.loss = (double)progress->loss * EXACT_UNIT / (double)progress->in_epoch;
    if (metrics != NULL)
        event.metrics = *metrics;
    trainer->setup.report(trainer->setup.context, &event);
}

static void report_step(struct trainer *trainer, double epoch_start)
{
    const struct progress *progress = &trainer->progress;
    double time = clock_seconds();
    if (time < trainer->next_report)
        return;
    trainer->next_report = time + 0.1;
    double part = progress->epoch_seconds + time - epoch_start;
    if (part > 0)
        trainer->images_per_second = (double)progress->in_epoch / part;
    report(trainer, EVENT_STEP, NULL);
}

/* --- saving --------------------------------------------------------------------------------------- */

/* Every replica must hold the same weights, above all before rank 0's are saved. */
static bool compare_replicas(struct trainer *trainer, struct error *error)
{
    int odd;
    struct comm *comm = trainer->setup.comm;
    if (comm_same(comm, trainer_digest(trainer), &odd))
        return true;
    return error_set(error, EXIT_DIVERGED,
                     "net %c: after step %llu the weights of rank %d (host %s) differ from the other replicas'; "
                     "go on from the last checkpoint with --resume",
                     trainer->setup.net->name, (unsigned long long)trainer->progress.step, odd,
                     comm_host_name(comm, odd));
}

bool trainer_save(struct trainer *trainer, struct error *error)
{
    if (!compare_replicas(trainer, error))
        return false;
    if (trainer->leader && !trainer->saved) {
        trainer->engine->ops->read(trainer->engine, trainer->weights, trainer->momentum);
        trainer->saved = checkpoint_write(trainer->directory.path, &trainer->terms, &trainer->progress,
                                          trainer->weights, trainer->momentum, error);
        if (trainer->saved)
            trainer->saved_step = trainer->progress.step;
    }
    return comm_agree(trainer->setup.comm, error);
}

static enum trainer_status save_and_leave(struct trainer *trainer, enum trainer_status status, struct error *error)
{
    read_clock(trainer);
    return trainer_save(trainer, error) ? status : TRAINER_FAILED;
}

/* --- an epoch ------------------------------------------------------------------------------------- */

double trainer_learning_rate(double initial, double gamma, uint64_t decays)
{
    double rate = initial;
    for (double power = gamma; decays > 0; decays /= 2, power *= power)
        if (decays % 2 != 0)
            rate *= power;
    return rate;
}

static double learning_rate(const struct trainer *trainer)
{
    const struct terms *terms = &trainer->terms;
    return trainer_learning_rate(terms->learning_rate, terms->lr_gamma, trainer->progress.epoch / terms->lr_step);
}

static enum trainer_status fail_not_finite(struct trainer *trainer, const char *what, struct error *error)
{
    char kept[400] = "there is no checkpoint yet: start again with a lower --lr";
    if (trainer->saved_step != UINT64_MAX)
        snprintf(kept, sizeof kept,
                 "the checkpoint in %.200s is of step %llu: start again with a lower --lr and another --out, "
                 "from the seed or with --init-from that checkpoint",
                 trainer->setup.directory, (unsigned long long)trainer->saved_step);
    error_set(error, EXIT_RUNTIME,
              "net %c: after %llu steps (epoch %llu) a %s is not finite or over %g; %s", trainer->setup.net->name,
              (unsigned long long)trainer->progress.step, (unsigned long long)trainer->progress.epoch + 1, what,
              (double)EXACT_LIMIT, kept);
    comm_agree(trainer->setup.comm, error);
    return TRAINER_FAILED;
}

/* Positions of the epoch that may be used before --max-steps is reached. */
static size_t reachable(const struct trainer *trainer)
{
    const struct progress *progress = &trainer->progress;
    uint64_t limit = trainer->setup.options->max_steps, batch = trainer->terms.batch_size;
    size_t count = trainer->terms.train_count, steps_to_end = (count - progress->in_epoch + batch - 1) / batch;
    if (limit == 0)
        return count;
    uint64_t left = limit > progress->step ? limit - progress->step : 0;
    return left < steps_to_end ? progress->in_epoch + left * batch : count;
}

/* RUNNING: the epoch's steps are done. */
static enum trainer_status train_epoch(struct trainer *trainer, struct error *error)
{
    struct progress *progress = &trainer->progress;
    size_t reach = reachable(trainer);
    sampler_shuffle(trainer->terms.seed, progress->epoch, trainer->terms.train_count, trainer->order);
    trainer->engine->ops->begin_epoch(trainer->engine, trainer->order);

    double start = clock_seconds();
    struct train_report done = {0};
    while (progress->in_epoch < reach && !done.stopped) {
        struct span span = {
            .step = progress->step,
            .first = progress->in_epoch,
            .last = reach,
            .learning_rate = (float)learning_rate(trainer),
            .stop = trainer->setup.stop,
        };
        comm_set_step(trainer->setup.comm, progress->step);
        engine_train(trainer->engine, &span, &done);
        progress->step += done.steps;
        progress->in_epoch += done.samples;
        progress->loss += done.loss;
        trainer->saved = false;
        if (done.not_finite)
            return fail_not_finite(trainer, "loss or gradient", error);
        report_step(trainer, start);
    }
    progress->epoch_seconds += clock_seconds() - start;
    if (done.stopped)
        return save_and_leave(trainer, TRAINER_STOPPED, error);
    if (progress->in_epoch < trainer->terms.train_count)
        return save_and_leave(trainer, TRAINER_DONE, error);
    return TRAINER_RUNNING;
}

static void note_best(struct trainer *trainer, const struct accuracy *accuracy, struct error *error)
{
    struct progress *progress = &trainer->progress;
    char path[4096];
    progress->best_train = fmax(progress->best_train, accuracy->train);
    if (accuracy->test <= progress->best_test)
        return;
    progress->best_test = accuracy->test;
    if (trainer->leader && files_path(trainer->directory.path, "model-best.safetensors", path, error)) {
        trainer->engine->ops->read(trainer->engine, trainer->weights, NULL);
        checkpoint_write_model(path, trainer->weights, error);
    }
}

/* RUNNING: checked, though rank 0 may have an *error of its own. */
static enum trainer_status check_accuracy(struct trainer *trainer, struct epoch_metrics *metrics,
                                          struct error *error)
{
    struct accuracy accuracy;
    bool on_all = strcmp(trainer->setup.options->eval_on, "all") == 0;
    switch (evaluate(trainer->engine, on_all, trainer->setup.stop, &accuracy)) {
    case EVALUATE_STOPPED:
        return save_and_leave(trainer, TRAINER_STOPPED, error);
    case EVALUATE_NOT_FINITE:
        return fail_not_finite(trainer, "loss in evaluation", error);
    case EVALUATE_DONE:
        break;
    }
    metrics->checked = true;
    metrics->train_accuracy = accuracy.train;
    metrics->test_accuracy = accuracy.test;
    metrics->test_loss = accuracy.test_loss;
    if (compare_replicas(trainer, error))
        note_best(trainer, &accuracy, error);
    return TRAINER_RUNNING;
}

static struct epoch_metrics summarise(const struct trainer *trainer)
{
    const struct progress *progress = &trainer->progress;
    double count = (double)trainer->terms.train_count;
    return (struct epoch_metrics){
        .epoch = progress->epoch + 1,
        .step = progress->step,
        .loss = (double)progress->loss * EXACT_UNIT / count,
        .learning_rate = learning_rate(trainer),
        .seconds = progress->epoch_seconds,
        .images_per_second = count / progress->epoch_seconds,
    };
}

static void begin_next_epoch(struct trainer *trainer)
{
    struct progress *progress = &trainer->progress;
    progress->epoch++;
    progress->in_epoch = 0;
    progress->loss = 0;
    progress->epoch_seconds = 0;
    trainer->saved = false;
    read_clock(trainer);
}

/* The epoch counts as done once this has returned RUNNING or DONE; stopped before that, it is closed
 * again on resumption. */
static enum trainer_status close_epoch(struct trainer *trainer, struct error *error)
{
    const struct options *options = trainer->setup.options;
    struct progress *progress = &trainer->progress;
    struct epoch_metrics metrics = summarise(trainer);
    bool last = metrics.epoch >= options->epochs;
    if (last || metrics.epoch % options->eval_every == 0) {
        enum trainer_status status = check_accuracy(trainer, &metrics, error);
        if (status != TRAINER_RUNNING)
            return status;
    }
    if (trainer->leader && error->code == EXIT_DONE)
        metrics_write(trainer->metrics, &metrics, error);
    if (!comm_agree(trainer->setup.comm, error))
        return TRAINER_FAILED;

    begin_next_epoch(trainer);
    report(trainer, EVENT_EPOCH, &metrics);
    if ((last || progress->epoch % options->checkpoint_every == 0) && !trainer_save(trainer, error))
        return TRAINER_FAILED;
    return last ? TRAINER_DONE : TRAINER_RUNNING;
}

enum trainer_status trainer_epoch(struct trainer *trainer, struct error *error)
{
    trainer->mark = clock_seconds(); /* between epochs other nets may have had their turn */
    uint64_t limit = trainer->setup.options->max_steps;
    bool spent = limit > 0 && trainer->progress.step >= limit && trainer->progress.in_epoch == 0;
    if (trainer->progress.epoch >= trainer->setup.options->epochs || spent)
        return save_and_leave(trainer, TRAINER_DONE, error);
    enum trainer_status status = train_epoch(trainer, error);
    return status == TRAINER_RUNNING ? close_epoch(trainer, error) : status;
}

const struct progress *trainer_progress(const struct trainer *trainer)
{
    return &trainer->progress;
}

uint64_t trainer_digest(struct trainer *trainer)
{
    trainer->engine->ops->read(trainer->engine, trainer->weights, NULL);
    return lenet5_digest(trainer->weights);
}
