/* The fused step on the host, all its blocks at once in a random order (tests/support/together), leaves what
 * kernels/definition says, bit for bit: weights, velocity, losses, refusals, checks; on any number of groups and of
 * ranks. `make device` has the same on a GPU, which holds all ranks of a test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataset.h"
#include "exact_sum.h"
#include "guarded.h"
#include "kernels/definition/definition.h"
#include "kernels/fused/fused.h"
#include "philox.h"
#include "synthetic.h"
#include "tests/support/together/together.h"

enum { PICTURES = 256, MOST_GROUPS = 16 };
static const float MOMENTUM = 0.9f, LEARNING_RATE = 0.15f;
static const uint64_t STEP = 1ull << 33 | 5;

struct fixture {
    uint8_t *records; /* (PICTURES, RECORD_BYTES) */
    uint32_t *order;
    int32_t *wish;               /* 1 */
    float first[LENET5_WEIGHTS]; /* weights */
};

/* Weights, velocity, and what a run of steps reports. */
struct outcome {
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
    struct fused_state state;
};

struct training {
    double p_conv, p_fc;
    uint32_t groups, batch, first, last;
    uint64_t seed; /* of the masks */
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->records = guarded_new(PICTURES * RECORD_BYTES, 1);
    f->order = guarded_new(PICTURES * sizeof *f->order, 0);
    for (uint32_t i = 0; i < PICTURES; i++) {
        synthetic_draw(false, i, f->records + (size_t)i * RECORD_BYTES);
        f->order[i] = (i * 91 + 7) % PICTURES;
    }
    f->wish = guarded_new(sizeof *f->wish, 0);
    *f->wish = 1;
    lenet5_initialise(1, f->first);
    assert_int_equal(fused_prepare(), cudaSuccess);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    guarded_free(f->records);
    guarded_free(f->order);
    guarded_free(f->wish);
    free(f);
    return 0;
}

/* --- by definition ---------------------------------------------------------------------------- */

static void define_batch(const struct fixture *f, const struct masks *masks, uint64_t step, uint32_t first,
                         uint32_t count, const float *weights, struct definition_sums *sums)
{
    memset(sums, 0, sizeof *sums);
    for (uint32_t position = 0; position < count; position += TILE) {
        uint32_t samples = count - position < TILE ? count - position : TILE;
        const uint8_t *records[TILE];
        struct sample_mask drawn[TILE];
        for (uint32_t s = 0; s < samples; s++)
            records[s] = f->records + (size_t)f->order[first + position + s] * RECORD_BYTES;
        masks_draw(masks, step, position, samples, drawn);
        definition_tile(weights, (int)samples, records, drawn, masks->scale, sums);
    }
}

static void define(const struct fixture *f, struct training t, struct outcome *defined)
{
    static struct definition_sums sums;
    const struct masks masks = masks_make(t.seed, t.p_conv, t.p_fc);
    memset(defined, 0, sizeof *defined);
    memcpy(defined->weights, f->first, sizeof f->first);
    for (uint32_t first = t.first, step = 0; first < t.last; first += t.batch, step++) {
        uint32_t samples = t.last - first < t.batch ? t.last - first : t.batch;
        define_batch(f, &masks, STEP + step, first, samples, defined->weights, &sums);
        defined->state.not_finite = sums.refused != 0;
        if (sums.refused != 0)
            return;
        definition_update(&sums, samples, LEARNING_RATE, MOMENTUM, defined->velocity, defined->weights);
        defined->state.loss += sums.loss;
        defined->state.applied++;
    }
}

/* --- by the kernel ---------------------------------------------------------------------------- */

static size_t sums_bytes(void)
{
    return 3 * FUSED_SUMS_PITCH * sizeof(int64_t);
}

static void *zeros(size_t bytes)
{
    return memset(guarded_new(bytes, 0), 0, bytes);
}

