#include "study.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "conclusion.h"
#include "describe.h"
#include "devices.h"
#include "display.h"
#include "signals.h"
#include "trainer.h"
#include "turns.h"

struct study {
    const struct options *options;
    const struct dataset *data;
    struct comm *world;
    const struct engine_ops *engine;
    struct device *devices; /* every rank's, if the engine is on GPUs */
    char directory[PATH_MAX];                 /* of the run, or of the directories of several */
    char net_directories[NETS][PATH_MAX + 8]; /* of each net */
    struct net nets[NETS];
    int count;

    struct comm *group;  /* this rank's */
    int first, last;     /* nets this rank trains: [first, last) */
    int leaders[NETS];   /* world ranks */
    bool stop_announced; /* world rank 0 has told the leaders to stop */

    struct display display; /* used on world rank 0 */
    cJSON *description;     /* of the run, for run.json */
    struct trainer *trainers[NETS];
    struct outcome outcomes[NETS];
};

/* --- who trains what, and with what --------------------------------------------------------------- */

/* "auto" looks at this rank's machine alone. */
static bool agree_on_engine(struct study *study, struct error *error)
{
    int odd;
    const char *name = study->engine->name;
    if (comm_same(study->world, XXH64(name, strlen(name), 0), &odd))
        return true;
    return error_set(error, EXIT_USAGE,
                     "rank %d on host %s chose another engine than the others, because not all machines are "
                     "alike: name one for all (--engine cpu runs everywhere)",
                     odd, comm_host_name(study->world, odd));
}

/* The first rank of group g of n, as even as possible. */
static int group_begin(int g, int n, int ranks)
{
    return (int)((long)g * ranks / n);
}

/* Collective. Before NCCL starts: what it is told by dtrain is no setting of the user's. */
static void describe(struct study *study)
{
    study->description = describe_run(study->options, study->data, study->world);
    if (!study->engine->on_gpu)
        return;
    int ranks = comm_size(study->world);
    study->devices = calloc((size_t)ranks, sizeof *study->devices);
    devices_gather(study->world, study->devices);
    describe_gpus(study->description, study->devices, ranks);
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
    study->last = apart ? color + 1 : study->count;
    study->group =
        comm_split(study->world, color, study->options->comm, study->engine->on_gpu, error);
    return comm_agree(study->world, error);
}

/* One net keeps its files in the directory itself, several each in one below it. */
static bool name_directories(struct study *study, struct error *error)
{
    const struct options *options = study->options;
    char standard[100];
    snprintf(standard, sizeof standard, "runs/%s-%llu", options->net, (unsigned long long)options->seed);
    const char *directory = options->out ? options->out : standard;
    if ((size_t)snprintf(study->directory, sizeof study->directory, "%s", directory) >= sizeof study->directory)
        return error_set(error, EXIT_USAGE, "--out: the path is longer than %zu bytes", sizeof study->directory - 1);
    for (int i = 0; i < study->count; i++)
        snprintf(study->net_directories[i], sizeof study->net_directories[i], study->count == 1 ? "%s" : "%s/%c",
                 directory, study->nets[i].name);
    return true;
}

/* --- events: from the leaders to world rank 0, and stops back -------------------------------------- */

/* A stop of one group stops all: its leader tells world rank 0, which tells the other leaders. */
static void announce_stop(struct study *study)
{
    struct event stop = {.kind = EVENT_STOP};
    if (study->stop_announced || !*signals_stop_flag())
        return;
    study->stop_announced = true;
    for (int i = 0; i < study->count; i++)
        if (study->leaders[i] != 0)
            comm_send(study->world, study->leaders[i], &stop, sizeof stop);
}

/* World rank 0, while it trains or waits: shows what the other leaders report. */
static void serve(void *context)
{
    struct study *study = context;
    struct event event;
    while (comm_receive(study->world, &event, sizeof event)) {
        if (event.kind == EVENT_STOP)
            signals_request_stop();
        else
            display_event(&study->display, &event);
    }
    announce_stop(study);
}

static void report(void *context, const struct event *event)
{
    struct study *study = context;
    if (comm_rank(study->world) == 0) {
        display_event(&study->display, event);
        serve(study);
        return;
    }
    struct event order;
    if (event->kind == EVENT_STEP) /* the next tells the same */
        comm_try_send(study->world, 0, event, sizeof *event);
    else
        comm_send(study->world, 0, event, sizeof *event);
    while (comm_receive(study->world, &order, sizeof order))
        signals_request_stop();
}

