/* run.h - what describes a run: its terms, where it stands, what an epoch gave, how it ended. Plain data. */
#ifndef DTRAIN_RUN_H
#define DTRAIN_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* A sum of any number of terms in EXACT_UNITs (exact_sum.h). Aligned like its neighbours, so that no
 * struct has gaps. */
__extension__ typedef __int128 exact_wide __attribute__((aligned(8)));

enum { VALUE_BYTES = 32, MOST_TERMS = 16 };

/* What fixes a run's arithmetic, as text: a checkpoint may only be resumed under the same terms. They are of the net,
 * of the data, and those of the options that options.c flags as terms. */
struct term {
    const char *key;    /* in the checkpoint's metadata */
    const char *option; /* that sets it, for people, without its dashes: "lr" */
    const char *absent; /* what files from before there was the term were written with; NULL: no file may lack it */
    char value[VALUE_BYTES];
};
struct terms {
    int count;
    struct term list[MOST_TERMS];
};

/* Adds a term whose value the caller writes: at most VALUE_BYTES. One more than MOST_TERMS ends the job. */
struct term *run_add_term(struct terms *terms, const char *key, const char *option);

/* The fewest digits that read back as the same number. */
void run_print_number(double number, char text[VALUE_BYTES]);

/* Where a run stands. Best accuracies are -1 before the first check. */
struct progress {
    uint64_t epoch;               /* epochs closed: all steps done, evaluated if due, logged */
    uint64_t step;                /* steps done since the start of training */
    uint64_t in_epoch;            /* training samples of the open epoch already used (all of them: the epoch is
                                     trained but not closed) */
    exact_wide loss;              /* sum of their losses */
    double seconds;               /* spent in this run so far, over all its resumptions */
    double epoch_seconds;         /* of them, in the open epoch */
    double best_train, best_test; /* accuracies, per cent */
};

/* What a closed epoch gave: a line of metrics.jsonl. */
struct epoch_metrics {
    uint64_t epoch, step; /* epochs and steps done, counted from the start of training */
    double loss;          /* mean over the epoch's samples, in train mode */
    double learning_rate;
    double seconds; /* of this epoch's training, without evaluation */
    double images_per_second;
    bool checked;                                    /* the rest is there */
    double train_accuracy, test_accuracy, test_loss; /* per cent, per cent, mean; predict mode */
};

/* What rank 0 of the group tells whoever displays it. */
struct event {
    enum event_kind { EVENT_STEP, EVENT_EPOCH, EVENT_FAILURE, EVENT_STOP, EVENT_END } kind;
    int trial;                    /* index in the study */
    double epochs_done;           /* closed, and the part of the open one */
    double images_per_second;     /* mean of the open epoch so far, of training alone */
    double loss;                  /* EVENT_STEP: mean of the open epoch so far */
    double best_test;             /* per cent; -1 before the first check */
    struct epoch_metrics metrics; /* EVENT_EPOCH */
    char text[500];               /* EVENT_FAILURE: why */
};

enum run_status { RUN_GOING, RUN_DONE, RUN_STOPPED, RUN_FAILED };

/* How a trial ended. */
struct outcome {
    enum run_status status;
    struct progress progress;
    uint64_t digest;    /* of its weights */
    struct error error; /* of one that FAILED */
};

#endif
