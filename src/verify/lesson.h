/* lesson.h - short trainings with known answers: what --verify has every rank compute.
 *
 * A lesson is a net, a batch size and a number of steps over drawn pictures. kernels/definition says what weights,
 * velocity and losses it leaves after each step; known.c has the digest of that, eight bytes a step. `make known`
 * writes it anew, tests/unit/test_verify.c holds it to the definition.
 */
#ifndef DTRAIN_VERIFY_LESSON_H
#define DTRAIN_VERIFY_LESSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dataset.h"
#include "kernels/definition/definition.h"
#include "lenet5.h"
#include "masks.h"

/* Chosen so that all nets, whole tiles, short ones (of 1, 3, 8, 10 and 15 samples), short last batches, the orders of
 * several epochs and evaluation take part; the last lesson has work for 63 ranks. */
struct lesson {
    char net;
    size_t batch, pictures;
    unsigned steps;
};
enum { LESSONS = 5, LESSON_STEPS = 60 + 60 + 60 + 60 + 4 };
extern const struct lesson lessons[LESSONS];

/* After each step of each lesson, one lesson after the other: lesson_digest. */
extern const uint64_t known_digests[LESSON_STEPS];

/* Where a lesson's first step stands in it. */
size_t lesson_offset(int lesson);

/* How all lessons train. */
#define LESSON_RATE 0.05f
#define LESSON_MOMENTUM 0.9f
enum { LESSON_SEED = 1 };
struct masks lesson_masks(const struct lesson *lesson);

/* The drawn pictures of all lessons, and a lesson's data set among them: the same test set for all. */
struct lesson_pictures {
    uint8_t train[1024][RECORD_BYTES], test[40][RECORD_BYTES];
};
void lesson_draw(struct lesson_pictures *pictures);
void lesson_data(const struct lesson *lesson, const struct lesson_pictures *pictures, struct dataset *data);

/* Which samples a step has: positions [first, end) of the order of an epoch. */
struct lesson_batch {
    uint64_t step, epoch;
    size_t first, end;
    bool ends_epoch;
};
struct lesson_batch lesson_batch(const struct lesson *lesson, unsigned step);

/* What a lesson has come to: all that a digest covers. */
struct lesson_state {
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    int64_t loss, test_loss; /* in EXACT_UNITs: of the step; of the test set when the last epoch ended */
    int64_t test_correct;    /* samples, likewise */
};
void lesson_begin(struct lesson_state *state);
uint64_t lesson_digest(const struct lesson_state *state);

/* A step by definition: takes *state one further, and leaves in sums[0] what the samples at positions from..to of the
 * batch add, whole tiles but for its end, in sums[1] what all of it does. order: of the epoch. alive(context) is called
 * every some milliseconds. */
void lesson_define(const struct lesson *lesson, const struct dataset *data, const uint32_t *order,
                   const struct lesson_batch *batch, size_t from, size_t to, struct lesson_state *state,
                   struct definition_sums sums[2], void (*alive)(void *context), void *context);

#endif
