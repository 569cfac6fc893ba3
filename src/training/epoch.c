/* An epoch of a trainer, or of several side by side: its steps, the check of accuracy, metrics and checkpoint. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint.h"
#include "clock.h"
#include "evaluate.h"
#include "exact_sum.h"
#include "sampler.h"
#include "step.h"
#include "trainer_private.h"

/* --- its steps ------------------------------------------------------------------------------------ */

static double learning_rate(const struct trainer *trainer)
{
    const struct options *options = &trainer->setup.trial->options;
    return step_learning_rate(options->learning_rate, options->lr_gamma,
                              trainer->state.progress.epoch / options->lr_step);
}

/* Positions of the epoch that may be used before --max-steps is reached. */
static size_t reachable(const struct trainer *trainer)
{
    const struct progress *progress = &trainer->state.progress;
    uint64_t limit = trainer->setup.trial->options.max_steps, batch = trainer->setup.trial->options.batch_size;
    size_t count = trainer->setup.data->train.count, steps_to_end = (count - progress->in_epoch + batch - 1) / batch;
    if (limit == 0)
        return count;
    uint64_t left = limit > progress->step ? limit - progress->step : 0;
    return left < steps_to_end ? progress->in_epoch + left * batch : count;
}

static void shuffle(const struct trainer *trainer, uint64_t epoch, uint32_t *order)
{
    sampler_shuffle(trainer->setup.trial->options.seed, epoch, trainer->setup.data->train.count, order);
}

/* While a GPU is at an epoch, of the next one. */
static void draw_order_ahead(void *context)
{
    struct trainer *trainer = context;
    uint64_t next = trainer->state.progress.epoch + 1;
    if (trainer->ahead == next)
        return;
    trainer->ahead = next;
    shuffle(trainer, next, trainer->order_ahead);
}

static void begin_order(struct trainer *trainer)
{
    uint64_t epoch = trainer->state.progress.epoch;
    if (trainer->ahead == epoch) {
        uint32_t *drawn = trainer->order_ahead;
        trainer->order_ahead = trainer->order;
        trainer->order = drawn;
        trainer->ahead = UINT64_MAX;
    } else
        shuffle(trainer, epoch, trainer->order);
    trainer->engine->ops->begin_epoch(trainer->engine, trainer->order);
}

/* Opens what is left of the epoch. */
static void begin_steps(struct trainer *trainer)
{
    const struct options *options = &trainer->setup.trial->options;
    const struct progress *progress = &trainer->state.progress;
    trainer->mark = clock_seconds(); /* between epochs other nets may have had their turn */
    trainer->last = (struct train_report){0};
    trainer->spent = progress->epoch >= options->epochs ||
                     (options->max_steps > 0 && progress->in_epoch == 0 && progress->step >= options->max_steps);
    if (trainer->spent)
        return;
    trainer->reach = reachable(trainer);
    begin_order(trainer);
    trainer_read_clock(trainer);
}

static bool has_steps(const struct trainer *trainer)
{
    return !trainer->spent && trainer->state.progress.in_epoch < trainer->reach && !trainer->last.stopped &&
           !trainer->last.not_finite;
}

static struct span next_span(struct trainer *trainer)
{
    const struct progress *progress = &trainer->state.progress;
    comm_set_step(trainer->setup.comm, progress->step);
    return (struct span){
        .step = progress->step,
        .first = progress->in_epoch,
        .end = trainer->reach,
        .learning_rate = (float)learning_rate(trainer),
        .stop = trainer->setup.stop,
        .meanwhile = trainer->order_ahead != NULL ? draw_order_ahead : NULL,
        .context = trainer,
    };
}

static void report_step(struct trainer *trainer)
{
    const struct progress *progress = &trainer->state.progress;
    if (trainer->mark < trainer->next_report)
        return;
    trainer->next_report = trainer->mark + 0.1;
    if (progress->epoch_seconds > 0)
        trainer->images_per_second = (double)progress->in_epoch / progress->epoch_seconds;
    trainer_report(trainer, EVENT_STEP, NULL);
}

static void count_steps(struct trainer *trainer, const struct train_report *done, double began, double ended)
{
    struct progress *progress = &trainer->state.progress;
    progress->seconds += ended - began;
    progress->epoch_seconds += ended - began;
    trainer->mark = ended;
    progress->step += done->steps;
    progress->in_epoch += done->samples;
    progress->loss += done->loss;
    trainer->files.saved = false;
    trainer->last = *done;
    if (!done->not_finite)
        report_step(trainer);
}

