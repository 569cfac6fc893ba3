#include "blame.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exact_sum.h"
#include "memory.h"
#include "sampler.h"

/* What the step should have come to, and this rank's sums in canonical layout. */
struct case_file {
    const struct wrong_step *wrong;
    struct lesson_state defined;
    struct definition_sums sums[2]; /* of this rank's share, of the batch */
    int64_t terms[LENET5_WEIGHTS], totals[LENET5_WEIGHTS];
    float gradient[LENET5_WEIGHTS]; /* as the update had it */
};

/* By their bits: a NaN is the same as that NaN. */
static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

/* Another wrong number: the first of a tensor stays. */
static void note(struct blame *blame, enum fault fault, int parameter, size_t index, double got, double wanted)
{
    blame->numbers++;
    if (blame->fault != FAULT_NONE)
        return;
    *blame = (struct blame){fault, parameter, (uint32_t)index, blame->numbers, got, wanted};
}

/* Wrong is a number that is neither what it should be, `wanted`, nor what the engine had to make of what it was given,
 * `made`: then what it was given is wrong, and named elsewhere. */
static bool compare(struct blame *blame, enum fault fault, const float *got, const float *made, const float *wanted)
{
    for (int p = 0; p < LENET5_PARAMETERS; p++)
        for (size_t i = 0, at = lenet5_parameters[p].offset; i < lenet5_parameters[p].count; i++, at++)
            if (!same(got[at], made[at]) && !same(got[at], wanted[at]))
                note(blame, fault, p, i, (double)got[at], (double)wanted[at]);
    return blame->fault != FAULT_NONE;
}

/* From the output to the input, as they are computed. */
static bool compare_sums(struct blame *blame, enum fault fault, const int64_t *got, const int64_t *wanted)
{
    for (int p = LENET5_PARAMETERS - 1; p >= 0; p--)
        for (size_t i = 0, at = lenet5_parameters[p].offset; i < lenet5_parameters[p].count; i++, at++)
            if (got[at] != wanted[at])
                note(blame, fault, p, i, (double)got[at] * EXACT_UNIT, (double)wanted[at] * EXACT_UNIT);
    return blame->fault != FAULT_NONE;
}

/* The update once more, with the gradient and the velocity that the engine had: who lied, it or what it was given? */
static bool compare_update(const struct case_file *file, struct blame *blame)
{
    const struct wrong_step *wrong = file->wrong;
    const struct lesson_state *before = wrong->before, *after = wrong->after;
    float *redone = memory_allocate(LENET5_WEIGHTS, sizeof *redone, "an update");
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        redone[i] = fmaf(-LESSON_RATE, after->velocity[i], before->weights[i]);
    bool found = compare(blame, FAULT_WEIGHT, after->weights, redone, file->defined.weights);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        redone[i] = fmaf(LESSON_MOMENTUM, before->velocity[i], file->gradient[i]);
    found = found || compare(blame, FAULT_VELOCITY, after->velocity, redone, file->defined.velocity);
    free(redone);
    return found;
}

static bool compare_gradients(const struct case_file *file, struct blame *blame)
{
    const struct wrong_step *wrong = file->wrong;
    int64_t loss = wrong->terms[wrong->engine->n_gradient + SLOT_LOSS];
    bool forward = loss != file->sums[0].loss;
    if (compare_sums(blame, forward ? FAULT_FORWARD : FAULT_BACKWARD, file->terms, file->sums[0].gradient))
        return true;
    if (forward)
        note(blame, FAULT_LOSS, -1, 0, (double)loss * EXACT_UNIT, (double)file->sums[0].loss * EXACT_UNIT);
    return forward;
}

static bool compare_totals(const struct case_file *file, struct blame *blame)
{
    const struct wrong_step *wrong = file->wrong;
    if (compare_sums(blame, FAULT_SUM, file->totals, file->sums[1].gradient))
        return true;
    int64_t loss = wrong->engine->sums->totals[wrong->engine->n_gradient + SLOT_LOSS];
    if (loss != file->sums[1].loss)
        note(blame, FAULT_SUM_OF_LOSSES, -1, 0, (double)loss * EXACT_UNIT, (double)file->sums[1].loss * EXACT_UNIT);
    return blame->fault != FAULT_NONE;
}

