/* pass.h - the lessons, once, by a group of ranks: each alone, or all together. */
#ifndef DTRAIN_VERIFY_PASS_H
#define DTRAIN_VERIFY_PASS_H

#include <signal.h>

#include "blame.h"
#include "engine.h"
#include "lesson.h"

/* The first thing that was wrong with a rank, and how many there were. Plain data: ranks tell each other. */
struct finding {
    int times;
    struct blame blame;
    int round, lesson, core; /* from 0; core -1: any */
    bool together;
    unsigned step;
    uint64_t got, wanted; /* digests */
};

/* All that the passes of a rank have in common. */
struct verify {
    struct dataset data[LESSONS];
    struct lesson_pictures pictures;
    struct lesson_state before, after;
    uint32_t order[sizeof((struct lesson_pictures *)0)->train / RECORD_BYTES];
    const struct engine_ops *ops;
    enum precision precision;
    const volatile sig_atomic_t *stop; /* this rank's wish to end */
    bool stopped;                      /* some rank's, once all know: or the time was over in the first round */
    double end;                        /* clock_seconds when that is; HUGE_VAL: the first round takes what it takes */
    bool is_cut;                       /* it was, on some rank, and no rank wished to end */
    int round, core;
    int lesson, step;      /* that are under way; -1: between two lessons */
    struct engine *engine; /* of that lesson */
    uint64_t steps;        /* done so far, in all passes */
    uint64_t wrong;        /* how many of these this rank found wrong */
    uint64_t wrong_at;     /* `steps` when it found the last */
    struct finding finding;
    int64_t *terms; /* a copy of engine->sums->terms from before the sum, where the plain step is done (step.h) */
};

/* A group of ranks, and an engine of theirs for each lesson. */
struct pass {
    struct verify *verify;
    struct comm *comm;
    bool together;
    struct engine *engines[LESSONS];
    uint64_t digests[LESSON_STEPS]; /* as they came out when they were last right */
    bool done;                      /* all lessons, once: digests are what an engine without known answers is held to */
    uint64_t steps;                 /* done so far */
};

/* Collective over comm. choices: as in engine_setup. */
bool pass_open(struct pass *pass, struct verify *verify, struct comm *comm, const struct cJSON *choices,
               struct error *error);
void pass_close(struct pass *pass);

/* Collective: every lesson, but for the rest of one that goes wrong. Ends early once a rank wishes to. */
void pass_run(struct pass *pass);

#endif
