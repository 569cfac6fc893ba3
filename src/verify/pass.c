#include "pass.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "sampler.h"
#include "step.h"

bool pass_open(struct pass *pass, struct verify *verify, struct comm *comm, const struct cJSON *choices,
               struct error *error)
{
    pass->verify = verify;
    pass->comm = comm;
    pass->together = comm_size(comm) > 1;
    for (int i = 0; i < LESSONS; i++) {
        struct engine_setup setup = {
            .data = &verify->data[i],
            .comm = comm,
            .masks = lesson_masks(&lessons[i]),
            .batch_size = lessons[i].batch,
            .momentum = LESSON_MOMENTUM,
            .precision = verify->precision,
            .choices = choices,
        };
        pass->engines[i] = verify->ops->open(&setup, error);
        if (!comm_agree(comm, error))
            return false;
    }
    return true;
}

void pass_close(struct pass *pass)
{
    for (int i = 0; i < LESSONS; i++)
        if (pass->engines[i] != NULL)
            pass->engines[i]->ops->close(pass->engines[i]);
}

/* --- a step ------------------------------------------------------------------------------------------- */

/* The plain step, with a look at this rank's terms on the way. False: it met what is not finite. */
static bool step_apart(struct verify *verify, const struct lesson_batch *batch, int64_t *loss)
{
    struct engine *engine = verify->engine;
    engine->ops->gradient(engine, batch->step, batch->first, batch->end);
    memcpy(verify->terms, engine->sums->terms, engine->sums->count * sizeof *verify->terms);
    comm_sum(engine->sums);
    const int64_t *slots = engine->sums->totals + engine->n_gradient;
    *loss = slots[SLOT_LOSS];
    if (slots[SLOT_REFUSED] != 0)
        return false;
    engine->ops->update(engine, LESSON_RATE, batch->end - batch->first);
    return true;
}

static bool step_in_one(struct engine *engine, const struct lesson_batch *batch, int64_t *loss)
{
    static const volatile sig_atomic_t never = 0;
    const struct span span = {
        .step = batch->step,
        .first = batch->first,
        .end = batch->end,
        .learning_rate = LESSON_RATE,
        .stop = &never,
    };
    struct train_report report;
    step_train(engine, &span, &report);
    *loss = report.loss;
    return !report.not_finite;
}

static void evaluate(struct engine *engine, struct lesson_state *state)
{
    const struct split *test = &engine->setup.data->test;
    struct evaluation sum = {0};
    engine->ops->evaluate(engine, test, 0, test->count, &sum);
    state->test_loss = sum.loss;
    state->test_correct = sum.correct;
}

/* Takes verify->after to where the engine is after the step. False: it was not applied. */
static bool do_step(struct verify *verify, const struct lesson_batch *batch)
{
    struct lesson_state *after = &verify->after;
    bool applied = verify->engine->ops->train == NULL ? step_apart(verify, batch, &after->loss)
                                                      : step_in_one(verify->engine, batch, &after->loss);
    verify->engine->ops->read(verify->engine, after->weights, after->velocity);
    after->test_loss = verify->before.test_loss;
    after->test_correct = verify->before.test_correct;
    if (batch->ends_epoch)
        evaluate(verify->engine, after);
    return applied;
}

/* --- what is wrong -------------------------------------------------------------------------------------- */

/* Collective: how many ranks have it. */
static int64_t count_ranks(struct comm *comm, bool mine)
{
    int64_t count = mine;
    comm_sum_control(comm, &count, 1, "a count of ranks");
    return count;
}

static void keep(struct verify *verify, const struct finding *finding)
{
    if (verify->finding.times++ == 0) {
        verify->finding = *finding;
        verify->finding.times = 1;
    }
}

/* Whose fault it is. A sum, and the weights it makes, are wrong on every rank as soon as one rank's part is: then those
 * with a fault of their own are named, and nobody else. */
