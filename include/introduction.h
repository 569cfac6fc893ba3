/* introduction.h - what a run says before its first epoch: nets, ranks, engine, data, files, GPUs, what it resumes. */
#ifndef DTRAIN_INTRODUCTION_H
#define DTRAIN_INTRODUCTION_H

#include "comm.h"
#include "dataset.h"
#include "devices.h"
#include "display.h"
#include "engine.h"
#include "run.h"
#include "trials.h"

struct introduction {
    const struct options *options;
    const struct trial *trials;
    const struct outcome *outcomes; /* of each trial: where it stands */
    int count;                      /* of trials */
    const struct comm *world, *group;
    const struct engine_ops *engine;
    const char *engine_reason;    /* why it was chosen; "" */
    const struct device *devices; /* every rank's; NULL: the engine is on CPUs */
    const struct dataset *data;
    const char *directory;       /* of the files */
    int trials_of_rank, at_once; /* of a rank's trials as many are trained at once */
};

/* On world rank 0 alone. */
void introduction_print(const struct introduction *run, struct display *display);

#endif
