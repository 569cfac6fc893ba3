/* trials.h - what a study trains: nets under seeds, as the options name them. */
#ifndef DTRAIN_TRIALS_H
#define DTRAIN_TRIALS_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "lenet5.h"
#include "options.h"

enum { MOST_TRIALS = NETS * MOST_SEEDS };

/* One training of a study: a net under a seed. Alone it would have the same options, and the same result. */
struct trial {
    struct net net;         /* with --p-conv and --p-fc applied */
    struct options options; /* of this trial: one seed, its own */
    char name[40];          /* for sentences: "net A"; among several seeds "net A, seed 2" */
    char tag[40];           /* before its lines, as far as it tells trials apart: "", "net: A ", "net: A seed: 2 " */
    char path[40];          /* of its files, below the study's directory, likewise: "", "/A", "/seed2/A" */
};

/* The trials asked for, by seed and in a seed by net: trials[0..return). */
int trials_list(const struct options *options, struct trial trials[MOST_TRIALS]);

/* The directory of the study: --out, or one named after nets and seeds. On a path that is too long false and *error
 * (EXIT_USAGE). */
bool trials_directory(const struct options *options, char *path, size_t size, struct error *error);

/* "A,D" or "all" to a set of nets: bit i for lenet5_nets[i]. Else false and *error (EXIT_USAGE). */
bool trials_parse_nets(const char *text, unsigned *set, struct error *error);

/* The one name of a set that has a net, in whatever order and case --net gave it: "A,D", or "all". So runs/A,D-1 is the
 * run of --net d,a as well. */
void trials_name_nets(unsigned set, char name[2 * NETS]);

#endif