static struct fused_run open_run(const struct fixture *f, struct training t)
{
    const struct masks masks = masks_make(t.seed, t.p_conv, t.p_fc);
    struct fused_run run = {.records = f->records,
                            .order = f->order,
                            .seed = t.seed,
                            .step = STEP,
                            .momentum = MOMENTUM,
                            .learning_rate = LEARNING_RATE,
                            .batch = t.batch,
                            .position = t.first,
                            .end = t.last,
                            .steps = UINT32_MAX / 2,
                            .closes = 1,
                            .sums_pitch = FUSED_SUMS_PITCH,
                            .ranks = 1,
                            .groups = t.groups,
                            .round = UINT32_MAX - 2};
    uint32_t rest = (t.last - t.first) % t.batch;
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
        run.threshold[layer] = philox_threshold(masks.p[layer]), run.scale[layer] = masks.scale[layer];
    run.unit[0] = EXACT_UNIT * (1 / (double)t.batch), run.unit[1] = rest > 0 ? EXACT_UNIT * (1 / (double)rest) : 0;
    run.weights = guarded_copy(f->first, sizeof f->first);
    run.velocity = zeros(sizeof f->first);
    run.new_weights = guarded_floats(LENET5_WEIGHTS);
    run.new_velocity = guarded_floats(LENET5_WEIGHTS);
    run.before = zeros(sizeof *run.before);
    run.after = guarded_new(sizeof *run.after, 0);
    run.sums = zeros(sums_bytes());
    run.mail = zeros(fused_mail_bytes(t.groups));
    memset(run.mail, 0x55, fused_mail_bytes(t.groups)); /* the rounds, which pass 0 soon, are others' */
    run.arrived = guarded_new(fused_arrived_bytes(t.groups), 0);
    return run;
}

static void train_several(struct fused_run *runs, uint32_t nets)
{
    for (uint32_t i = 0; i < nets; i++)
        memset(runs[i].arrived, 0, fused_arrived_bytes(runs[i].groups));
    RUN(fused_train(runs, nets, NULL));
    for (uint32_t i = 0; i < nets; i++)
        runs[i].round += fused_rounds(&runs[i]);
}

static void train(struct fused_run *run)
{
    train_several(run, 1);
}

/* What a launch left is what the next one finds. */
static void turn(struct fused_run *run)
{
    float *weights = (float *)run->weights, *velocity = (float *)run->velocity;
    struct fused_state *before = (struct fused_state *)run->before;
    run->weights = run->new_weights, run->velocity = run->new_velocity, run->before = run->after;
    run->new_weights = weights, run->new_velocity = velocity, run->after = before;
}

static void close_run(struct fused_run *run)
{
    const void *all[] = {run->weights, run->velocity, run->new_weights, run->new_velocity, run->before,
                         run->after,   run->sums,     run->mail,        run->arrived};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        guarded_free((void *)all[i]);
}

static void assert_outcome(const char *what, const struct fused_run *run, const struct outcome *defined)
{
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        if (memcmp(&run->new_weights[i], &defined->weights[i], sizeof(float)) != 0 ||
            memcmp(&run->new_velocity[i], &defined->velocity[i], sizeof(float)) != 0)
            fail_msg("%s: weight %zu is %a, its momentum %a, but %a and %a by definition", what, i,
                     (double)run->new_weights[i], (double)run->new_velocity[i], (double)defined->weights[i],
                     (double)defined->velocity[i]);
    assert_int_equal(run->after->applied, defined->state.applied);
    assert_int_equal(run->after->not_finite, defined->state.not_finite);
    assert_int_equal(run->after->loss, defined->state.loss);
}

/* True: a number was refused. */
static bool compare(const struct fixture *f, const char *what, struct training t)
{
    static struct outcome defined;
    char text[120];
    struct fused_run run = open_run(f, t);
    snprintf(text, sizeof text, "%s, p %g and %g, %u groups, batch %u, %u samples", what, t.p_conv, t.p_fc, t.groups,
             t.batch, t.last - t.first);
    together.seed++;
    train(&run);
    define(f, t, &defined);
    assert_outcome(text, &run, &defined);
    close_run(&run);
    return defined.state.not_finite != 0;
}

/* What the orders of threads, or launches that fail, are for. */
static void host_only(void)
{
    if (!together.is_device)
        return;
    print_message("# on a GPU this cannot be asked for\n");
    skip();
}

