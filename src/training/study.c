#include "study.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agree.h"
#include "conclusion.h"
#include "describe.h"
#include "devices.h"
#include "display.h"
#include "introduction.h"
#include "memory.h"
#include "messenger.h"
#include "run_directory.h"
#include "signals.h"
#include "train_trials.h"
#include "trainer.h"

struct study {
    const struct options *options;
    const struct dataset *data;
    struct comm *world;
    const struct engine_ops *engine;
    struct device *devices;   /* every rank's, if the engine is on GPUs */
    char directory[PATH_MAX]; /* of the study */
    struct trial trials[MOST_TRIALS];
    char directories[MOST_TRIALS][PATH_MAX + 40]; /* of each trial */
    int count;

    struct comm *group;       /* this rank's */
    int first, end;           /* trials of this rank: [first, end) */
    int leaders[MOST_TRIALS]; /* world ranks */

    struct display display; /* used on world rank 0 */
    struct messenger messenger;
    cJSON *description; /* of the study, for each run.json */
    struct trainer *trainers[MOST_TRIALS];
    struct outcome outcomes[MOST_TRIALS];
};

/* --- who trains what, and with what --------------------------------------------------------------- */

/* The first rank of group g of n, as even as possible. */
static int group_begin(int g, int n, int ranks)
{
    return (int)((long)g * ranks / n);
}

/* Collective. */
static void gather_devices(struct study *study)
{
    if (!study->engine->on_gpu)
        return;
    study->devices = memory_allocate((size_t)comm_size(study->world), sizeof *study->devices, "the list of GPUs");
    devices_gather(study->world, study->devices);
}

/* Collective. */
static void describe(struct study *study)
{
    study->description = describe_run(study->data, study->world);
    if (study->devices != NULL)
        describe_gpus(study->description, study->devices, comm_size(study->world));
}

static bool open_group(struct study *study, struct error *error)
{
    int ranks = comm_size(study->world), rank = comm_rank(study->world), color = 0;
    bool apart = ranks >= study->count;
    for (int i = 0; i < study->count; i++) {
        study->leaders[i] = apart ? group_begin(i, study->count, ranks) : 0;
        if (apart && rank >= study->leaders[i])
            color = i;
    }
    study->first = apart ? color : 0;
    study->end = apart ? color + 1 : study->count;
    study->messenger = (struct messenger){study->world, study->leaders, study->count, &study->display, 0, 0};
    study->group = comm_split(study->world, color, study->options->comm, engine_comm_use(study->engine), error);
    return comm_agree(study->world, error);
}

/* Every directory above trials': of DIR/seed1/A these are DIR, where seed1 is to be, and DIR/seed1, where A is. */
static void look_above_trials(const struct study *study, struct error *error)
{
    bool admits = true;
    for (int i = 0; i < study->count; i++) {
        char path[sizeof *study->directories];
        strcpy(path, study->directories[i]);
        char *slash = strchr(path + strlen(study->directory), '/');
        for (; slash != NULL && admits; slash = strchr(slash + 1, '/')) {
            *slash = '\0';
            admits = run_directory_admits_study(path, slash + 1, error);
            *slash = '/';
        }
    }
}

static void name_directories(struct study *study, struct error *error)
{
    if (!trials_directory(study->options, study->directory, sizeof study->directory, error))
        return;
    for (int i = 0; i < study->count; i++)
        strcpy(stpcpy(study->directories[i], study->directory), study->trials[i].path); /* fits, as declared */
    comm_away(study->world);
    if (comm_rank(study->world) == 0)
        look_above_trials(study, error);
    comm_back(study->world);
}

/* --- the trainers ----------------------------------------------------------------------------------- */

/* What each group knows of its trials, on every rank. */
static void share_outcomes(struct study *study)
{
    for (int i = 0; i < study->count; i++)
        comm_broadcast(study->world, &study->outcomes[i], sizeof study->outcomes[i], study->leaders[i]);
}

static bool open_trainers(struct study *study, struct error *error)
{
    for (int i = study->first; i < study->end && error->code == EXIT_DONE; i++) {
        struct trainer_setup setup = {
            .trial = &study->trials[i],
            .index = i,
            .directory = study->directories[i],
            .data = study->data,
            .comm = study->group,
            .engine = study->engine,
            .beside = study->engine->at_once != NULL && i > study->first ? study->trainers[study->first] : NULL,
            .description = study->description,
            .stop = signals_stop_flag(),
            .report = messenger_report,
            .context = &study->messenger,
        };
        study->trainers[i] = trainer_open(&setup, error);
    }
    return comm_agree(study->world, error);
}