static void compare_evaluation(const struct case_file *file, struct blame *blame)
{
    const struct lesson_state *after = file->wrong->after, *defined = &file->defined;
    if (after->test_loss != defined->test_loss)
        note(blame, FAULT_EVALUATION, -1, 0, (double)after->test_loss * EXACT_UNIT,
             (double)defined->test_loss * EXACT_UNIT);
    else if (after->test_correct != defined->test_correct)
        note(blame, FAULT_COUNT, -1, 0, (double)after->test_correct, (double)defined->test_correct);
}

static void alive(void *comm)
{
    comm_alive(comm);
}

static void define(struct case_file *file)
{
    const struct wrong_step *wrong = file->wrong;
    const struct engine_setup *setup = &wrong->engine->setup;
    size_t from, to;
    sampler_share(wrong->batch.end - wrong->batch.first, comm_rank(setup->comm), comm_size(setup->comm), &from, &to);
    file->defined = *wrong->before;
    lesson_define(wrong->lesson, setup->data, wrong->engine->order, &wrong->batch, from, to, &file->defined, file->sums,
                  alive, setup->comm);
}

static void read_sums(struct case_file *file)
{
    const struct engine *engine = file->wrong->engine;
    engine->ops->read_sums(engine, file->wrong->terms, file->terms);
    engine->ops->read_sums(engine, engine->sums->totals, file->totals);
    exact_sum_read(LENET5_WEIGHTS, file->totals, 1 / (double)(file->wrong->batch.end - file->wrong->batch.first),
                   file->gradient);
}

static void look(struct case_file *file, struct blame *blame)
{
    const struct wrong_step *wrong = file->wrong;
    if (lesson_digest(&file->defined) != wrong->known) {
        blame->fault = FAULT_UNKNOWN;
        return;
    }
    if (wrong->terms == NULL) {
        const struct lesson_state *after = wrong->after, *defined = &file->defined;
        if (!compare(blame, FAULT_RESULT, after->velocity, defined->velocity, defined->velocity) &&
            !compare(blame, FAULT_RESULT, after->weights, defined->weights, defined->weights))
            compare_evaluation(file, blame);
        return;
    }
    read_sums(file);
    if ((wrong->refused || !compare_update(file, blame)) && !compare_gradients(file, blame) &&
        !compare_totals(file, blame))
        compare_evaluation(file, blame);
}

struct blame blame_step(const struct wrong_step *wrong)
{
    struct blame blame = {.parameter = -1};
    struct case_file *file = memory_allocate(1, sizeof *file, "a step by definition");
    file->wrong = wrong;
    define(file);
    look(file, &blame);
    free(file);
    return blame;
}

void blame_print(const struct blame *blame, char *text, size_t bytes)
{
    static const char *const words[] = {
        [FAULT_NONE] = "at a second look every number is right",
        [FAULT_UNKNOWN] = "by definition it comes out wrong here, too: this core, or its memory",
        [FAULT_WEIGHT] = "update or memory: ",
        [FAULT_VELOCITY] = "update or memory: momentum of ",
        [FAULT_FORWARD] = "forward pass: gradient of ",
        [FAULT_BACKWARD] = "backward pass: gradient of ",
        [FAULT_LOSS] = "forward pass: loss",
        [FAULT_SUM] = "sum: gradient of ",
        [FAULT_SUM_OF_LOSSES] = "sum: loss",
        [FAULT_EVALUATION] = "evaluation: loss",
        [FAULT_COUNT] = "evaluation: right answers",
        [FAULT_RESULT] = "weight or momentum of ",
        [FAULT_UNLIKE_ITSELF] = "unlike its first round",
        [FAULT_UNLIKE_OTHERS] = "unlike other ranks",
    };
    int used = snprintf(text, bytes, "%s", words[blame->fault]);
    if (blame->parameter >= 0)
        used += snprintf(text + used, bytes - (size_t)used, "%s[%u]", lenet5_parameters[blame->parameter].name,
                         (unsigned)blame->index);
    if (blame->numbers > 0)
        used += snprintf(text + used, bytes - (size_t)used, " is %.9g, not %.9g", blame->got, blame->wanted);
    if (blame->numbers > 1)
        snprintf(text + used, bytes - (size_t)used, ", and %u more", (unsigned)blame->numbers - 1);
}