/* Some steps of every trainer, team by team; the engine trains a team's nets at once. A net's time is its team's. */
static void train_teams(struct trainer *const *trainers, int count)
{
    struct engine *engines[MOST_TRIALS];
    struct span spans[MOST_TRIALS];
    struct train_report reports[MOST_TRIALS];
    for (int i = 0; i < count; i++) {
        engines[i] = trainers[i]->engine;
        spans[i] = next_span(trainers[i]);
    }
    for (int first = 0, end; first < count; first = end) {
        double began = clock_seconds();
        end = first + step_train_team(engines + first, count - first, spans + first, reports + first);
        double ended = clock_seconds();
        for (int i = first; i < end; i++)
            count_steps(trainers[i], &reports[i], began, ended);
    }
}

/* Drops those that have no steps left. Returns how many have. */
static int drop_done(struct trainer **trainers, int count)
{
    int left = 0;
    for (int i = 0; i < count; i++)
        if (has_steps(trainers[i]))
            trainers[left++] = trainers[i];
    return left;
}

/* All steps that these trainers have left, some of each in turn. */
static void train_steps(struct trainer *const *trainers, int count)
{
    struct trainer *going[MOST_TRIALS];
    memcpy(going, trainers, (size_t)count * sizeof *going);
    while ((count = drop_done(going, count)) > 0)
        train_teams(going, count);
}

/* --- its end -------------------------------------------------------------------------------------- */

static enum run_status save_and_leave(struct trainer *trainer, enum run_status status, struct error *error)
{
    trainer_read_clock(trainer);
    return trainer_save(trainer, error) ? status : RUN_FAILED;
}

/* Tells what can be done about it, by the options to use. */
static enum run_status fail_not_finite(struct trainer *trainer, const char *what, struct error *error)
{
    const struct trial *trial = trainer->setup.trial;
    double p = fmax(trial->net.p_conv, trial->net.p_fc);
    char kept[4400], scale[200] = "";
    snprintf(kept, sizeof kept, "there is no checkpoint yet: start again with a lower --lr, and %s",
             trainer->state.progress.epoch == 0 ? "--resume" : "another --out");
    if (trainer->files.saved_step != UINT64_MAX)
        snprintf(kept, sizeof kept,
                 "start again with a lower --lr and another --out, and from the weights of --init-from "
                 "%s/checkpoint.safetensors only if they were still sound at step %llu",
                 trainer->setup.directory, (unsigned long long)trainer->files.saved_step);
    if (p > 0.9 && p < 1)
        snprintf(scale, sizeof scale,
                 " (or with less dropout: p = %g multiplies what it keeps by %g, which alone may be too much)", p,
                 1 / (1 - p));
    error_set(error, EXIT_RUNTIME,
              "%s: after %llu step%s (epoch %llu) a %s is not finite, or its sum over a tile of %d samples is %g or "
              "more; %s%s",
              trial->name, (unsigned long long)trainer->state.progress.step,
              trainer->state.progress.step == 1 ? "" : "s", (unsigned long long)trainer->state.progress.epoch + 1, what,
              TILE, (double)EXACT_LIMIT, kept, scale);
    return RUN_FAILED; /* as on every rank of the group: it is in their sums */
}

/* The state's weights are those of now, as the replicas have just been compared. */
static void note_best(struct trainer *trainer, const struct accuracy *accuracy, struct error *error)
{
    struct progress *progress = &trainer->state.progress;
    progress->best_train = fmax(progress->best_train, accuracy->train);
    if (accuracy->test <= progress->best_test)
        return;
    progress->best_test = accuracy->test;
    if (trainer->leader) {
        comm_away(trainer->setup.comm);
        checkpoint_write_best(&trainer->files.folder, &trainer->terms, progress, trainer->state.weights, error);
        comm_back(trainer->setup.comm);
    }
}

/* GOING: the check is done. Rank 0 may have set *error all the same, on which close_epoch has the ranks agree. */
static enum run_status check_accuracy(struct trainer *trainer, struct epoch_metrics *metrics, struct error *error)
{
    struct accuracy accuracy;
    bool on_all = strcmp(trainer->setup.trial->options.eval_on, "all") == 0;
    switch (evaluate(trainer->engine, on_all, trainer->setup.stop, &accuracy)) {
    case EVALUATE_STOPPED:
        return save_and_leave(trainer, RUN_STOPPED, error);
    case EVALUATE_NOT_FINITE:
        return fail_not_finite(trainer, "loss in evaluation", error);
    case EVALUATE_DONE:
        break;
    }
    metrics->checked = true;
    metrics->train_accuracy = accuracy.train;
    metrics->test_accuracy = accuracy.test;
    metrics->test_loss = accuracy.test_loss;
    if (trainer_trust_data(trainer, error) && trainer_compare_replicas(trainer, error))
        note_best(trainer, &accuracy, error);
    return RUN_GOING;
}

