#include "rows.h"

#include <stdlib.h>

#include "memory.h"

struct rows {
    const struct trial *trials;
    int count;
    uint64_t closed[MOST_TRIALS]; /* epochs of each trial; UINT64_MAX: it has failed */
    uint64_t taken;
    struct row *first; /* epoch after epoch */
};

struct rows *rows_open(const struct trial *trials, int count, const uint64_t *closed)
{
    struct rows *rows = memory_allocate(1, sizeof *rows, "the table of epochs");
    *rows = (struct rows){.trials = trials, .count = count, .taken = UINT64_MAX};
    for (int i = 0; i < count; i++) {
        rows->closed[i] = closed[i];
        if (rows->closed[i] < rows->taken)
            rows->taken = rows->closed[i];
    }
    return rows;
}

/* The row of an epoch that was not taken yet, made with all before it if need be. */
static struct row *find(struct rows *rows, uint64_t epoch)
{
    struct row **row = &rows->first;
    for (uint64_t e = rows->taken + 1;; row = &(*row)->next, e++) {
        if (*row == NULL) {
            *row = memory_allocate(1, sizeof **row, "a row of the table of epochs");
            (*row)->epoch = e;
        }
        if (e == epoch)
            return *row;
    }
}

static int net_of(const struct trial *trial)
{
    int net = 0;
    while (lenet5_nets[net].name != trial->net.name)
        net++;
    return net;
}

void rows_add(struct rows *rows, const struct event *event)
{
    if (event->kind == EVENT_FAILURE)
        rows->closed[event->trial] = UINT64_MAX;
    if (event->kind != EVENT_EPOCH)
        return;
    const struct epoch_metrics *metrics = &event->metrics;
    struct cell *cell = &find(rows, metrics->epoch)->nets[net_of(&rows->trials[event->trial])];
    cell->closed++;
    cell->loss += metrics->loss;
    if (metrics->checked) {
        cell->checked++;
        cell->train += metrics->train_accuracy;
        cell->test += metrics->test_accuracy;
        cell->best += event->best_test;
    }
    rows->closed[event->trial] = metrics->epoch;
}

struct row *rows_take(struct rows *rows)
{
    struct row *row = rows->first;
    for (int i = 0; i < rows->count && row != NULL; i++)
        if (rows->closed[i] < row->epoch)
            row = NULL;
    if (row != NULL) {
        rows->first = row->next;
        rows->taken = row->epoch;
    }
    return row;
}

uint64_t rows_taken(const struct rows *rows)
{
    return rows->taken;
}

void rows_close(struct rows *rows)
{
    while (rows != NULL && rows->first != NULL) {
        struct row *row = rows->first;
        rows->first = row->next;
        free(row);
    }
    free(rows);
}
