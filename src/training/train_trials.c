#include "train_trials.h"

#include <stdio.h>

#include "turns.h"

static void report_failure(const struct rank_trials *trials, int i)
{
    struct event event = {.kind = EVENT_FAILURE, .trial = trials->first + i};
    snprintf(event.text, sizeof event.text, "%.*s", (int)sizeof event.text - 1, trials->outcomes[i].error.text);
    if (trials->messenger->count > 1 && comm_rank(trials->group) == 0) /* of one trial the study itself tells */
        messenger_report(trials->messenger, &event);
}

static void save_others(const struct rank_trials *trials)
{
    for (int i = 0; i < trials->count; i++) {
        struct outcome *outcome = &trials->outcomes[i];
        if (outcome->status != RUN_GOING)
            continue;
        outcome->status = trainer_save(trials->trainers[i], &outcome->error) ? RUN_STOPPED : RUN_FAILED;
        if (outcome->status == RUN_FAILED)
            report_failure(trials, i);
    }
}

/* An epoch of each trial in turn, until all have ended. */
static void train_in_turn(const struct rank_trials *trials)
{
    int running = trials->count;
    while (running > 0) {
        running = 0;
        for (int i = 0; i < trials->count; i++) {
            struct outcome *outcome = &trials->outcomes[i];
            if (outcome->status != RUN_GOING)
                continue;
            outcome->status = trainer_epoch(trials->trainers[i], &outcome->error);
            if (outcome->status == RUN_FAILED)
                report_failure(trials, i);
            running += outcome->status == RUN_GOING;
            if (outcome->status == RUN_STOPPED) {
                save_others(trials);
                return;
            }
        }
    }
}

/* An epoch of each trial, side by side, until all have ended. */
static void train_at_once(const struct rank_trials *trials)
{
    for (;;) {
        struct trainer *trainers[MOST_TRIALS];
        struct outcome *outcomes[MOST_TRIALS];
        int going = 0;
        bool stopped = false;
        for (int i = 0; i < trials->count; i++) {
            stopped |= trials->outcomes[i].status == RUN_STOPPED;
            if (trials->outcomes[i].status == RUN_GOING)
                trainers[going] = trials->trainers[i], outcomes[going++] = &trials->outcomes[i];
        }
        if (stopped)
            save_others(trials);
        if (stopped || going == 0)
            return;
        trainers_epoch(trainers, going, outcomes);
        for (int i = 0; i < going; i++)
            if (outcomes[i]->status == RUN_FAILED)
                report_failure(trials, (int)(outcomes[i] - trials->outcomes));
    }
}

/* One trial among several that go on while it waits for the GPU. A stop reaches each of them by itself. */
static void train_in_thread(void *context, int i, struct turns *turns)
{
    const struct rank_trials *trials = context;
    struct outcome *outcome = &trials->outcomes[i];
    comm_set_idle(trials->group, turns_pass, turns);
    while (outcome->status == RUN_GOING)
        outcome->status = trainer_epoch(trials->trainers[i], &outcome->error);
    if (outcome->status == RUN_FAILED)
        report_failure(trials, i);
}

/* Whether trials go on while one waits for the GPU, which one alone does not fill. Not in a group of several ranks,
 * which would have to agree on whose turn it is; nor by an engine that can train several at once, as its trials share
 * what threads must not touch at the same time. */
static bool waits_overlap(const struct rank_trials *trials)
{
    return trials->count > 1 && trials->engine->on_gpu && trials->engine->at_once == NULL &&
           comm_size(trials->group) == 1;
}

void train_trials(const struct rank_trials *trials)
{
    if (trainer_at_once(trials->trainers[0], trials->count) > 1) {
        train_at_once(trials);
    } else if (waits_overlap(trials)) {
        turns_run(trials->count, train_in_thread, (void *)trials);
        comm_set_idle(trials->group, NULL, NULL);
    } else {
        train_in_turn(trials);
    }
}