/* --- tests ------------------------------------------------------------------------------------ */

static void every_number_has_its_place(void **state)
{
    static uint8_t seen[LENET5_WEIGHTS];
    size_t padding = 0;
    (void)state;
    for (uint32_t i = 0; i < FUSED_GRADIENT; i++) {
        int at = fused_canonical(i);
        padding += at < 0;
        if (at >= 0)
            assert_int_equal(seen[at]++, 0);
    }
    assert_int_equal(FUSED_GRADIENT - padding, LENET5_WEIGHTS);
}

/* Steps large enough that after a few of them ReLUs have closed, logits are far apart and gradients large; a tail. */
static void nets_are_equal(void **state)
{
    struct fixture *f = *state;
    for (int net = 0; net < NETS; net++)
        compare(f, "a net",
                (struct training){lenet5_nets[net].p_conv, lenet5_nets[net].p_fc, 2, 40, 3, 3 + 40 + 40 + 9, 5});
}

static void rates_are_equal(void **state)
{
    static const double p[][2] = {{0.3, 0.3}, {0.7, 0.1}, {0.9, 0.9}, {1, 0.5}, {0.5, 1}, {1, 1}};
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof p / sizeof *p; i++)
        compare(f, "a rate", (struct training){p[i][0], p[i][1], 1, 16, 5 * (uint32_t)i, 5 * (uint32_t)i + 31, 5});
}

/* Tiles of one sample: a batch's last one, which another group has, and a batch of one. */
static void a_sample_alone_is_equal(void **state)
{
    compare(*state, "a sample alone", (struct training){0.5, 0.5, 2, 17, 0, 18, 5});
}

/* A group that never has a tile; from the fourth step on buffers of sums are used again. */
static void an_idle_group_is_equal(void **state)
{
    compare(*state, "an idle group", (struct training){0.5, 0.5, 2, 16, 0, 4 * 16, 5});
}

static void groups_are_equal(void **state)
{
    static const uint32_t groups[] = {3, 5, 15, 16};
    struct fixture *f = *state;
    uint32_t most = 16;
    if (together.is_device)
        assert_int_equal(fused_fits(0, &most), cudaSuccess);
    for (size_t i = 0; i < sizeof groups / sizeof *groups && groups[i] <= most; i++)
        compare(f, "groups",
                (struct training){0.5, 0.5, groups[i], groups[i] < 15 ? 100 : 256, 0, groups[i] < 15 ? 120 : 256, 5});
}

/* In the order in which the threads could go on, and in others: the same. */
static void orders_are_equal(void **state)
{
    struct fixture *f = *state;
    for (uint64_t seed = 0; seed < 4; seed++) {
        together.seed = seed - 1;
        compare(f, "an order", (struct training){0.5, 0.5, 2, 48, 0, 80, 5});
    }
}

/* Ranks whose sums are added up between launches, in which the update opens the next. Two of them have a group without
 * a tile; and from the fourth step on buffers of sums are used again. */
static void ranks_are_equal(void **state)
{
    enum { RANKS = 3, STEPS = 5 };
    static struct outcome defined;
    struct fixture *f = *state;
    struct training t = {0.5, 0.5, 2, 55, 0, (STEPS - 1) * 55 + 20, 5};
    struct fused_run runs[RANKS];
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        runs[rank] = open_run(f, t);
        runs[rank].rank = rank, runs[rank].ranks = RANKS, runs[rank].closes = 0, runs[rank].steps = 1;
    }
    for (uint32_t i = 0; i <= STEPS; i++) {
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            struct fused_run *run = &runs[rank];
            run->steps = i < STEPS, run->buffer = i % 3, run->step = STEP + i, run->position = i * t.batch;
            run->pending = i == 0 ? 0 : i == STEPS ? 20 : t.batch;
            train(run);
            turn(run);
        }
        for (size_t k = 0; k < FUSED_SUMS; k++) {
            int64_t sum = 0;
            for (uint32_t rank = 0; rank < RANKS; rank++)
                sum += runs[rank].sums[i % 3 * FUSED_SUMS_PITCH + k];
            for (uint32_t rank = 0; rank < RANKS; rank++)
                runs[rank].sums[i % 3 * FUSED_SUMS_PITCH + k] = sum;
        }
    }
    define(f, t, &defined);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        turn(&runs[rank]);
        assert_outcome("a rank", &runs[rank], &defined);
        close_run(&runs[rank]);
    }
}

