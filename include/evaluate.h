/* evaluate.h - accuracy and loss in predict mode, on the training set and the test set. */
#ifndef DTRAIN_EVALUATE_H
#define DTRAIN_EVALUATE_H

#include <signal.h>
#include <stdbool.h>

#include "comm.h"
#include "engine.h"

struct accuracy {
    double train, test; /* per cent */
    double test_loss;   /* mean */
};

/* Collective: rank 0 alone evaluates, or every rank its share; the numbers are the same bits either way.
 * Returns false on every rank when a stop was asked for meanwhile (*accuracy is then not set). */
bool evaluate(struct engine *engine, bool on_all_ranks, const volatile sig_atomic_t *stop,
              struct accuracy *accuracy);

#endif
