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
        char net = run->nets[i].name;
        if (step == 0)
            display_line(display, "net %c has no checkpoint yet: it starts at epoch 1", net);
        else if (epoch >= run->options->epochs)
            display_line(display, "net %c has its %llu epochs already", net, epoch);
        else
            display_line(display, "net %c goes on after step %llu, epoch %llu", net, step, epoch);
    }
}

void introduction_print(const struct introduction *run, struct display *display)
{
    const char *why = run->engine_reason, *comm_reason = comm_why(run->group);
    char nets[2 * NETS + 1] = "";
    for (int i = 0; i < run->count; i++)
        snprintf(nets + strlen(nets), sizeof nets - strlen(nets), "%s%c", i ? "," : "", run->nets[i].name);
    display_line(display, "net %s on %d rank%s, %d host%s; global batch %llu", nets, comm_size(run->world),
                 comm_size(run->world) == 1 ? "" : "s", comm_host_count(run->world),
                 comm_host_count(run->world) == 1 ? "" : "s", (unsigned long long)run->options->batch_size);
    display_line(display, "engine %s%s%s%s, comm %s%s%s%s", run->engine->name, *why ? " (" : "", why,
                 *why ? ")" : "", comm_transport(run->group), *comm_reason ? " (" : "", comm_reason,
                 *comm_reason ? ")" : "");
    display_line(display, "data %s: %zu + %zu pictures", run->data->directory, run->data->train.count,
                 run->data->test.count);
    display_line(display, "files in %s", run->directory);
    if (run->devices != NULL)
        introduce_devices(run, display);
    introduce_resumption(run, display);
}
