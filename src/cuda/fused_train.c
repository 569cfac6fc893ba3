/* Training of the fused engine: one net or several in a launch. */
#include <cuda_runtime_api.h>

#include "check.h"
#include "exact_sum.h"
#include "fused_private.h"
#include "philox.h"
#include "range.h"
#include "sampler.h"

/* --- launches -------------------------------------------------------------------------------------------------- */

static size_t tiles_of_rank(const struct engine_setup *setup)
{
    size_t ranks = (size_t)comm_size(setup->comm);
    return ((setup->batch_size + TILE - 1) / TILE + ranks - 1) / ranks; /* at most */
}

/* A net's run of launches: that of a span's steps, or of a part of a single one. */
static struct fused_run begin_run(struct fused *fused, const struct span *span)
{
    const struct engine_setup *setup = &fused->base.setup;
    size_t batch = setup->batch_size, rest = (span->end - span->first) % batch;
    struct fused_run run = {
        .records = fused->device->queue.train,
        .order = fused->order,
        .trouble = &fused->device->pinned->trouble,
        .stop = span->stop != NULL ? &fused->device->queue.words->stop : NULL,
        .seed = setup->masks.seed,
        .step = span->step,
        .momentum = setup->momentum,
        .learning_rate = span->learning_rate,
        .unit = {EXACT_UNIT * (1 / (double)batch), rest > 0 ? EXACT_UNIT * (1 / (double)rest) : 0},
        .batch = (uint32_t)batch,
        .position = (uint32_t)span->first,
        .end = (uint32_t)span->end,
        .rank = (uint32_t)comm_rank(setup->comm),
        .ranks = (uint32_t)comm_size(setup->comm),
    };
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++) {
        run.threshold[layer] = philox_threshold(setup->masks.p[layer]);
        run.scale[layer] = setup->masks.scale[layer];
    }
    return run;
}

/* The GPU is divided evenly: each net has groups of its own, and what belongs to them. No more than are needed for the
 * busiest to have as few tiles. */
static void divide(struct fused_team *team)
{
    struct fused_device *device = team->device;
    size_t groups = device->peers != NULL ? device->least_groups : device->groups; /* peers have as many blocks */
    size_t tiles = tiles_of_rank(&team->nets[0]->base.setup);
    groups /= (size_t)team->count;
    size_t each = (tiles + groups - 1) / groups;
    groups = (tiles + each - 1) / each;
    for (int i = 0; i < team->count; i++) {
        struct fused_run *run = &team->runs[i];
        run->groups = (uint32_t)groups;
        run->sums = device->sums + i * FUSED_SUMS_PITCH;
        run->sums_pitch = (uint32_t)(team->count * FUSED_SUMS_PITCH);
        run->mail = (char *)device->mail + (size_t)i * fused_mail_bytes(run->groups);
        run->arrived = device->arrived + (size_t)i * fused_arrived_bytes(run->groups) / sizeof *run->arrived;
    }
}

void fused_begin(struct fused_team *team, struct engine *const *engines, int count, const struct span *spans)
{
    team->device = fused_of(engines[0])->device;
    team->count = count;
    for (int i = 0; i < count; i++) {
        struct fused *fused = team->nets[i] = fused_of(engines[i]);
        team->steps[i] = span_steps(&spans[i], engines[i]->setup.batch_size);
        team->runs[i] = begin_run(fused, &spans[i]);
        CUDA_CHECK(cudaMemsetAsync(fused->state[fused->now], 0, sizeof *fused->state[0], team->device->queue.stream));
    }
    divide(team);
    CUDA_CHECK(cudaMemsetAsync(team->device->sums, 0, 3 * (size_t)count * FUSED_SUMS_PITCH * sizeof *team->device->sums,
                               team->device->queue.stream));
}

uint32_t fused_take_rounds(struct fused_device *device, uint32_t count)
{
    if (UINT32_MAX - device->round < count) { /* then numbers begin anew, and no old mail may have one of them */
        CUDA_CHECK(cudaMemsetAsync(device->mail, 0, fused_mail_bytes(device->groups), device->queue.stream));
        device->round = 1;
    }
    device->round += count;
    return device->round - count;
}

void fused_launch(struct fused_team *team)
{
    struct fused_device *device = team->device;
    cudaStream_t stream = device->queue.stream;
    uint32_t nets = (uint32_t)team->count, rounds = 0;
    for (uint32_t i = 0; i < nets; i++) {
        struct fused *fused = team->nets[i];
        struct fused_run *run = &team->runs[i];
        int now = fused->now, next = 1 - now;
        run->weights = fused->weights[now], run->new_weights = fused->weights[next];
        run->velocity = fused->velocity[now], run->new_velocity = fused->velocity[next];
        run->before = fused->state[now], run->after = fused->state[next];
        fused->now = next;
        rounds = fused_rounds(run) > rounds ? fused_rounds(run) : rounds;
    }
    uint32_t first = fused_take_rounds(device, rounds);
    for (uint32_t i = 0; i < nets; i++)
        team->runs[i].round = first;
    CUDA_CHECK(cudaMemsetAsync(device->arrived, 0, nets * fused_arrived_bytes(team->runs[0].groups), stream));
    CUDA_CHECK(team->runs[0].clocks != NULL ? fused_train_by_clocks(team->runs, stream)
                                            : fused_train(team->runs, nets, stream));
}

/* --- training -------------------------------------------------------------------------------------------------- */

