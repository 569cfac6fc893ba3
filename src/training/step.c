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
