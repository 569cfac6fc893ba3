#include "introduction.h"

#include <stdio.h>
#include <string.h>

static void introduce_devices(const struct introduction *run, struct display *display)
{
    char line[400];
    int ranks = comm_size(run->world);
    for (int i = 0; i < ranks; i++) {
        devices_line(run->devices, i, line, sizeof line);
        display_line(display, "%s", line);
    }
    devices_advice(run->devices, ranks, line, sizeof line);
    if (line[0] != '\0')
        display_line(display, "note: %s", line);
}

static void introduce_resumption(const struct introduction *run, struct display *display)
{
    for (int i = 0; i < run->count && run->options->resume; i++) {
        const struct progress *progress = &run->outcomes[i].progress;
        unsigned long long step = progress->step, epoch = progress->epoch;
        const char *name = run->trials[i].name;
        if (step == 0)
            display_line(display, "%s has no checkpoint yet: it starts at epoch 1", name);
        else if (epoch >= run->options->epochs)
            display_line(display, "%s has its %llu epochs already", name, epoch);
        else if (run->options->max_steps > 0 && step >= run->options->max_steps)
            display_line(display, "%s has its %llu steps already", name, step);
        else
            display_line(display, "%s goes on in epoch %llu, after step %llu", name, epoch + 1, step);
    }
}

/* Of an engine that may train several. */
static void introduce_nets_at_once(const struct introduction *run, struct display *display)
{
    if (run->at_once >= run->trials_of_rank)
        display_line(display, "all %d nets are trained at once, in one kernel", run->at_once);
    else if (run->at_once > 1)
        display_line(display, "%d nets take turns, up to %d at once in one kernel: so many fill the GPU best",
                     run->trials_of_rank, run->at_once);
    else
        display_line(display, "%d nets take turns, %s", run->trials_of_rank,
                     comm_sums_by_host(run->group) ? "as their sums go by way of the host"
                                                   : "as one alone fills the GPU");
}

void introduction_print(const struct introduction *run, struct display *display)
{
    const char *why = run->engine_reason, *comm_reason = comm_why(run->group);
    char nets[2 * NETS + 1] = "", seeds[60] = "";
    unsigned long long first = run->options->seed, last = first + run->options->seeds - 1;
    for (int i = 0; i < run->count && run->trials[i].options.seed == first; i++)
        snprintf(nets + strlen(nets), sizeof nets - strlen(nets), "%s%c", i ? "," : "", run->trials[i].net.name);
    if (last > first)
        snprintf(seeds, sizeof seeds, ", seeds %llu to %llu,", first, last);
    display_line(display, "net %s%s on %d rank%s, %d host%s; global batch %llu", nets, seeds, comm_size(run->world),
                 comm_size(run->world) == 1 ? "" : "s", comm_host_count(run->world),
                 comm_host_count(run->world) == 1 ? "" : "s", (unsigned long long)run->options->batch_size);
    display_line(display, "engine %s%s%s%s, comm %s%s%s%s", run->engine->name, *why ? " (" : "", why, *why ? ")" : "",
                 comm_transport(run->group), *comm_reason ? " (" : "", comm_reason, *comm_reason ? ")" : "");
    if (run->engine->at_once != NULL && run->trials_of_rank > 1)
        introduce_nets_at_once(run, display);
    display_line(display, "data %s: %zu + %zu pictures", run->data->directory, run->data->train.count,
                 run->data->test.count);
    if (run->data->copied)
        display_line(display,
                     "note: its file system cannot map files into memory: each rank has a copy of the pictures");
    display_line(display, "files in %s", run->directory);
    if (run->devices != NULL)
        introduce_devices(run, display);
    introduce_resumption(run, display);
}