/* Step i of each net that has one, which opens with the update of the one before; the launch after a net's last step
 * does that alone, and later ones nothing. */
static void queue_step(struct fused_team *team, size_t i)
{
    for (int k = 0; k < team->count; k++)
        team->runs[k].steps = i < team->steps[k], team->runs[k].buffer = (uint32_t)(i % 3);
    fused_launch(team);
    for (int k = 0; k < team->count; k++) {
        struct fused_run *run = &team->runs[k];
        uint32_t left = run->end - run->position, samples = left < run->batch ? left : run->batch;
        run->pending = run->steps != 0 ? samples : 0;
        run->position += run->pending, run->step += run->steps;
    }
}

/* A launch a step. Those after a stop or a refusal do nothing to that net. */
static void queue_steps(struct fused_team *team, size_t most, const volatile sig_atomic_t *stop)
{
    struct queue *queue = &team->device->queue;
    size_t numbers = (size_t)team->count * FUSED_SUMS_PITCH;
    for (size_t i = 0; i <= most; i++) {
        queue_keep_pace(queue, i, stop);
        queue_step(team, i);
        if (i < most)
            comm_sum_on_device(queue->comm, team->device->sums + i % 3 * numbers, numbers, queue->stream);
    }
}

static void train(struct fused_team *team, const volatile sig_atomic_t *stop)
{
    size_t most = 0;
    team->device->queue.words->stop = *stop;
    for (int i = 0; i < team->count; i++)
        most = team->steps[i] > most ? team->steps[i] : most;
    if (comm_size(team->device->queue.comm) > 1 && team->device->peers == NULL) {
        queue_steps(team, most, stop);
        return;
    }
    for (int i = 0; i < team->count; i++) {
        struct fused_run *run = &team->runs[i];
        run->steps = (uint32_t)team->steps[i], run->closes = 1;
        run->peers = team->device->peers != NULL ? team->device->peers + i : NULL;
    }
    fused_launch(team);
}

static void report_state(const struct fused_state *done, const struct span *span, size_t batch,
                         struct train_report *report)
{
    *report = (struct train_report){
        .steps = done->applied,
        .samples = span_samples(span, batch, done->applied),
        .loss = done->loss,
        .stopped = done->stopped,
        .not_finite = done->not_finite,
    };
}

void fused_train_several(struct engine *const *engines, int count, const struct span *spans,
                         struct train_report *reports)
{
    struct fused_team team;
    range_begin("training steps");
    fused_begin(&team, engines, count, spans);
    train(&team, spans[0].stop);
    struct fused_state *states = team.device->pinned->states;
    for (int i = 0; i < count; i++)
        CUDA_CHECK(cudaMemcpyAsync(&states[i], team.nets[i]->state[team.nets[i]->now], sizeof *states,
                                   cudaMemcpyDefault, team.device->queue.stream));
    for (int i = 0; i < count; i++)
        if (spans[i].meanwhile != NULL)
            spans[i].meanwhile(spans[i].context);
    queue_finish(&team.device->queue, spans[0].stop);
    range_end();
    for (int i = 0; i < count; i++)
        report_state(&states[i], &spans[i], engines[i]->setup.batch_size, &reports[i]);
}

bool fused_train_alone(struct engine *engine, const struct span *span, struct train_report *report)
{
    if (comm_sums_by_host(engine->setup.comm))
        return false;
    fused_train_several(&engine, 1, span, report);
    return true;
}

/* Of a step's tiles the busiest of a net's g groups has tiles / g, rounded up, one after the other. As many nets are
 * taken at once as make that least a net; of equals the most, as nets do not wait for each other. Three nets of 16
 * tiles on 16 groups: two at once take the time of 2 tiles, then the third that of 1; all three at once, of 4. */
int fused_at_once(struct engine *engine, int count)
{
    size_t groups = fused_of(engine)->device->least_groups, tiles = tiles_of_rank(&engine->setup);
    size_t best = 1, best_tiles = (tiles + groups - 1) / groups; /* of the busiest group */
    for (size_t nets = 2; nets <= (size_t)count && nets <= groups && nets <= FUSED_NETS; nets++) {
        size_t each = groups / nets, most_tiles = (tiles + each - 1) / each;
        if (most_tiles * best <= best_tiles * nets)
            best = nets, best_tiles = most_tiles;
    }
    return comm_sums_by_host(engine->setup.comm) ? 1 : (int)best;
}

/* --- the plain step: sums by way of the host --------------------------------------------------------------------- */

void fused_gradient(struct engine *engine, uint64_t step, size_t first, size_t end)
{
    struct span span = {.step = step, .first = first, .end = end};
    struct fused_team team;
    fused_begin(&team, &engine, 1, &span);
    team.runs[0].steps = 1;
    fused_launch(&team);
    queue_finish(&team.device->queue, NULL);
    queue_copy(&team.device->queue, engine->sums->terms, team.device->sums, FUSED_SUMS * sizeof(int64_t));
}

void fused_update(struct engine *engine, float learning_rate, size_t samples)
{
    struct span span = {.end = samples, .learning_rate = learning_rate};
    struct fused_team team;
    fused_begin(&team, &engine, 1, &span);
    team.runs[0].buffer = 1, team.runs[0].pending = (uint32_t)samples;
    queue_copy(&team.device->queue, team.device->sums, engine->sums->totals, FUSED_SUMS * sizeof(int64_t));
    fused_launch(&team);
    queue_finish(&team.device->queue, NULL);
}
