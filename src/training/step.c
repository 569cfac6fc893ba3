#include "step.h"

/* gradient - comm_sum - update */
static void train_one(struct engine *engine, const struct span *span, struct train_report *report)
{
    size_t end = span->first + engine->setup.batch_size;
    if (end > span->end)
        end = span->end;

    engine->ops->gradient(engine, span->step, span->first, end);
    engine->sums->terms[engine->n_gradient + SLOT_STOP] = *span->stop;
    comm_sum(engine->sums);
    const int64_t *slots = engine->sums->totals + engine->n_gradient;
    if (slots[SLOT_REFUSED] != 0) {
        report->not_finite = true;
        return;
    }
    engine->ops->update(engine, span->learning_rate, end - span->first);
    report->steps = 1;
    report->samples = end - span->first;
    report->loss = slots[SLOT_LOSS];
    report->stopped = slots[SLOT_STOP] != 0;
}

void step_train(struct engine *engine, const struct span *span, struct train_report *report)
{
    *report = (struct train_report){0};
    if (engine->ops->train == NULL || !engine->ops->train(engine, span, report))
        train_one(engine, span, report);
}

int step_at_once(struct engine *engine, int count)
{
    return engine->ops->at_once != NULL ? engine->ops->at_once(engine, count) : 1;
}

int step_train_team(struct engine *const *engines, int count, const struct span *spans, struct train_report *reports)
{
    int team = step_at_once(engines[0], count);
    if (team > 1) {
        engines[0]->ops->train_several(engines, team, spans, reports);
        return team;
    }
    step_train(engines[0], &spans[0], &reports[0]);
    return 1;
}

double step_learning_rate(double initial, double gamma, uint64_t decays)
{
    double rate = initial;
    for (double power = gamma; decays > 0; decays /= 2, power *= power)
        if (decays % 2 != 0)
            rate *= power;
    return rate;
}