static struct epoch_metrics summarise(const struct trainer *trainer)
{
    const struct progress *progress = &trainer->state.progress;
    double count = (double)trainer->setup.data->train.count;
    return (struct epoch_metrics){
        .epoch = progress->epoch + 1,
        .step = progress->step,
        .loss = (double)progress->loss * EXACT_UNIT / count,
        .learning_rate = learning_rate(trainer),
        .seconds = progress->epoch_seconds,
        .images_per_second = count / progress->epoch_seconds,
    };
}

/* At the end of an epoch, by rank 0's clock. Collective. */
static bool is_checkpoint_due(const struct trainer *trainer)
{
    if (trainer->state.progress.epoch % trainer->setup.trial->options.checkpoint_every != 0)
        return false;
    return comm_largest(trainer->setup.comm, trainer->leader && clock_seconds() >= trainer->next_save) != 0;
}

static void count_epoch(struct trainer *trainer)
{
    struct progress *progress = &trainer->state.progress;
    progress->epoch++;
    progress->in_epoch = 0;
    progress->loss = 0;
    progress->epoch_seconds = 0;
    trainer->files.saved = false;
    trainer_read_clock(trainer);
}

/* An epoch that could not be recorded, as the disk is full, say, need not be lost: its steps are saved, if there is
 * room for that, as those of a run that was stopped just before the end of the epoch. */
static enum run_status save_steps(struct trainer *trainer, const struct progress *before)
{
    struct error another = {0}; /* the first one counts */
    trainer->state.progress = *before;
    return save_and_leave(trainer, RUN_FAILED, &another);
}

/* The epoch counts as done once this has returned GOING or DONE. A run that is stopped before that does all of it
 * again as it resumes. */
static enum run_status close_epoch(struct trainer *trainer, struct error *error)
{
    const struct options *options = &trainer->setup.trial->options;
    struct progress *progress = &trainer->state.progress;
    const struct progress before = *progress;
    struct epoch_metrics metrics = summarise(trainer);
    bool last = metrics.epoch >= options->epochs || (options->max_steps > 0 && progress->step >= options->max_steps);
    if (last || metrics.epoch % options->eval_every == 0) {
        enum run_status status = check_accuracy(trainer, &metrics, error);
        if (status != RUN_GOING)
            return status;
    }
    if (trainer->leader && error->code == EXIT_DONE) {
        comm_away(trainer->setup.comm);
        metrics_write(trainer->files.metrics, &metrics, error);
        comm_back(trainer->setup.comm);
    }
    if (!comm_agree(trainer->setup.comm, error))
        return error->code == EXIT_RUNTIME ? save_steps(trainer, &before) : RUN_FAILED;

    count_epoch(trainer);
    trainer_report(trainer, EVENT_EPOCH, &metrics);
    if ((last || is_checkpoint_due(trainer)) && !trainer_save(trainer, error))
        return RUN_FAILED;
    return last ? RUN_DONE : RUN_GOING;
}

/* After its last step. */
static enum run_status end_steps(struct trainer *trainer, struct error *error)
{
    bool within = trainer->state.progress.in_epoch < trainer->setup.data->train.count;
    trainer->mark = clock_seconds(); /* other nets may have been trained or closed meanwhile */
    if (trainer->last.not_finite)
        return fail_not_finite(trainer, "loss or gradient", error);
    if (trainer->spent || trainer->last.stopped || within)
        return save_and_leave(trainer, trainer->last.stopped ? RUN_STOPPED : RUN_DONE, error);
    return close_epoch(trainer, error);
}

/* --- the whole ------------------------------------------------------------------------------------ */

enum run_status trainer_epoch(struct trainer *trainer, struct error *error)
{
    begin_steps(trainer);
    train_steps(&trainer, 1);
    return end_steps(trainer, error);
}

void trainers_epoch(struct trainer *const *trainers, int count, struct outcome *const *outcomes)
{
    for (int i = 0; i < count; i++)
        begin_steps(trainers[i]);
    train_steps(trainers, count);
    for (int i = 0; i < count; i++)
        outcomes[i]->status = end_steps(trainers[i], &outcomes[i]->error);
}

int trainer_at_once(const struct trainer *trainer, int count)
{
    return step_at_once(trainer->engine, count);
}