/* --- ranks that sum within the kernel --------------------------------------------------------- */

enum { MOST_RUNS = 12 };

/* Runs of one launch, rank by rank of a net, then of the next net: all at once, as on several GPUs. */
struct peers {
    uint32_t ranks, nets, count;
    struct fused_run runs[MOST_RUNS];
    struct fused_peers tables[MOST_RUNS];
    uint32_t arrived[MOST_RUNS][FUSED_PEER_PITCH], alive;
    struct fused_trouble trouble;
};

/* t[net] */
static struct peers *open_peers(const struct fixture *f, const struct training *t, uint32_t ranks, uint32_t nets)
{
    struct peers *p = zeros(sizeof *p);
    p->ranks = ranks, p->nets = nets, p->count = ranks * nets, p->alive = 1;
    for (uint32_t i = 0; i < p->count; i++) {
        struct fused_run *run = &p->runs[i];
        *run = open_run(f, t[i / ranks]);
        run->rank = i % ranks, run->ranks = ranks, run->peers = &p->tables[i], run->trouble = &p->trouble;
        memset(p->arrived[i], 0, sizeof p->arrived[i]);
        p->arrived[i][0] = p->arrived[i][1] = UINT32_MAX - 20; /* which passes 0 soon */
    }
    for (uint32_t i = 0; i < p->count; i++) {
        p->tables[i].alive = &p->alive, p->tables[i].patience = 2;
        for (uint32_t r = 0; r < ranks; r++) {
            p->tables[i].sums[r] = p->runs[i / ranks * ranks + r].sums;
            p->tables[i].arrived[r] = p->arrived[i / ranks * ranks + r];
        }
    }
    return p;
}

static void close_peers(struct peers *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        close_run(&p->runs[i]);
    guarded_free(p);
}

/* The first `steps` in a launch of their own; then the rest. */
static void train_peers(struct peers *p, uint32_t steps)
{
    for (uint32_t i = 0; i < p->count; i++)
        p->runs[i].steps = steps;
    together.seed++;
    train_several(p->runs, p->count);
    for (uint32_t i = 0; i < p->count; i++) {
        struct fused_run *run = &p->runs[i];
        turn(run);
        run->step += steps, run->position += steps * run->batch, run->steps = UINT32_MAX / 2;
        memset(run->sums, 0, sums_bytes());
    }
    train_several(p->runs, p->count);
}

static void assert_peers(const struct fixture *f, const char *what, const struct training *t, const struct peers *p)
{
    static struct outcome defined;
    char text[120];
    for (uint32_t i = 0; i < p->count; i++) {
        if (i % p->ranks == 0)
            define(f, t[i / p->ranks], &defined);
        snprintf(text, sizeof text, "%s: rank %u of %u, net %u of %u", what, i % p->ranks, p->ranks, i / p->ranks,
                 p->nets);
        assert_outcome(text, &p->runs[i], &defined);
    }
}

/* Of every net, on 2, 3 and 4 ranks; a batch's tiles are not as many as ranks; a tail, of which some ranks have
 * nothing. */
static void peers_are_equal(void **state)
{
    struct fixture *f = *state;
    for (uint32_t net = 0; net < NETS; net++) {
        const struct training t = {
            lenet5_nets[net].p_conv, lenet5_nets[net].p_fc, 1 + net % 2, 70, 3, 3 + 3 * 70 + 9, 5};
        struct peers *p = open_peers(f, &t, 2 + net % 3, 1);
        train_peers(p, 2);
        assert_peers(f, "peers", &t, p);
        close_peers(p);
    }
}

/* Longer, so that buffers of sums are used again; one rank has a group without a tile. */
static void long_runs_of_peers_are_equal(void **state)
{
    const struct training t = {0.5, 0.5, 2, 33, 0, 7 * 33, 5};
    struct peers *p = open_peers(*state, &t, 2, 1);
    train_peers(p, 2);
    assert_peers(*state, "a long run of peers", &t, p);
    close_peers(p);
}

