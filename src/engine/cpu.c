#include "cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exact_sum.h"
#include "memory.h"
#include "sampler.h"

static struct cpu *cpu_of(struct engine *engine)
{
    return (struct cpu *)engine; /* base is first */
}

static struct engine *open_cpu(const struct engine_setup *setup, struct error *error)
{
    if (setup->precision != PRECISION_FP32) {
        error_set(error, EXIT_USAGE, "--precision: engine cpu computes in fp32 alone; leave it out, or --engine cudnn");
        return NULL;
    }
    struct comm_sums *sums = comm_sums_open(setup->comm, LAYOUT_COUNT + SUM_SLOTS);
    struct cpu *cpu = memory_allocate_aligned(64, sizeof *cpu, "the CPU engine");
    tile_init(&cpu->tile);
    layout_index(cpu->index);
    cpu->base.ops = &engine_cpu;
    cpu->base.setup = *setup;
    cpu->base.sums = sums;
    cpu->base.n_gradient = LAYOUT_COUNT;
    return &cpu->base;
}

static void close_cpu(struct engine *engine)
{
    comm_sums_close(engine->sums);
    free(engine);
}

static void begin_epoch(struct engine *engine, const uint32_t *order)
{
    engine->order = order;
}

/* --- training ------------------------------------------------------------------------------------- */

void cpu_prepare(struct engine *engine)
{
    struct cpu *cpu = cpu_of(engine);
    memset(engine->sums->terms, 0, engine->sums->count * sizeof *engine->sums->terms);
    tile_pack(&cpu->tile, &cpu->weights);
}

void cpu_add_tile(struct engine *engine, uint64_t step, size_t first, size_t position, size_t count)
{
    struct cpu *cpu = cpu_of(engine);
    struct tile_input *input = &cpu->input;
    const struct masks *masks = &engine->setup.masks;
    input->count = (int)count;
    for (size_t s = 0; s < count; s++)
        input->records[s] = split_record(&engine->setup.data->train, engine->order[first + position + s]);
    memcpy(input->scales, masks->scale, sizeof input->scales);
    masks_draw(masks, step, (uint32_t)position, (uint32_t)count, input->masks);
    memset(input->masks + count, 0, (TILE - count) * sizeof *input->masks);
    tile_mark(cpu->tile.mark, "masks", "draw", -1);

    int64_t *sums = engine->sums->terms, *slots = sums + LAYOUT_COUNT;
    slots[SLOT_REFUSED] += (int64_t)tile_gradient(&cpu->tile, &cpu->weights, input, sums, &slots[SLOT_LOSS]);
}

static void gradient(struct engine *engine, uint64_t step, size_t first, size_t end)
{
    struct comm *comm = engine->setup.comm;
    size_t position, share_end;
    sampler_share(end - first, comm_rank(comm), comm_size(comm), &position, &share_end);
    cpu_prepare(engine);
    comm_alive(comm); /* a rank without a tile too */
    for (; position < share_end; position += TILE) {
        cpu_add_tile(engine, step, first, position, share_end - position < TILE ? share_end - position : TILE);
        comm_alive(comm);
    }
}

static void update(struct engine *engine, float learning_rate, size_t samples)
{
    struct cpu *cpu = cpu_of(engine);
    float *weights = (float *)&cpu->weights, *velocity = (float *)&cpu->velocity;
    const int64_t *sums = engine->sums->totals;
    float momentum = engine->setup.momentum;
    enum { BLOCK = 512 };
    for (size_t first = 0; first < LAYOUT_COUNT; first += BLOCK) {
        float gradient[BLOCK];
        size_t count = LAYOUT_COUNT - first < BLOCK ? LAYOUT_COUNT - first : BLOCK;
        exact_sum_read(count, sums + first, 1 / (double)samples, gradient);
        for (size_t i = 0; i < count; i++) {
            velocity[first + i] = fmaf(momentum, velocity[first + i], gradient[i]);
            weights[first + i] = fmaf(-learning_rate, velocity[first + i], weights[first + i]);
        }
    }
}

/* --- evaluation ----------------------------------------------------------------------------------- */

static void evaluate_cpu(struct engine *engine, const struct split *split, size_t first, size_t end,
                         struct evaluation *sum)
{
    struct cpu *cpu = cpu_of(engine);
    struct tile_input *input = &cpu->input;
    const struct masks keep_all = masks_make(0, 0, 0);
    tile_pack(&cpu->tile, &cpu->weights);
    masks_draw(&keep_all, 0, 0, TILE, input->masks);
    memcpy(input->scales, keep_all.scale, sizeof input->scales);
    for (; first < end; first += TILE) {
        input->count = (int)(end - first < TILE ? end - first : TILE);
        for (int s = 0; s < input->count; s++)
            input->records[s] = split_record(split, first + (size_t)s);
        sum->refused += (int64_t)tile_evaluate(&cpu->tile, &cpu->weights, input, &sum->loss, &sum->correct);
    }
}

/* --- state ------------------------------------------------------------------------------------------ */

static void gather(const struct cpu *cpu, const struct layout *from, float *canonical)
{
    const float *numbers = (const float *)from;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        canonical[i] = numbers[cpu->index[i]];
}

static void scatter(const struct cpu *cpu, const float *canonical, struct layout *to)
{
    float *numbers = (float *)to;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        numbers[cpu->index[i]] = canonical[i];
}

static void read_state(struct engine *engine, float *weights, float *velocity)
{
    struct cpu *cpu = cpu_of(engine);
    if (weights != NULL)
        gather(cpu, &cpu->weights, weights);
    if (velocity != NULL)
        gather(cpu, &cpu->velocity, velocity);
}

static void write_state(struct engine *engine, const float *weights, const float *velocity)
{
    struct cpu *cpu = cpu_of(engine);
    if (weights != NULL)
        scatter(cpu, weights, &cpu->weights);
    if (velocity != NULL)
        scatter(cpu, velocity, &cpu->velocity);
}

static void read_sums(const struct engine *engine, const int64_t *sums, int64_t *canonical)
{
    const struct cpu *cpu = (const struct cpu *)engine;
    for (size_t i = 0; i < LENET5_WEIGHTS; i++)
        canonical[i] = sums[cpu->index[i]];
}

const struct engine_ops engine_cpu = {
    .name = "cpu",
    .is_defined = true,
    .open = open_cpu,
    .close = close_cpu,
    .begin_epoch = begin_epoch,
    .gradient = gradient,
    .update = update,
    .evaluate = evaluate_cpu,
    .read = read_state,
    .write = write_state,
    .read_sums = read_sums,
};