static bool begin_trainers(struct study *study, struct error *error)
{
    for (int i = study->first; i < study->end; i++) {
        if (error->code == EXIT_DONE) /* the group agrees on it */
            trainer_begin(study->trainers[i], error);
        study->outcomes[i].progress = *trainer_progress(study->trainers[i]);
    }
    share_outcomes(study);
    return comm_agree(study->world, error);
}

/* Outcomes of all trials, on every rank. */
static void gather_outcomes(struct study *study)
{
    for (int i = study->first; i < study->end; i++) {
        study->outcomes[i].progress = *trainer_progress(study->trainers[i]);
        study->outcomes[i].digest = trainer_digest(study->trainers[i]);
    }
    messenger_wait(&study->messenger, comm_rank(study->group) == 0);
    share_outcomes(study);
}

/* --- the beginning and the end ------------------------------------------------------------------------ */

static enum exit_code conclude(struct study *study, struct error *error)
{
    bool stopped = false;
    for (int i = 0; i < study->count; i++) {
        const struct outcome *outcome = &study->outcomes[i];
        stopped |= outcome->status == RUN_STOPPED;
        if (outcome->status == RUN_FAILED)
            error_set(error, outcome->error.code, "%s", outcome->error.text);
    }
    if (comm_rank(study->world) == 0) {
        display_close(&study->display);
        conclusion_print(study->trials, study->outcomes, study->count, study->directory, study->world);
    }
    return stopped ? EXIT_STOPPED : error->code; /* a failure beside a stop comes up again once the run is resumed */
}

static void introduce(struct study *study, const char *engine_reason)
{
    struct introduction introduction = {
        .options = study->options,
        .trials = study->trials,
        .outcomes = study->outcomes,
        .count = study->count,
        .world = study->world,
        .group = study->group,
        .engine = study->engine,
        .engine_reason = engine_reason,
        .devices = study->devices,
        .data = study->data,
        .directory = study->directory,
        .trials_of_rank = study->end - study->first,
        .at_once = trainer_at_once(study->trainers[study->first], study->end - study->first),
    };
    introduction_print(&introduction, &study->display);
}

/* Epochs that a trial is to have at the end. */
static double goal(const struct options *options, const struct dataset *data)
{
    double epochs = (double)options->epochs, count = (double)data->train.count;
    uint64_t steps = (data->train.count + options->batch_size - 1) / options->batch_size; /* of an epoch */
    double rest = (double)(options->max_steps % steps * options->batch_size);
    double most = (double)(options->max_steps / steps) + rest / count;
    return options->max_steps > 0 && most < epochs ? most : epochs;
}

/* The clock of the display starts here. */
static void begin_display(struct study *study)
{
    double done[MOST_TRIALS];
    uint64_t closed[MOST_TRIALS];
    for (int i = 0; i < study->count; i++) {
        const struct progress *progress = &study->outcomes[i].progress;
        closed[i] = progress->epoch;
        done[i] = (double)progress->epoch + (double)progress->in_epoch / (double)study->data->train.count;
    }
    display_begin(&study->display, closed, done);
}

static void close_all(struct study *study)
{
    for (int i = study->first; i < study->end; i++)
        if (study->trainers[i] != NULL)
            trainer_close(study->trainers[i]);
    if (study->group != NULL)
        comm_close(study->group);
    cJSON_Delete(study->description);
    free(study->devices);
    free(study);
}

enum exit_code study_run(const struct options *options, const struct dataset *data, struct comm *world,
                         struct error *error)
{
    struct study *study = memory_allocate(1, sizeof *study, "the study");
    char why[400] = "";
    study->options = options;
    study->data = data;
    study->world = world;
    study->count = trials_list(options, study->trials);
    study->engine = engine_choose(options->engine, world, why, sizeof why, error);
    name_directories(study, error);

    enum exit_code code;
    bool agreed = comm_agree(world, error) && agree_on_engine(study->engine, why, world, error) &&
                  open_group(study, error);
    if (agreed) {
        gather_devices(study);
        describe(study); /* with what a transport has set for NCCL */
    }
    if (agreed && open_trainers(study, error) && begin_trainers(study, error)) {
        if (comm_rank(world) == 0) {
            study->display = display_open(study->trials, study->count, goal(options, data), options->progress);
            introduce(study, why);
            begin_display(study);
        }
        train_trials(&(struct rank_trials){
            .trainers = study->trainers + study->first,
            .outcomes = study->outcomes + study->first,
            .count = study->end - study->first,
            .first = study->first,
            .engine = study->engine,
            .group = study->group,
            .messenger = &study->messenger,
        });
        gather_outcomes(study);
        code = conclude(study, error);
    } else {
        code = error->code;
    }
    close_all(study);
    return code;
}
