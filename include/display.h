/* display.h - what a person sees while nets train: a line an epoch, and on a terminal a progress line. */
#ifndef DTRAIN_DISPLAY_H
#define DTRAIN_DISPLAY_H

#include <stdbool.h>

#include "options.h"
#include "run.h"

struct display {
    const struct trial *trials;
    int count;
    int terminal;                   /* a descriptor, for its width; -1: it is not known */
    bool progress;                  /* draw the progress line */
    double goal;                    /* epochs a trial is to have at the end */
    struct event last[MOST_TRIALS]; /* the newest of each trial */
    double began;                   /* seconds on clock.h's clock */
    double done_at_beginning;       /* epochs of all trials */
};

/* `when` is --progress: "always", "never", or "auto": when standard output is a terminal
 * that is not dumb. display_close gives back what this takes. */
struct display display_open(const struct trial *trials, int count, double goal, const char *when);

/* From here on time counts; done[i]: epochs that trial i has already. */
void display_begin(struct display *display, const double *done);

/* Prints `epoch: 12 time: 1.42 loss: 1.2345` for an epoch, redraws the progress line for a step. */
void display_event(struct display *display, const struct event *event);

/* Prints a line of its own, above the progress line. */
void display_line(struct display *display, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Takes the progress line away. */
void display_close(struct display *display);

#endif