static void blame(struct pass *pass, struct finding *finding, const struct wrong_step *wrong, bool mine)
{
    if (mine)
        finding->blame = blame_step(wrong);
    enum fault fault = finding->blame.fault;
    bool own = fault != FAULT_NONE && fault != FAULT_SUM && fault != FAULT_SUM_OF_LOSSES;
    bool innocent = pass->together && count_ranks(pass->comm, own) > 0 && !own;
    if (mine && !innocent)
        keep(pass->verify, finding);
}

/* Engines without known answers: together all ranks must have the same, and every round what the first had. */
static void compare(struct pass *pass, struct finding *finding, bool mine, int odd)
{
    finding->blame.parameter = -1;
    finding->blame.fault = odd >= 0 ? FAULT_UNLIKE_OTHERS : FAULT_UNLIKE_ITSELF;
    if (odd >= 0 ? odd == comm_rank(pass->comm) : mine)
        keep(pass->verify, finding);
}

/* --- a lesson ------------------------------------------------------------------------------------------- */

/* The digest that a step must have; 0: nobody knows it yet. */
static uint64_t answer(const struct pass *pass, size_t at)
{
    return pass->verify->ops->is_defined ? known_digests[at] : pass->done ? pass->digests[at] : 0;
}

/* Whether the step is right on every rank of the pass. Also learns whether a rank wishes to end, or must. */
static bool check_step(struct pass *pass, const struct lesson_batch *batch, bool applied)
{
    struct verify *verify = pass->verify;
    size_t at = lesson_offset(verify->lesson) + batch->step;
    uint64_t digest = lesson_digest(&verify->after), wanted = answer(pass, at);
    bool mine = !applied || (wanted != 0 && digest != wanted);
    int64_t seen[] = {mine, *verify->stop, verify->round == 0 && clock_seconds() > verify->end};
    int odd = -1;
    if (pass->together)
        comm_sum_control(pass->comm, seen, 3, "the verdict on a step");
    if (pass->together && !verify->ops->is_defined)
        comm_same(pass->comm, digest, &odd);
    verify->is_cut = seen[1] == 0 && seen[2] != 0;
    verify->stopped = seen[1] != 0 || verify->is_cut;
    verify->steps++;
    pass->steps++;
    if (seen[0] == 0 && odd < 0) {
        pass->digests[at] = digest;
        return true;
    }
    verify->wrong += mine;
    verify->wrong_at = verify->steps;
    struct finding finding = {.round = verify->round,
                              .lesson = verify->lesson,
                              .core = verify->core,
                              .together = pass->together,
                              .step = (unsigned)batch->step,
                              .got = digest,
                              .wanted = wanted};
    const struct wrong_step wrong = {&lessons[verify->lesson],
                                     *batch,
                                     &verify->before,
                                     &verify->after,
                                     wanted,
                                     verify->engine,
                                     verify->engine->ops->train == NULL ? verify->terms : NULL,
                                     !applied};
    if (verify->ops->is_defined)
        blame(pass, &finding, &wrong, mine);
    else
        compare(pass, &finding, mine, odd);
    return false;
}

static void run_lesson(struct pass *pass, int lesson)
{
    struct verify *verify = pass->verify;
    struct engine *engine = pass->engines[lesson];
    verify->lesson = lesson;
    verify->engine = engine;
    lesson_begin(&verify->before);
    engine->ops->write(engine, verify->before.weights, verify->before.velocity);
    for (unsigned step = 0; step < lessons[lesson].steps && !verify->stopped; step++) {
        const struct lesson_batch batch = lesson_batch(&lessons[lesson], step);
        verify->step = (int)step;
        comm_set_step(pass->comm, step);
        if (batch.first == 0) {
            sampler_shuffle(LESSON_SEED, batch.epoch, verify->data[lesson].train.count, verify->order);
            engine->ops->begin_epoch(engine, verify->order);
        }
        bool applied = do_step(verify, &batch);
        if (!check_step(pass, &batch, applied))
            return;
        memcpy(&verify->before, &verify->after, sizeof verify->before);
    }
}

void pass_run(struct pass *pass)
{
    for (int i = 0; i < LESSONS && !pass->verify->stopped; i++) {
        run_lesson(pass, i);
        pass->verify->step = -1;
    }
    pass->done = true;
}
