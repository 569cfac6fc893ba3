/* blame.h - what exactly was wrong about a step, where an engine that follows the definition has left another digest
 * than the known one: found by computing the step once more, as kernels/definition has it, from the state that was
 * right before it. */
#ifndef DTRAIN_VERIFY_BLAME_H
#define DTRAIN_VERIFY_BLAME_H

#include "engine.h"
#include "lesson.h"

/* What of a rank's step was the first to be wrong, in the order in which things are looked at. */
enum fault {
    FAULT_NONE,
    FAULT_UNKNOWN,  /* computed again by definition it is wrong too, or the state before the step is no longer right */
    FAULT_WEIGHT,   /* a weight that the update makes right when it is done again: it went wrong, or memory */
    FAULT_VELOCITY, /* likewise a number of the velocity */
    FAULT_FORWARD,  /* the loss, and with it gradients */
    FAULT_BACKWARD, /* gradients, though the loss is right */
    FAULT_LOSS,     /* the loss alone */
    FAULT_SUM,      /* of the ranks' gradients, though this rank's own are right */
    FAULT_SUM_OF_LOSSES,
    FAULT_EVALUATION, /* the test set's loss; all else is right */
    FAULT_COUNT,      /* the count of right answers in the test set alone */
    FAULT_RESULT,     /* what is left of the step, by an engine that does it in one go: no more is known */
    FAULT_UNLIKE_ITSELF,
    FAULT_UNLIKE_OTHERS, /* of an engine whose bits nobody knows beforehand */
};

/* Plain data. The number that was wrong, and how many of its kind were: the first of its tensor; of gradients the
 * tensor is the first to be computed, the one next to the output. */
struct blame {
    enum fault fault;
    int parameter; /* of lenet5_parameters; -1: a loss */
    uint32_t index, numbers;
    double got, wanted;
};

/* A step that an engine has done, and that is not as it should be. */
struct wrong_step {
    const struct lesson *lesson;
    struct lesson_batch batch;
    const struct lesson_state *before, *after; /* right; as the engine left it */
    uint64_t known;                            /* the digest that it should have */
    const struct engine *engine;
    const int64_t *terms; /* this rank's, as engine->sums->terms were before they were summed; NULL: not known */
    bool refused;         /* for numbers that are not finite: the update did not take place */
};

/* Not collective; takes a millisecond a sample of the batch, and tells the engine's comm that it lives. */
struct blame blame_step(const struct wrong_step *wrong);

/* "backward pass: gradient of conv3.weight[1234] is 0.25, not 0.5, and 17 more" */
void blame_print(const struct blame *blame, char *text, size_t bytes);

#endif
