/* evaluate.h - accuracy and loss in predict mode, on the training set and the test set. */
#ifndef DTRAIN_TRAINING_EVALUATE_H
#define DTRAIN_TRAINING_EVALUATE_H

#include <signal.h>
#include <stdbool.h>

#include "comm.h"
#include "engine.h"

struct accuracy {
    double train, test; /* per cent */
    double test_loss;   /* mean */
};

enum evaluate_status { EVALUATE_DONE, EVALUATE_STOPPED, EVALUATE_NOT_FINITE };

/* Collective: rank 0 alone evaluates, or every rank its share; the numbers are the same bits either way. All
 * ranks return the same; *accuracy is set when DONE. STOPPED: a rank that evaluates was asked to stop. */
enum evaluate_status evaluate(struct engine *engine, bool on_all_ranks, const volatile sig_atomic_t *stop,
                              struct accuracy *accuracy);

#endif
