/* rows.h - what several nets have learned by an epoch, gathered from their events until all have closed it: those that
 * train side by side close it at different times.
 */
#ifndef DTRAIN_PROGRAM_ROWS_H
#define DTRAIN_PROGRAM_ROWS_H

#include "run.h"
#include "trials.h"

/* Of a net: the sums over those of its trials, one a seed, that closed the epoch, and that checked then. */
struct cell {
    int closed, checked;
    double loss, train, test, best; /* best: the best test accuracies so far */
};

struct row {
    struct row *next;
    uint64_t epoch;
    struct cell nets[NETS]; /* as in lenet5_nets */
};

/* closed[i]: epochs that trial i has closed already. The caller gives it to rows_close. */
struct rows *rows_open(const struct trial *trials, int count, const uint64_t *closed);

/* Of an EVENT_EPOCH, of the one after those that the trial has closed, what it says; of an EVENT_FAILURE that this
 * trial is not to be waited for. */
void rows_add(struct rows *rows, const struct event *event);

/* The next row that is complete, the caller frees it; NULL: there is none. */
struct row *rows_take(struct rows *rows);

/* The last epoch that was taken. */
uint64_t rows_taken(const struct rows *rows);

void rows_close(struct rows *rows);

#endif
