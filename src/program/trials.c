#include "trials.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- sets of nets ------------------------------------------------------------------------------- */

bool trials_parse_nets(const char *text, unsigned *set, struct error *error)
{
    *set = 0;
    if (strcmp(text, "all") == 0) {
        *set = (1u << NETS) - 1;
        return true;
    }
    for (const char *p = text;; p += 2) {
        int net = toupper((unsigned char)*p) - 'A';
        if (net < 0 || net >= NETS || (p[1] != ',' && p[1] != '\0') || *set >> net & 1)
            return error_set(error, EXIT_USAGE, "--net %s: give A, B, C, D, a list like A,D, or all", text);
        *set |= 1u << net;
        if (p[1] == '\0')
            return true;
    }
}

void trials_name_nets(unsigned set, char name[2 * NETS])
{
    char *end = name;
    for (int i = 0; i < NETS; i++)
        if (set >> i & 1) {
            *end++ = lenet5_nets[i].name;
            *end++ = ',';
        }
    end[-1] = '\0';
    if (set == (1u << NETS) - 1)
        strcpy(name, "all");
}

/* --- trials ------------------------------------------------------------------------------------- */

static void name_trial(struct trial *trial, bool nets, bool seeds)
{
    char net = trial->net.name, seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)trial->options.seed);
    snprintf(trial->name, sizeof trial->name, "net %c%s%s", net, seeds ? ", seed " : "", seeds ? seed : "");
    if (nets)
        snprintf(trial->tag, sizeof trial->tag, "net: %c ", net);
    if (seeds) {
        size_t used = strlen(trial->tag);
        snprintf(trial->tag + used, sizeof trial->tag - used, "seed: %s ", seed);
        snprintf(trial->path, sizeof trial->path, "/seed%s", seed);
    }
    if (nets) {
        size_t used = strlen(trial->path);
        snprintf(trial->path + used, sizeof trial->path - used, "/%c", net);
    }
}

int trials_list(const struct options *options, struct trial trials[MOST_TRIALS])
{
    struct error none = {0};
    unsigned set;
    int count = 0;
    trials_parse_nets(options->net, &set, &none);
    for (uint64_t seed = 0; seed < options->seeds; seed++)
        for (int i = 0; i < NETS; i++) {
            if (!(set >> i & 1))
                continue;
            struct trial *trial = &trials[count++];
            *trial = (struct trial){.net = lenet5_nets[i], .options = *options};
            if (trial->net.p_conv > 0 && !isnan(options->p_conv))
                trial->net.p_conv = options->p_conv;
            if (trial->net.p_fc > 0 && !isnan(options->p_fc))
                trial->net.p_fc = options->p_fc;
            trial->options.seed += seed;
            trial->options.seeds = 1;
            name_trial(trial, (set & (set - 1)) != 0, options->seeds > 1);
        }
    return count;
}

bool trials_directory(const struct options *options, char *path, size_t size, struct error *error)
{
    unsigned long long first = options->seed, last = first + options->seeds - 1;
    int length = options->out != NULL ? snprintf(path, size, "%s", options->out)
                 : last > first       ? snprintf(path, size, "runs/%s-%llu-%llu", options->net, first, last)
                                      : snprintf(path, size, "runs/%s-%llu", options->net, first);
    return (size_t)length < size || error_set(error, EXIT_USAGE, "--out: the path is longer than %zu bytes", size - 1);
}