/* Of a batch's three tiles the third of five ranks has none, of the tail's two it has one: its group waits for others,
 * then draws masks. */
static void a_peer_of_the_tail_alone_is_equal(void **state)
{
    const struct training t = {0.5, 0.5, 1, 48, 0, 2 * 48 + 32, 5};
    struct peers *p = open_peers(*state, &t, 5, 1);
    train_peers(p, 1);
    assert_peers(*state, "a peer of the tail alone", &t, p);
    close_peers(p);
}

/* Nets at once, each over all ranks, of unlike lengths. */
static void nets_of_peers_are_equal(void **state)
{
    static const struct training t[] = {{0, 0, 1, 40, 3, 3 + 40 + 40 + 9, 1},
                                        {0.5, 0.5, 1, 40, 0, 7, 2},
                                        {0.5, 0, 1, 40, 90, 90 + 80, 1}};
    struct fixture *f = *state;
    struct peers *p = open_peers(f, t, 3, 3);
    train_peers(p, 1);
    assert_peers(f, "nets of peers", t, p);
    close_peers(p);
}

/* One rank's wish ends the run of all, and so does one rank's refusal, after the same step. */
static void peers_end_together(void **state)
{
    static struct outcome defined;
    struct fixture *f = *state;
    struct training t[] = {{0.5, 0.5, 1, 40, 0, 120, 5}, {0.5, 0.5, 1, 40, 0, 120, 5}};
    struct peers *p = open_peers(f, t, 2, 2);
    p->runs[1].stop = f->wish;              /* the first net's second rank */
    ((float *)p->runs[2].weights)[7] = NAN; /* the second net's first one */
    together.seed++;
    train_several(p->runs, p->count);
    t[0].last = 40;
    define(f, t[0], &defined);
    for (int i = 0; i < 2; i++) {
        assert_outcome("which stops", &p->runs[i], &defined);
        assert_int_equal(p->runs[i].after->stopped, 1);
        assert_int_equal(p->runs[2 + i].after->not_finite, 1);
        assert_int_equal(p->runs[2 + i].after->applied, 0);
    }
    close_peers(p);
}

/* One of two ranks never comes, and nobody says that it lives: the other's launch fails, and says so. */
static void a_lost_peer_is_given_up(void **state)
{
    const struct training t = {0.5, 0.5, 1, 40, 0, 40, 5};
    host_only();
    struct peers *p = open_peers(*state, &t, 2, 1);
    memset(p->runs[0].arrived, 0, fused_arrived_bytes(1));
    together.patience = 3000;
    assert_int_equal(fused_train(p->runs, 1, NULL), cudaErrorLaunchFailure);
    together.patience = 0;
    assert_int_equal(p->trouble.waited, FUSED_FOR_RANKS);
    assert_int_equal(p->trouble.wanted - p->trouble.found, FUSED_SEATS); /* the other's blocks */
    close_peers(p);
}

/* The hosts of both ranks say nothing for long, as their processes are stopped, one of them before its launch began;
 * then all go on. */
static void a_stopped_job_goes_on(void **state)
{
    enum { LOOK = 500, LOOKS = 20 };
    struct fixture *f = *state;
    const struct training t = {0.5, 0.5, 1, 40, 0, 80, 5};
    host_only();
    struct peers *p = open_peers(f, &t, 2, 1);
    for (int i = 0; i < 2; i++)
        p->tables[i].patience = 10 * LOOKS;
    together.patience = LOOK, together.late = LOOKS * LOOK, together.late_from = FUSED_SEATS;
    train_peers(p, 1);
    assert_peers(f, "stopped", &t, p);
    together.patience = together.late = 0;
    close_peers(p);
}

/* --- several nets, ends ----------------------------------------------------------------------- */

