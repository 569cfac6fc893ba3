#include "verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "agree.h"
#include "clock.h"
#include "cores.h"
#include "devices.h"
#include "memory.h"
#include "report.h"
#include "signals.h"

/* This rank's part of the whole. */
struct examination {
    const struct options *options;
    struct comm *world, *own, *group; /* this rank alone; all, as `together` sums; NULL if there is one rank */
    struct verify *verify;
    struct pass alone, together;
    struct cores cores;
    struct device *devices;
    cJSON *choices; /* of rank 0's engine */
    double began;   /* the first round */
};

/* --- opening -------------------------------------------------------------------------------------------- */

static void prepare(struct examination *e)
{
    struct verify *verify = e->verify;
    lesson_draw(&verify->pictures);
    for (int i = 0; i < LESSONS; i++)
        lesson_data(&lessons[i], &verify->pictures, &verify->data[i]);
    verify->precision = engine_precision(e->options->precision);
    verify->stop = signals_stop_flag();
    verify->core = -1;
    cores_open(&e->cores);
}

static bool choose_engine(struct examination *e, struct error *error)
{
    char why[400];
    e->verify->ops = engine_choose(e->options->engine, e->world, why, sizeof why, error);
    return comm_agree(e->world, error) && agree_on_engine(e->verify->ops, why, e->world, error);
}

/* Collective: on every rank what rank 0's engine chose among several ways, or NULL. */
static cJSON *share_choices(struct examination *e)
{
    const struct engine *engine = e->alone.engines[LESSONS - 1]; /* which knows those of all before it */
    bool has = comm_rank(e->world) == 0 && engine->ops->choices != NULL;
    cJSON *choices = has ? engine->ops->choices(e->alone.engines[LESSONS - 1]) : NULL;
    char *text = has ? cJSON_PrintUnformatted(choices) : NULL;
    size_t bytes = has ? strlen(text) + 1 : 0;
    comm_broadcast(e->world, &bytes, sizeof bytes, 0);
    if (bytes == 0)
        return NULL;
    if (text == NULL)
        text = memory_allocate(1, bytes, "choices of rank 0");
    comm_broadcast(e->world, text, bytes, 0);
    if (choices == NULL)
        choices = cJSON_Parse(text);
    free(text);
    return choices;
}

/* First on rank 0, so that the others then compute in the same ways. */
static bool open_alone(struct examination *e, struct error *error)
{
    bool first = comm_rank(e->world) == 0;
    if (first)
        pass_open(&e->alone, e->verify, e->own, NULL, error);
    if (!comm_agree(e->world, error))
        return false;
    e->choices = share_choices(e);
    if (!first)
        pass_open(&e->alone, e->verify, e->own, e->choices, error);
    return comm_agree(e->world, error);
}

static bool open_all(struct examination *e, struct error *error)
{
    struct comm *world = e->world;
    enum comm_use use = engine_comm_use(e->verify->ops);
    if (use != COMM_FOR_CPU) {
        e->devices = memory_allocate((size_t)comm_size(world), sizeof *e->devices, "the table of devices");
        devices_gather(world, e->devices);
    }
    e->own = comm_split(world, comm_rank(world), "mpi", use, error);
    e->group = comm_split(world, 0, e->options->comm, use, error);
    if (!comm_agree(world, error) || !open_alone(e, error))
        return false;
    e->verify->terms = memory_allocate(e->alone.engines[0]->sums->count, sizeof *e->verify->terms, "a gradient");
    if (comm_size(world) > 1)
        pass_open(&e->together, e->verify, e->group, NULL, error);
    return comm_agree(world, error);
}

static void close_all(struct examination *e)
{
    pass_close(&e->together);
    pass_close(&e->alone);
    if (e->group != NULL)
        comm_close(e->group);
    if (e->own != NULL)
        comm_close(e->own);
    cJSON_Delete(e->choices);
    free(e->devices);
    free(e->verify->terms);
    free(e->verify);
}

/* --- rounds --------------------------------------------------------------------------------------------- */

/* Whether all go on, as rank 0's clock has it. */
static bool go_on(struct examination *e, double end)
{
    int64_t stop[] = {*e->verify->stop != 0, comm_rank(e->world) == 0 && clock_seconds() >= end};
    comm_sum_control(e->world, stop, 2, "the next round");
    e->verify->stopped = stop[0] != 0;
    return stop[0] == 0 && (stop[1] == 0 || e->verify->round == 0);
}

/* After ranks were alone: what one of them has learnt is true of all. */
static void learn_of_stops(struct examination *e)
{
    struct verify *verify = e->verify;
    int64_t stop[] = {verify->stopped && !verify->is_cut, verify->is_cut};
    comm_sum_control(e->world, stop, 2, "the end of a round");
    verify->is_cut = stop[0] == 0 && stop[1] != 0;
    verify->stopped = stop[0] != 0 || verify->is_cut;
}

/* Ranks of a host take different cores, and each another one every round. */
static void run_alone(struct examination *e)
{
    struct verify *verify = e->verify;
    if (!verify->ops->on_gpu)
        verify->core = cores_take(&e->cores, comm_local_rank(e->world) + verify->round);
    pass_run(&e->alone);
    if (!verify->ops->on_gpu)
        cores_release(&e->cores);
    verify->core = -1;
}

