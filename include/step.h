/* step.h - steps of training: the plain one, gradient - sum over the ranks - update, or the engine's own way. */
#ifndef DTRAIN_STEP_H
#define DTRAIN_STEP_H

#include "engine.h"

/* Collective over the engine's comm: one step of the span or more, none if it is refused (report->not_finite). The
 * trainer calls it until the span is done. */
void step_train(struct engine *engine, const struct span *span, struct train_report *report);

/* The same for the first of several engines that were opened beside each other: as many at once as it suits them, at
 * least one. Returns how many; the rest are as they were. */
int step_train_team(struct engine *const *engines, int count, const struct span *spans, struct train_report *reports);

/* Of `count` engines beside each other, how many are best trained at once, at least one: 1, and they take turns. */
int step_at_once(struct engine *engine, int count);

/* initial * gamma^decays, by the multiplications of binary powers from the lowest on: the same bits everywhere, where
 * pow differs among libraries and processors. */
double step_learning_rate(double initial, double gamma, uint64_t decays);

#endif