/* In one launch, each as if it were alone: of unlike nets, seeds, places and lengths. */
static void nets_at_once_are_equal(void **state)
{
    static const struct training nets[] = {
        {0, 0, 2, 40, 3, 3 + 40 + 40 + 9, 1}, {0, 0.5, 2, 40, 0, 7, 2},        {0.5, 0, 2, 40, 90, 90 + 80, 1},
        {0.5, 0.5, 2, 40, 3, 3 + 40 + 9, 1},  {0.5, 0.5, 2, 40, 3, 3 + 40, 2},
    };
    enum { COUNT = sizeof nets / sizeof *nets };
    static struct outcome defined;
    struct fixture *f = *state;
    struct fused_run runs[COUNT];
    char what[40];
    for (int i = 0; i < COUNT; i++)
        runs[i] = open_run(f, nets[i]);
    together.seed++;
    train_several(runs, COUNT);
    for (int i = 0; i < COUNT; i++) {
        snprintf(what, sizeof what, "number %d of several", i);
        define(f, nets[i], &defined);
        assert_outcome(what, &runs[i], &defined);
        close_run(&runs[i]);
    }
}

/* One is refused, one is to stop, one has nothing to do, and one goes on to its end. */
static void ends_of_nets_are_their_own(void **state)
{
    enum { REFUSED, STOPPED, IDLE, WHOLE, COUNT };
    static struct outcome defined;
    struct fixture *f = *state;
    struct training t = {0.5, 0.5, 1, 16, 0, 48, 3};
    struct fused_run runs[COUNT];
    for (int i = 0; i < COUNT; i++)
        runs[i] = open_run(f, t);
    ((float *)runs[REFUSED].weights)[7] = NAN;
    runs[STOPPED].stop = f->wish;
    runs[IDLE].steps = runs[IDLE].closes = 0;
    together.seed++;
    train_several(runs, COUNT);
    assert_int_equal(runs[REFUSED].after->not_finite, 1);
    assert_int_equal(runs[REFUSED].after->applied, 0);
    define(f, t, &defined);
    assert_outcome("which goes on", &runs[WHOLE], &defined);
    t.last = 16;
    define(f, t, &defined);
    assert_outcome("which stops", &runs[STOPPED], &defined);
    t.last = 0;
    define(f, t, &defined);
    assert_outcome("which has nothing to do", &runs[IDLE], &defined);
    for (int i = 0; i < COUNT; i++)
        close_run(&runs[i]);
}

/* The step that said so is applied; then nothing is begun, in this launch or the next. */
static void a_wish_to_stop_is_granted(void **state)
{
    static struct outcome defined;
    struct fixture *f = *state;
    struct fused_run run = open_run(f, (struct training){0.5, 0.5, 1, 16, 0, 64, 5});
    run.stop = f->wish;
    train(&run);
    define(f, (struct training){0.5, 0.5, 1, 16, 0, 16, 5}, &defined);
    assert_outcome("stopped", &run, &defined);
    assert_int_equal(run.after->stopped, 1);
    turn(&run);
    run.position = 16, run.step++;
    train(&run);
    assert_outcome("and over", &run, &defined);
    close_run(&run);
}

/* The wish is asked for while conv1 goes forward, so it counts from the next step on. What it is read from here is the
 * counter of the grid, which is 0 until the first step is done. */
static void a_wish_during_a_launch_is_granted(void **state)
{
    static struct outcome defined;
    struct fixture *f = *state;
    struct fused_run run = open_run(f, (struct training){0.5, 0.5, 1, 16, 0, 128, 5});
    run.stop = (const volatile int32_t *)run.arrived;
    train(&run);
    define(f, (struct training){0.5, 0.5, 1, 16, 0, 48, 5}, &defined);
    assert_outcome("stopped in the third of eight steps", &run, &defined);
    assert_int_equal(run.after->stopped, 1);
    close_run(&run);
}

/* A weight that is infinite, NaN, or so large that what it makes is: both refuse the step, or both get the same. */
static void what_is_refused_is_refused_by_both(void **state)
{
    static const float broken[] = {NAN, -3e38f, 1e20f};
    struct fixture *f = *state;
    for (size_t k = 0; k < sizeof broken / sizeof *broken; k++)
        for (int p = 0; p < LENET5_PARAMETERS; p++) {
            size_t at = lenet5_parameters[p].offset + lenet5_parameters[p].count / 2;
            float whole = f->first[at];
            f->first[at] = broken[k];
            compare(f, "broken", (struct training){0.5, 0.5, 1, 16, 3, 8, 5});
            f->first[at] = whole;
        }
}

