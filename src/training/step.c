#include "step.h"

/* gradient - comm_sum - update */
static void train_one(struct engine *engine, const struct span *span, struct train_report *report)
{
    size_t last = span->first + engine->setup.batch_size;
    if (last > span->last)
        last = span->last;

    engine->ops->gradient(engine, span->step, span->first, last);
    engine->sums->terms[engine->n_gradient + SLOT_STOP] = *span->stop;
    comm_sum(engine->sums);
    const int64_t *slots = engine->sums->totals + engine->n_gradient;
    if (slots[SLOT_REFUSED] != 0) {
        report->not_finite = true;
        return;
    }
    engine->ops->update(engine, span->learning_rate, last - span->first);
    report->steps = 1;
    report->samples = last - span->first;
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
    return engine->ops->at_once != NULL ? engine->ops->at_once(engine, count) : 0;
}

void step_train_several(struct engine *const *engines, int count, const struct span *spans,
                        struct train_report *reports)
{
    for (int n, i = 0; i < count; i += n) {
        n = step_at_once(engines[i], count - i);
        if (n > 1) {
            engines[i]->ops->train_several(engines + i, n, spans + i, reports + i);
        } else {
            step_train(engines[i], &spans[i], &reports[i]);
            n = 1;
        }
    }
}
