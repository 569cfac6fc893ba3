#include "trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "exact_sum.h"
#include "memory.h"
#include "trainer_private.h"

static struct terms make_terms(const struct trainer_setup *setup)
{
    struct terms terms = {0};
    snprintf(run_add_term(&terms, "net", "net")->value, VALUE_BYTES, "%c", setup->trial->net.name);
    run_print_number(setup->trial->net.p_conv, run_add_term(&terms, "p_conv", "p-conv")->value);
    run_print_number(setup->trial->net.p_fc, run_add_term(&terms, "p_fc", "p-fc")->value);
    snprintf(run_add_term(&terms, "train_count", "data with a training set of")->value, VALUE_BYTES, "%zu",
             setup->data->train.count);
    snprintf(run_add_term(&terms, "data_hash", "data with xxh64")->value, VALUE_BYTES, "%016llx",
             (unsigned long long)setup->data->hash);
    options_terms(&setup->trial->options, &terms);
    return terms;
}

/* --- opening -------------------------------------------------------------------------------------- */

static bool open_engine(struct trainer *trainer, struct error *error)
{
    const struct trainer_setup *setup = &trainer->setup;
    cJSON *before = NULL; /* run.json of a run that goes on: with the same choices */
    const cJSON *choices = NULL;
    if (trainer->leader) {
        comm_away(setup->comm);
        choices = run_files_choices(&trainer->files, &before);
        comm_back(setup->comm);
    }
    struct engine_setup engine = {
        .data = setup->data,
        .comm = setup->comm,
        .masks = masks_make(setup->trial->options.seed, setup->trial->net.p_conv, setup->trial->net.p_fc),
        .batch_size = setup->trial->options.batch_size,
        .momentum = (float)setup->trial->options.momentum,
        .precision = engine_precision(setup->trial->options.precision),
        .choices = choices,
        .beside = setup->beside != NULL ? setup->beside->engine : NULL,
    };
    trainer->engine = setup->engine->open(&engine, error);
    cJSON_Delete(before);
    return trainer->engine != NULL;
}

static void check_data(struct trainer *trainer, struct error *error)
{
    comm_away(trainer->setup.comm);
    dataset_is_unchanged(trainer->setup.data, error);
    comm_back(trainer->setup.comm);
}

struct trainer *trainer_open(const struct trainer_setup *setup, struct error *error)
{
    struct trainer *trainer = memory_allocate(1, sizeof *trainer, "a trainer");
    trainer->setup = *setup;
    trainer->leader = comm_rank(setup->comm) == 0;
    trainer->terms = make_terms(setup);
    trainer->files.saved_step = UINT64_MAX;
    trainer->state.weights = memory_allocate(LENET5_WEIGHTS, sizeof *trainer->state.weights, "the weights");
    trainer->state.velocity = memory_allocate(LENET5_WEIGHTS, sizeof *trainer->state.velocity, "the momentum");
    trainer->order = memory_allocate(setup->data->train.count, sizeof *trainer->order, "the order of an epoch");
    if (setup->engine->on_gpu)
        trainer->order_ahead = memory_allocate(setup->data->train.count, sizeof *trainer->order, "the next one");
    trainer->ahead = UINT64_MAX;
    if (trainer->leader) {
        comm_away(setup->comm);
        run_files_open(&trainer->files, setup->directory, &setup->trial->options, &trainer->terms,
                       setup->data->train.count, &trainer->state, error);
        comm_back(setup->comm);
    }
    if (comm_agree(setup->comm, error))
        open_engine(trainer, error);
    if (trainer->engine != NULL && setup->engine->on_gpu) /* the images were just copied: are they those that agreed? */
        check_data(trainer, error);
    if (!comm_agree(setup->comm, error)) {
        trainer_close(trainer);
        return NULL;
    }
    comm_broadcast(setup->comm, &trainer->state.progress, sizeof trainer->state.progress, 0);
    comm_broadcast(setup->comm, trainer->state.weights, LENET5_WEIGHTS * sizeof(float), 0);
    comm_broadcast(setup->comm, trainer->state.velocity, LENET5_WEIGHTS * sizeof(float), 0);
    trainer->engine->ops->write(trainer->engine, trainer->state.weights, trainer->state.velocity);
    return trainer;
}