/* NaN in a plane of conv2's weights counts where a sample keeps both channels; else it touches nothing, nor what lies
 * beside it. */
static void what_is_dropped_may_be_broken(void **state)
{
    struct fixture *f = *state;
    int refused = 0;
    for (size_t c = 0; c < 16; c++) {
        float *plane = f->first + lenet5_parameters[2].offset + (c * 6 + c % 6) * 25, whole[25];
        memcpy(whole, plane, sizeof whole);
        for (int i = 0; i < 25; i++)
            plane[i] = NAN;
        refused += compare(f, "a broken plane", (struct training){0.5, 0.5, 1, 16, 3, 5, 5});
        memcpy(plane, whole, sizeof whole);
    }
    assert_in_range(refused, 3, 13);
}

static void evaluation_is_equal(void **state)
{
    enum { FIRST = 16, LAST = 16 + 77 };
    struct fixture *f = *state;
    struct definition_sums *defined = calloc(1, sizeof *defined);
    struct evaluation *sum = zeros(sizeof *sum);
    int64_t correct = 0;
    struct fused_run run = open_run(f, (struct training){0.5, 0.5, 2, 16, FIRST, LAST, 5});
    memset(run.arrived, 0, fused_arrived_bytes(run.groups));
    RUN(fused_evaluate(&run, sum, NULL));
    for (size_t i = FIRST; i < LAST; i++)
        definition_evaluate(f->first, f->records + i * RECORD_BYTES, defined, &correct);
    assert_int_equal(sum->loss, defined->loss);
    assert_int_equal(sum->correct, correct);
    assert_int_equal(sum->refused, 0);
    guarded_free(sum);
    free(defined);
    close_run(&run);
}

static void a_device_may_be_too_small(void **state)
{
    uint32_t groups = 99;
    (void)state;
    host_only();
    assert_int_equal(fused_fits(0, &groups), cudaSuccess);
    assert_int_equal(groups, 2);
    together.multiprocessors = 132;
    assert_int_equal(fused_fits(0, &groups), cudaSuccess);
    assert_int_equal(groups, 16);
    together.shared_bytes = 163 << 10; /* sm_80 */
    assert_int_equal(fused_fits(0, &groups), cudaSuccess);
    assert_int_equal(groups, 0);
    together = (struct together){0};
}

/* test_fused [PATTERN [ORDER]]: the tests that match, from another order of threads on (tests/barriers). */
int main(int count, char **words)
{
    if (count > 1)
        cmocka_set_test_filter(words[1]);
    if (count > 2)
        together.seed = strtoull(words[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_has_its_place),
        cmocka_unit_test(a_device_may_be_too_small),
        cmocka_unit_test(nets_are_equal),
        cmocka_unit_test(rates_are_equal),
        cmocka_unit_test(a_sample_alone_is_equal),
        cmocka_unit_test(an_idle_group_is_equal),
        cmocka_unit_test(groups_are_equal),
        cmocka_unit_test(orders_are_equal),
        cmocka_unit_test(ranks_are_equal),
        cmocka_unit_test(peers_are_equal),
        cmocka_unit_test(long_runs_of_peers_are_equal),
        cmocka_unit_test(a_peer_of_the_tail_alone_is_equal),
        cmocka_unit_test(nets_of_peers_are_equal),
        cmocka_unit_test(peers_end_together),
        cmocka_unit_test(a_lost_peer_is_given_up),
        cmocka_unit_test(a_stopped_job_goes_on),
        cmocka_unit_test(nets_at_once_are_equal),
        cmocka_unit_test(ends_of_nets_are_their_own),
        cmocka_unit_test(a_wish_to_stop_is_granted),
        cmocka_unit_test(a_wish_during_a_launch_is_granted),
        cmocka_unit_test(what_is_refused_is_refused_by_both),
        cmocka_unit_test(what_is_dropped_may_be_broken),
        cmocka_unit_test(evaluation_is_equal),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
