/* options.h - the command line. One table (options.c) drives the parser, --help and run.json. */
#ifndef DTRAIN_OPTIONS_H
#define DTRAIN_OPTIONS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "lenet5.h"
#include "run.h"

/* Texts are borrowed from argv or from the table of defaults; `net` from the struct that options_parse has filled. */
struct options {
    const char *net; /* a list in order, like "A,D", or "all"; see trials_list */
    char net_name[2 * NETS];
    double p_conv, p_fc; /* NAN: the net's own */

    const char *data;      /* NULL: searched for, see dataset_find */
    uint64_t seed;         /* the first of them */
    uint64_t seeds;        /* how many, one after the other */
    const char *init_from; /* NULL: PyTorch's initialisation */

    uint64_t epochs, batch_size; /* batch_size is GLOBAL */
    double learning_rate, momentum, lr_gamma;
    uint64_t lr_step;   /* epochs */
    uint64_t max_steps; /* 0: no limit */

    uint64_t eval_every; /* epochs */
    const char *eval_on; /* "rank0" or "all" */

    const char *out; /* NULL: see trials_directory */
    bool resume;
    uint64_t checkpoint_every; /* epochs; if a second has passed since the last checkpoint */
    const char *progress;      /* "auto", "always" or "never" */

    const char *engine, *comm;
    const char *precision; /* "fp32" or "tf32" */
    double timeout_seconds;

    bool doctor, help, version;
    bool verify;
    double verify_seconds; /* of --verify */
};

/* Fills *options from the command line. On bad input false and *error (EXIT_USAGE). After --help or --version
 * the rest is not looked at. */
bool options_parse(int argc, char **argv, struct options *options, struct error *error);

/* The names of engines and transports are those of the tables that own them. */
void options_print_help(const char *engines, const char *transports);

enum { MOST_SEEDS = 32 };

/* Adds those options that fix a run's arithmetic. */
void options_terms(const struct options *options, struct terms *terms);

/* Every option and its value, as a new JSON object the caller owns. */
cJSON *options_json(const struct options *options);

#endif
