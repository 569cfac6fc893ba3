/* display.h - what a person sees while nets train: a line an epoch; on a terminal a progress line, and of several nets
 * a block an epoch. On world rank 0 alone. */
#ifndef DTRAIN_DISPLAY_H
#define DTRAIN_DISPLAY_H

#include <stdbool.h>

#include "run.h"
#include "trials.h"

struct display {
    const struct trial *trials;
    int count;
    int terminal;                   /* a descriptor, for its width; -1: it is not known */
    bool progress;                  /* draw the progress line */
    double goal;                    /* epochs a trial is to have at the end */
    struct event last[MOST_TRIALS]; /* the newest of each trial */
    double began;                   /* seconds on clock.h's clock */
    double done_at_beginning;       /* epochs of all trials */
    struct rows *rows;              /* where epochs are shown in blocks; else NULL */
    double row_began;               /* when the last block was printed */
};

/* `when` is --progress: "always", "never", or "auto": when standard output is a terminal
 * that is not dumb. display_close gives back what this takes. */
struct display display_open(const struct trial *trials, int count, double goal, const char *when);

/* From here on time counts. Trial i has closed[i] epochs already, and with what it trained of the next done[i]. */
void display_begin(struct display *display, const uint64_t *closed, const double *done);

/* Prints `epoch: 12 time: 1.42 loss: 1.2345` for an epoch, in a block what several nets have of it; redraws the
 * progress line for a step. */
void display_event(struct display *display, const struct event *event);

/* Prints a line of its own, above the progress line. */
void display_line(struct display *display, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Takes the progress line away, and prints the last epoch of nets that are ahead of the last block. */
void display_close(struct display *display);

#endif