/* A round that was begun is ended; the first one, where a machine is so slow, no later than the time given. */
static void run_rounds(struct examination *e)
{
    struct verify *verify = e->verify;
    double seconds = e->options->verify_seconds;
    e->began = clock_seconds();
    double end = e->began + seconds;
    verify->end = seconds > 0 ? end : HUGE_VAL;
    while (!verify->stopped && go_on(e, end)) {
        run_alone(e);
        learn_of_stops(e);
        if (comm_size(e->world) > 1)
            pass_run(&e->together);
        verify->round += !verify->stopped;
    }
}

/* --- the end -------------------------------------------------------------------------------------------- */

static void describe_device(const struct examination *e, char *text, size_t bytes)
{
    int rank = comm_rank(e->world), core, cores = cores_taken(&e->cores, &core);
    char model[120];
    if (e->devices != NULL) {
        devices_line(e->devices, rank, text, bytes);
        return;
    }
    cores_model(model, sizeof model);
    int used = snprintf(text, bytes, "rank %d  %s  %s", rank, comm_host_name(e->world, rank), model);
    if (cores == 1)
        snprintf(text + used, bytes - (size_t)used, ", core %d", core);
    else if (cores > 1)
        snprintf(text + used, bytes - (size_t)used, ", %d cores", cores);
}

/* Devices of one kind that compute in the same ways must come to the same bits. */
static uint64_t kind_of(struct examination *e)
{
    struct engine *engine = e->alone.engines[LESSONS - 1];
    if (engine->ops->choices == NULL || e->devices == NULL)
        return 0;
    cJSON *choices = engine->ops->choices(engine);
    char *text = cJSON_PrintUnformatted(choices);
    uint64_t kind = XXH64(text, strlen(text), 0);
    cJSON_Delete(choices);
    free(text);
    const char *name = e->devices[comm_rank(e->world)].name;
    return XXH64(name, strlen(name), kind);
}

static void introduce(const struct examination *e)
{
    int ranks = comm_size(e->world), hosts = comm_host_count(e->world);
    bool is_defined = e->verify->ops->is_defined;
    printf("verify: %d steps a round, nets A to D, %g s; %d rank%s, %d host%s\n", LESSON_STEPS,
           e->options->verify_seconds, ranks, ranks == 1 ? "" : "s", hosts, hosts == 1 ? "" : "s");
    printf("engine %s (%s), comm %s\n", e->verify->ops->name,
           is_defined ? "known answers" : "no known answers: compared with itself and its like",
           comm_transport(e->group));
    fflush(stdout);
}

/* first: a host's first rank. */
static bool is_host_wrong(const struct examination *e, const struct testimony *all, int first)
{
    for (int i = first; i < comm_size(e->world); i++)
        if (all[i].finding.times > 0 && comm_first_of_host(e->world, i) == first)
            return true;
    return false;
}

/* Names the hosts, as sbatch --exclude takes them. */
static void refuse(const struct examination *e, const struct testimony *all, int wrong, struct error *error)
{
    int ranks = comm_size(e->world);
    char hosts[800] = "";
    for (int i = 0; i < ranks && strlen(hosts) < sizeof hosts - 70; i++)
        if (comm_first_of_host(e->world, i) == i && is_host_wrong(e, all, i))
            snprintf(hosts + strlen(hosts), sizeof hosts - strlen(hosts), "%s%s", hosts[0] ? "," : "",
                     comm_host_name(e->world, i));
    error_set(error, EXIT_DIVERGED, "verify: %d of %d rank%s computed wrongly, on %s", wrong, ranks,
              ranks == 1 ? "" : "s", hosts);
}

static enum exit_code conclude(struct examination *e, struct error *error)
{
    struct verify *verify = e->verify;
    int ranks = comm_size(e->world), wrong = 0;
    bool speaks = comm_rank(e->world) == 0;
    struct testimony mine = {.kind = kind_of(e), .steps = verify->steps, .finding = verify->finding};
    struct testimony *all = memory_allocate((size_t)ranks, sizeof *all, "what the ranks found");
    describe_device(e, mine.device, sizeof mine.device);
    memcpy(mine.digests, e->alone.digests, sizeof mine.digests);
    comm_gather(e->world, &mine, sizeof mine, all);
    if (speaks && !verify->ops->is_defined)
        report_compare(all, ranks);
    if (speaks)
        wrong = report_print(all, ranks, ranks > 1 ? &e->together : NULL, verify);
    if (speaks && verify->stopped && !verify->is_cut)
        printf("stopped after %.0f s\n", clock_seconds() - e->began);
    if (wrong > 0)
        refuse(e, all, wrong, error);
    else if (speaks && verify->is_cut)
        error_set(error, EXIT_UNVERIFIED,
                  "verify: not verified: %g s were over before the first round was; give more, or --verify=0 for one "
                  "round however long",
                  e->options->verify_seconds);
    free(all);
    comm_agree(e->world, error);
    return error->code != EXIT_DONE ? error->code : verify->stopped ? EXIT_STOPPED : EXIT_DONE;
}

enum exit_code verify_run(const struct options *options, struct comm *world, struct error *error)
{
    struct examination *e = memory_allocate(1, sizeof *e, "--verify");
    e->options = options;
    e->world = world;
    e->verify = memory_allocate(1, sizeof *e->verify, "--verify");
    enum exit_code code = EXIT_DONE;
    prepare(e);
    if (agree_on_options(options, world, error) && choose_engine(e, error) && open_all(e, error)) {
        if (comm_rank(world) == 0)
            introduce(e);
        run_rounds(e);
        code = conclude(e, error);
    } else {
        code = error->code;
    }
    close_all(e);
    free(e);
    return code;
}