/* Said when it happens: other nets may go on for hours. */
static void report_failure(struct study *study, int net)
{
    struct event event = {.kind = EVENT_FAILURE, .net = net};
    snprintf(event.text, sizeof event.text, "%.*s", (int)sizeof event.text - 1, study->outcomes[net].error.text);
    if (study->count > 1 && comm_rank(study->group) == 0)
        report(study, &event);
}

/* --- training ------------------------------------------------------------------------------------- */

/* What each group knows of its nets, on every rank. */
static void share_outcomes(struct study *study)
{
    for (int i = 0; i < study->count; i++)
        comm_broadcast(study->world, &study->outcomes[i], sizeof study->outcomes[i], study->leaders[i]);
}

static bool open_trainers(struct study *study, struct error *error)
{
    for (int i = study->first; i < study->last && error->code == EXIT_DONE; i++) {
        struct trainer_setup setup = {
            .options = study->options,
            .net = &study->nets[i],
            .net_index = i,
            .directory = study->net_directories[i],
            .data = study->data,
            .comm = study->group,
            .engine = study->engine,
            .description = study->description,
            .stop = signals_stop_flag(),
            .report = report,
            .context = study,
        };
        study->trainers[i] = trainer_open(&setup, error);
    }
    return comm_agree(study->world, error);
}

static bool begin_trainers(struct study *study, struct error *error)
{
    for (int i = study->first; i < study->last; i++) {
        if (error->code == EXIT_DONE) /* the group agrees on it */
            trainer_begin(study->trainers[i], error);
        study->outcomes[i].progress = *trainer_progress(study->trainers[i]);
    }
    share_outcomes(study);
    return comm_agree(study->world, error);
}

static void save_others(struct study *study, int stopped)
{
    for (int i = study->first; i < study->last; i++)
        if (i != stopped && study->outcomes[i].status == TRAINER_RUNNING)
            study->outcomes[i].status = trainer_save(study->trainers[i], &study->outcomes[i].error)
                                            ? TRAINER_STOPPED
                                            : TRAINER_FAILED;
}

/* An epoch of each net in turn, until all have ended. */
static void train_in_turn(struct study *study)
{
    int running = study->last - study->first;
    while (running > 0) {
        running = 0;
        for (int i = study->first; i < study->last; i++) {
            struct outcome *outcome = &study->outcomes[i];
            if (outcome->status != TRAINER_RUNNING)
                continue;
            outcome->status = trainer_epoch(study->trainers[i], &outcome->error);
            if (outcome->status == TRAINER_FAILED)
                report_failure(study, i);
            running += outcome->status == TRAINER_RUNNING;
            if (outcome->status == TRAINER_STOPPED) {
                save_others(study, i);
                return;
            }
        }
    }
}

/* One net among several that go on while it waits for the GPU. A stop reaches each of them by itself. */
static void train_one(void *context, int number, struct turns *turns)
{
    struct study *study = context;
    struct outcome *outcome = &study->outcomes[study->first + number];
    comm_set_idle(study->group, turns_pass, turns);
    while (outcome->status == TRAINER_RUNNING)
        outcome->status = trainer_epoch(study->trainers[study->first + number], &outcome->error);
    if (outcome->status == TRAINER_FAILED)
        report_failure(study, study->first + number);
}

/* This rank's nets. On a GPU several run at once: one alone does not fill it. Ranks of a group would have to
 * agree on whose turn it is, so a group takes them in turn. */
static void train(struct study *study)
{
    int nets = study->last - study->first;
    if (nets > 1 && study->engine->on_gpu && comm_size(study->group) == 1) {
        turns_run(nets, train_one, study);
        comm_set_idle(study->group, NULL, NULL);
    } else {
        train_in_turn(study);
    }
}

/* Outcomes of all nets, on every rank. */
static void gather_outcomes(struct study *study)
{
    for (int i = study->first; i < study->last; i++) {
        study->outcomes[i].progress = *trainer_progress(study->trainers[i]);
        study->outcomes[i].digest = trainer_digest(study->trainers[i]);
        if (study->outcomes[i].status != TRAINER_STOPPED)
            continue;
        signals_request_stop(); /* another rank of the group may have had the signal */
        if (comm_rank(study->group) == 0 && comm_rank(study->world) != 0)
            comm_send(study->world, 0, &(struct event){.kind = EVENT_STOP}, sizeof(struct event));
    }
    comm_barrier_serving(study->world, comm_rank(study->world) == 0 ? serve : NULL, study);
    if (comm_rank(study->world) == 0)
        serve(study);
    share_outcomes(study);
}

/* --- the beginning and the end ------------------------------------------------------------------------ */

