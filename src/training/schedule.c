#include "schedule.h"

#include <stdio.h>

#include "turns.h"

static void report_failure(const struct schedule *schedule, int i)
{
    struct event event = {.kind = EVENT_FAILURE, .trial = schedule->first + i};
    snprintf(event.text, sizeof event.text, "%.*s", (int)sizeof event.text - 1, schedule->outcomes[i].error.text);
    if (schedule->messenger->count > 1 && comm_rank(schedule->group) == 0) /* of one trial the study itself tells */
        messenger_report(schedule->messenger, &event);
}

static void save_others(const struct schedule *schedule)
{
    for (int i = 0; i < schedule->count; i++) {
        struct outcome *outcome = &schedule->outcomes[i];
        if (outcome->status == RUN_GOING)
            outcome->status = trainer_save(schedule->trainers[i], &outcome->error) ? RUN_STOPPED : RUN_FAILED;
    }
}

/* An epoch of each trial in turn, until all have ended. */
static void train_in_turn(const struct schedule *schedule)
{
    int running = schedule->count;
    while (running > 0) {
        running = 0;
        for (int i = 0; i < schedule->count; i++) {
            struct outcome *outcome = &schedule->outcomes[i];
            if (outcome->status != RUN_GOING)
                continue;
            outcome->status = trainer_epoch(schedule->trainers[i], &outcome->error);
            if (outcome->status == RUN_FAILED)
                report_failure(schedule, i);
            running += outcome->status == RUN_GOING;
            if (outcome->status == RUN_STOPPED) {
                save_others(schedule);
                return;
            }
        }
    }
}

/* An epoch of each trial, side by side, until all have ended. */
static void train_at_once(const struct schedule *schedule)
{
    for (;;) {
        struct trainer *trainers[MOST_TRIALS];
        struct outcome *outcomes[MOST_TRIALS];
        int going = 0;
        bool stopped = false;
        for (int i = 0; i < schedule->count; i++) {
            stopped |= schedule->outcomes[i].status == RUN_STOPPED;
            if (schedule->outcomes[i].status == RUN_GOING)
                trainers[going] = schedule->trainers[i], outcomes[going++] = &schedule->outcomes[i];
        }
        if (stopped)
            save_others(schedule);
        if (stopped || going == 0)
            return;
        trainers_epoch(trainers, going, outcomes);
        for (int i = 0; i < going; i++)
            if (outcomes[i]->status == RUN_FAILED)
                report_failure(schedule, (int)(outcomes[i] - schedule->outcomes));
    }
}

/* One trial among several that go on while it waits for the GPU. A stop reaches each of them by itself. */
static void train_trial(void *context, int i, struct turns *turns)
{
    const struct schedule *schedule = context;
    struct outcome *outcome = &schedule->outcomes[i];
    comm_set_idle(schedule->group, turns_pass, turns);
    while (outcome->status == RUN_GOING)
        outcome->status = trainer_epoch(schedule->trainers[i], &outcome->error);
    if (outcome->status == RUN_FAILED)
        report_failure(schedule, i);
}

/* Whether trials go on while one waits for the GPU, which one alone does not fill. Not in a group of several ranks,
 * which would have to agree on whose turn it is; nor by an engine that can train several at once, as its trials share
 * what threads must not touch at the same time. */
static bool waits_overlap(const struct schedule *schedule)
{
    return schedule->count > 1 && schedule->engine->on_gpu && schedule->engine->at_once == NULL &&
           comm_size(schedule->group) == 1;
}

void schedule_train(const struct schedule *schedule)
{
    if (trainer_at_once(schedule->trainers[0], schedule->count) > 1) {
        train_at_once(schedule);
    } else if (waits_overlap(schedule)) {
        turns_run(schedule->count, train_trial, (void *)schedule);
        comm_set_idle(schedule->group, NULL, NULL);
    } else {
        train_in_turn(schedule);
    }
}