void trainer_begin(struct trainer *trainer, struct error *error)
{
    if (trainer->leader) {
        comm_away(trainer->setup.comm);
        run_files_begin(&trainer->files, trainer->setup.description, trainer->setup.trial, &trainer->terms,
                        trainer->engine, trainer->state.progress.epoch, error);
        comm_back(trainer->setup.comm);
    }
    comm_agree(trainer->setup.comm, error);
}

void trainer_close(struct trainer *trainer)
{
    if (trainer->engine != NULL)
        trainer->engine->ops->close(trainer->engine);
    comm_away(trainer->setup.comm);
    run_files_close(&trainer->files);
    comm_back(trainer->setup.comm);
    free(trainer->order_ahead);
    free(trainer->order);
    free(trainer->state.velocity);
    free(trainer->state.weights);
    free(trainer);
}

/* --- telling -------------------------------------------------------------------------------------- */

void trainer_read_clock(struct trainer *trainer)
{
    double time = clock_seconds();
    trainer->state.progress.seconds += time - trainer->mark;
    trainer->mark = time;
}

void trainer_report(struct trainer *trainer, enum event_kind kind, const struct epoch_metrics *metrics)
{
    const struct progress *progress = &trainer->state.progress;
    if (!trainer->leader)
        return;
    struct event event = {
        .kind = kind,
        .trial = trainer->setup.index,
        .epochs_done = (double)progress->epoch + (double)progress->in_epoch / (double)trainer->setup.data->train.count,
        .images_per_second = trainer->images_per_second,
        .best_test = progress->best_test,
    };
    if (progress->in_epoch > 0)
        event.loss = (double)progress->loss * EXACT_UNIT / (double)progress->in_epoch;
    if (metrics != NULL)
        event.metrics = *metrics;
    trainer->setup.report(trainer->setup.context, &event);
}

/* --- saving --------------------------------------------------------------------------------------- */

bool trainer_compare_replicas(struct trainer *trainer, struct error *error)
{
    int odd;
    struct comm *comm = trainer->setup.comm;
    const struct run_state *state = &trainer->state;
    trainer->engine->ops->read(trainer->engine, state->weights, state->velocity);
    if (comm_same(comm, lenet5_digest(state->weights), &odd) && comm_same(comm, lenet5_digest(state->velocity), &odd))
        return true;
    return error_set(
        error, EXIT_DIVERGED,
        "%s: after step %llu the weights or the momentum of rank %d (host %s) differ from the other replicas'; "
        "go on from the last checkpoint with --resume",
        trainer->setup.trial->name, (unsigned long long)trainer->state.progress.step, comm_world_rank(comm, odd),
        comm_host_name(comm, odd));
}

bool trainer_trust_data(struct trainer *trainer, struct error *error)
{
    if (!trainer->setup.engine->on_gpu) /* which has a copy */
        check_data(trainer, error);
    return comm_agree(trainer->setup.comm, error);
}

enum { SECONDS_BETWEEN_SAVES = 1 }; /* an epoch may take 7 ms, and a disk as long */

bool trainer_save(struct trainer *trainer, struct error *error)
{
    if (!trainer_trust_data(trainer, error) || !trainer_compare_replicas(trainer, error))
        return false;
    if (trainer->leader && !trainer->files.saved) {
        comm_away(trainer->setup.comm);
        run_files_save(&trainer->files, &trainer->terms, &trainer->state, error);
        comm_back(trainer->setup.comm);
    }
    trainer->next_save = clock_seconds() + SECONDS_BETWEEN_SAVES;
    return comm_agree(trainer->setup.comm, error);
}

/* --- asking ------------------------------------------------------------------------------------- */

const struct progress *trainer_progress(const struct trainer *trainer)
{
    return &trainer->state.progress;
}

uint64_t trainer_digest(struct trainer *trainer)
{
    trainer->engine->ops->read(trainer->engine, trainer->state.weights, NULL);
    return lenet5_digest(trainer->state.weights);
}
