/* step.h - steps of training: the plain one, gradient - sum over the ranks - update, or the engine's own way. */
#ifndef DTRAIN_STEP_H
#define DTRAIN_STEP_H

#include "engine.h"

/* Collective over the engine's comm: at least one step of the span; the trainer calls it until the span is done. */
void step_train(struct engine *engine, const struct span *span, struct train_report *report);

/* The same for each of several engines that were opened beside each other: as many at once as it suits them, in turn. */
void step_train_several(struct engine *const *engines, int count, const struct span *spans,
                        struct train_report *reports);

/* Of `count`, how many that would be; 0: they have no way to do that, and need not be trained side by side. */
int step_at_once(struct engine *engine, int count);

#endif