static enum exit_code conclude(struct study *study, struct error *error)
{
    bool stopped = false;
    for (int i = 0; i < study->count; i++) {
        const struct outcome *outcome = &study->outcomes[i];
        stopped |= outcome->status == TRAINER_STOPPED;
        if (outcome->status == TRAINER_FAILED)
            error_set(error, outcome->error.code, "%s", outcome->error.text);
    }
    if (comm_rank(study->world) == 0) {
        display_close(&study->display);
        conclusion_print(study->nets, study->outcomes, study->count, study->directory, study->world);
    }
    return error->code != EXIT_DONE ? error->code : stopped ? EXIT_STOPPED : EXIT_DONE;
}

static void introduce_devices(struct study *study)
{
    char line[400];
    int ranks = comm_size(study->world);
    for (int i = 0; i < ranks; i++) {
        devices_line(study->devices, i, line, sizeof line);
        display_line(&study->display, "%s", line);
    }
    devices_advice(study->devices, ranks, line, sizeof line);
    if (line[0] != '\0')
        display_line(&study->display, "note: %s", line);
}

static void introduce_resumption(struct study *study)
{
    for (int i = 0; i < study->count && study->options->resume; i++) {
        const struct progress *progress = &study->outcomes[i].progress;
        unsigned long long step = progress->step, epoch = progress->epoch;
        char net = study->nets[i].name;
        if (step == 0)
            display_line(&study->display, "net %c has no checkpoint yet: it starts at epoch 1", net);
        else if (epoch >= study->options->epochs)
            display_line(&study->display, "net %c has its %llu epochs already", net, epoch);
        else
            display_line(&study->display, "net %c goes on after step %llu, epoch %llu", net, step, epoch);
    }
}

static void introduce(struct study *study, const char *why)
{
    struct display *display = &study->display;
    const char *comm_reason = comm_why(study->group);
    char nets[2 * NETS + 1] = "";
    for (int i = 0; i < study->count; i++)
        snprintf(nets + strlen(nets), sizeof nets - strlen(nets), "%s%c", i ? "," : "", study->nets[i].name);
    display_line(display, "net %s on %d rank%s, %d host%s; global batch %llu", nets, comm_size(study->world),
                 comm_size(study->world) == 1 ? "" : "s", comm_host_count(study->world),
                 comm_host_count(study->world) == 1 ? "" : "s", (unsigned long long)study->options->batch_size);
    display_line(display, "engine %s%s%s%s, comm %s%s%s%s", study->engine->name, *why ? " (" : "", why,
                 *why ? ")" : "", comm_transport(study->group), *comm_reason ? " (" : "", comm_reason,
                 *comm_reason ? ")" : "");
    display_line(display, "data %s: %zu + %zu pictures", study->data->directory, study->data->train.count,
                 study->data->test.count);
    display_line(display, "files in %s", study->directory);
    if (study->devices != NULL)
        introduce_devices(study);
    introduce_resumption(study);
}

/* Epochs that a net is to have at the end. */
static double goal(const struct options *options, const struct dataset *data)
{
    double epochs = (double)options->epochs;
    double most = (double)options->max_steps * (double)options->batch_size / (double)data->train.count;
    return options->max_steps > 0 && most < epochs ? most : epochs;
}

/* The clock of the display starts here. */
static void begin_display(struct study *study)
{
    double done[NETS];
    for (int i = 0; i < study->count; i++) {
        const struct progress *progress = &study->outcomes[i].progress;
        done[i] = (double)progress->epoch + (double)progress->in_epoch / (double)study->data->train.count;
    }
    display_begin(&study->display, done);
}

static void close_all(struct study *study)
{
    for (int i = study->first; i < study->last; i++)
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
    struct study *study = calloc(1, sizeof *study);
    char why[400] = "";
    study->options = options;
    study->data = data;
    study->world = world;
    study->count = options_nets(options, study->nets);
    study->display = display_open(study->nets, study->count, goal(options, data), options->progress);
    study->engine = engine_choose(options->engine, why, sizeof why, error);
    name_directories(study, error);

    enum exit_code code;
    bool agreed = comm_agree(world, error) && agree_on_engine(study, error);
    if (agreed)
        describe(study);
    if (agreed && open_group(study, error) && open_trainers(study, error) && begin_trainers(study, error)) {
        if (comm_rank(world) == 0)
            introduce(study, why);
        begin_display(study);
        train(study);
        gather_outcomes(study);
        code = conclude(study, error);
    } else {
        code = error->code;
    }
    close_all(study);
    return code;
}
