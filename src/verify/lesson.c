#include "lesson.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "memory.h"
#include "synthetic.h"

const struct lesson lessons[LESSONS] = {
    {'A', 33, 250, 60},   /* the last batch of an epoch has 19 samples */
    {'B', 47, 250, 60},   /* 15 */
    {'C', 26, 250, 60},   /* 16 */
    {'D', 40, 250, 60},   /* 10 */
    {'D', 1000, 1024, 4}, /* 24 */
};

size_t lesson_offset(int lesson)
{
    size_t at = 0;
    for (int i = 0; i < lesson; i++)
        at += lessons[i].steps;
    return at;
}

struct masks lesson_masks(const struct lesson *lesson)
{
    const struct net *net = &lenet5_nets[lesson->net - 'A'];
    return masks_make(LESSON_SEED, net->p_conv, net->p_fc);
}

void lesson_draw(struct lesson_pictures *pictures)
{
    for (uint32_t i = 0; i < sizeof pictures->train / RECORD_BYTES; i++)
        synthetic_draw(false, i, pictures->train[i]);
    for (uint32_t i = 0; i < sizeof pictures->test / RECORD_BYTES; i++)
        synthetic_draw(true, i, pictures->test[i]);
}

void lesson_data(const struct lesson *lesson, const struct lesson_pictures *pictures, struct dataset *data)
{
    size_t test = sizeof pictures->test / RECORD_BYTES;
    *data = (struct dataset){
        .directory = "drawn",
        .train = {.count = lesson->pictures, .per_file = lesson->pictures, .files = {pictures->train[0]}},
        .test = {.count = test, .per_file = test, .files = {pictures->test[0]}},
    };
}

struct lesson_batch lesson_batch(const struct lesson *lesson, unsigned step)
{
    size_t in_epoch = (lesson->pictures + lesson->batch - 1) / lesson->batch, first = step % in_epoch * lesson->batch;
    size_t end = first + lesson->batch < lesson->pictures ? first + lesson->batch : lesson->pictures;
    return (struct lesson_batch){step, step / in_epoch, first, end, end == lesson->pictures};
}

void lesson_begin(struct lesson_state *state)
{
    memset(state, 0, sizeof *state);
    lenet5_initialise(LESSON_SEED, state->weights);
}

uint64_t lesson_digest(const struct lesson_state *state)
{
    return XXH64(state, sizeof *state, 0);
}

static void define_tile(const struct dataset *data, const uint32_t *order, const struct masks *masks,
                        const struct lesson_batch *batch, size_t position, const float *weights,
                        struct definition_sums *sums)
{
    size_t left = batch->end - batch->first - position, count = left < TILE ? left : TILE;
    const uint8_t *records[TILE];
    struct sample_mask drawn[TILE];
    for (size_t s = 0; s < count; s++)
        records[s] = split_record(&data->train, order[batch->first + position + s]);
    masks_draw(masks, batch->step, (uint32_t)position, (uint32_t)count, drawn);
    definition_tile(weights, (int)count, records, drawn, masks->scale, sums);
}

/* Adds the sums of a rank's share to those of the rest of the batch: integers, whose order does not matter. */
static void add(const struct definition_sums *share, struct definition_sums *all)
{
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        all->gradient[i] += share->gradient[i];
    all->loss += share->loss;
    all->refused += share->refused;
}

void lesson_define(const struct lesson *lesson, const struct dataset *data, const uint32_t *order,
                   const struct lesson_batch *batch, size_t from, size_t to, struct lesson_state *state,
                   struct definition_sums sums[2], void (*alive)(void *context), void *context)
{
    const struct masks masks = lesson_masks(lesson);
    memset(sums, 0, 2 * sizeof *sums);
    for (size_t position = 0; position < batch->end - batch->first; position += TILE) {
        bool in_share = position >= from && position < to;
        define_tile(data, order, &masks, batch, position, state->weights, &sums[in_share ? 0 : 1]);
        alive(context);
    }
    add(&sums[0], &sums[1]);
    definition_update(&sums[1], batch->end - batch->first, LESSON_RATE, LESSON_MOMENTUM, state->velocity,
                      state->weights);
    state->loss = sums[1].loss;
    if (!batch->ends_epoch)
        return;
    struct definition_sums *evaluation = memory_allocate(1, sizeof *evaluation, "an evaluation by definition");
    state->test_correct = 0;
    for (size_t i = 0; i < data->test.count; i++)
        definition_evaluate(state->weights, split_record(&data->test, i), evaluation, &state->test_correct);
    state->test_loss = evaluation->loss;
    free(evaluation);
}
