/* step.h - steps of training: the plain one, gradient - sum over the ranks - update, or the engine's own way. */
#ifndef DTRAIN_STEP_H
#define DTRAIN_STEP_H

#include "engine.h"

/* Collective over the engine's comm: at least one step of the span; the trainer calls it until the span is done. */
void step_train(struct engine *engine, const struct span *span, struct train_report *report);

#endif
