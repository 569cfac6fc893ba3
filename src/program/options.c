#include "options.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beside.h"
#include "exact_sum.h"
#include "memory.h"
#include "run_directory.h"
#include "trials.h"

/* An ACTION is a flag that is done instead of training, VERIFY one that may have a time: they are not recorded. */
enum kind { HEADING, TEXT, CHOICE, COUNT, REAL, FLAG, ACTION, VERIFY };

struct option_spec {
    const char *name, *argument;
    enum kind kind;
    size_t offset;       /* in struct options */
    const char *initial; /* parsed like the user's own; NULL: unset (NULL, NAN, 0) */
    double least, most;
    const char *choices; /* CHOICE: "one|two" */
    const char *term;    /* its key among the terms of a run (run.h); NULL: it is none */
    const char *absent;  /* the term's, as in run.h */
    bool beside_verify;  /* it has a meaning there */
    const char *doc;
};

#define IN(member) offsetof(struct options, member)
#define MANY 1e15

static const struct option_spec specs[] = {
    {.kind = HEADING, .doc = "What is trained:"},
    {"net", "NETS", TEXT, IN(net), "D",
     .doc = "A (no dropout), B (on the fully connected layer), C (convolutions), D (both), a list like A,D, or all"},
    {"p-conv", "P", REAL, IN(p_conv), NULL, 0, 1,
     .doc = "how likely a channel is dropped after a convolution, in nets C and D (default 0.5)"},
    {"p-fc", "P", REAL, IN(p_fc), NULL, 0, 1,
     .doc = "how likely a unit of the fully connected layer is dropped, in nets B and D (default 0.5)"},
    {"init-from", "FILE", TEXT, IN(init_from), NULL, .doc = "start from these weights (safetensors, PyTorch's too)"},

    {.kind = HEADING, .doc = "Data:"},
    {"data", "DIR|FILE|synthetic", TEXT, IN(data), NULL,
     .doc = "CIFAR-10, its binary files or torchvision's, or a stand-in that needs none (synthetic, or "
            "synthetic:TRAIN+TEST)"},
    {"seed", "N", COUNT, IN(seed), "1", 0, 9e18, .term = "seed", .doc = "of weights, order and masks"},
    {"seeds", "N", COUNT, IN(seeds), "1", 1, MOST_SEEDS, .doc = "train N seeds at once, from --seed on"},

    {.kind = HEADING, .doc = "Training:"},
    {"epochs", "N", COUNT, IN(epochs), "1000", 0, MANY, .doc = "passes over the training set"},
    {"batch-size", "N", COUNT, IN(batch_size), "256", 1, EXACT_MAX_TERMS, .term = "batch_size",
     .doc = "of the global batch, on any number of ranks"},
    {"lr", "X", REAL, IN(learning_rate), "0.01", 0, 1e6, .term = "learning_rate", .doc = "learning rate"},
    {"momentum", "X", REAL, IN(momentum), "0.9", 0, 1, .term = "momentum", .doc = "of SGD"},
    {"lr-step", "N", COUNT, IN(lr_step), "150", 1, MANY, .term = "lr_step",
     .doc = "epochs between decays of the learning rate"},
    {"lr-gamma", "X", REAL, IN(lr_gamma), "0.5", 0, 1, .term = "lr_gamma", .doc = "what each decay multiplies it by"},
    {"max-steps", "N", COUNT, IN(max_steps), "0", 0, MANY, .doc = "stop after N steps in all, 0: no limit"},

    {.kind = HEADING, .doc = "Accuracy:"},
    {"eval-every", "N", COUNT, IN(eval_every), "20", 1, MANY,
     .doc = "epochs between checks; the last epoch is always checked"},
    {"eval-on", "rank0|all", CHOICE, IN(eval_on), "rank0", .choices = "rank0|all", .doc = "who evaluates"},

    {.kind = HEADING, .doc = "Files and output:"},
    {"out", "DIR", TEXT, IN(out), NULL,
     .doc = "the directory (default runs/NET-SEED, with several seeds runs/NET-FIRST-LAST; several nets or seeds have "
            "one each in it)"},
    {"resume", NULL, FLAG, IN(resume), NULL, .doc = "go on from the checkpoint in --out, if there is one"},
    {"checkpoint-every", "N", COUNT, IN(checkpoint_every), "1", 1, MANY,
     .doc = "epochs between checkpoints, which come a second apart at least, but for the last one"},
    {"progress", "auto|always|never", CHOICE, IN(progress), "auto", .choices = "auto|always|never",
     .doc = "the progress line"},

    {.kind = HEADING, .doc = "Machine:"},
    {"engine", "NAME", TEXT, IN(engine), "auto", .beside_verify = true, .doc = "what computes: "},
    {"comm", "NAME", TEXT, IN(comm), "auto", .beside_verify = true, .doc = "what sums gradients: "},
    {"precision", "fp32|tf32", CHOICE, IN(precision), "fp32", .choices = "fp32|tf32", .term = "precision",
     .absent = "fp32", .beside_verify = true,
     .doc = "of the operands of convolutions and matrix products, by engine cudnn"},
    {"timeout", "SECONDS", REAL, IN(timeout_seconds), "60", 1, 1e6, .beside_verify = true,
     .doc = "after which a silent rank counts as lost"},
    {"verify", "TIME", VERIFY, IN(verify_seconds), NULL, 0, 1e5, .beside_verify = true,
     .doc = "test the machine instead: train with known answers, for 30 s or TIME, as 10m; a wrong one is exit code 5"},
    {"doctor", NULL, ACTION, IN(doctor), NULL, .doc = "say what was found and would be chosen, and exit"},
    {"help", NULL, ACTION, IN(help), NULL, .doc = "this text"},
    {"version", NULL, ACTION, IN(version), NULL, .doc = "the version"},
};
enum { SPECS = sizeof specs / sizeof *specs, FIRST_KEY = 0x100 };

/* --- one value ---------------------------------------------------------------------------------- */

/* Decimal, as 12, 0.5, .5 or 1e-3: no sign, no spaces, no 0x10, no inf. */
static bool is_decimal(const char *text, const char *others)
{
    size_t digits = strspn(text, "0123456789");
    return (digits > 0 || (text[0] == '.' && *others != '\0' && isdigit((unsigned char)text[1]))) &&
           strspn(text, others) == strlen(text);
}

static bool parse_count(const struct option_spec *spec, const char *text, uint64_t *value, struct error *error)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    if (is_decimal(text, "0123456789") && *end == '\0' && errno == 0 && *value >= (uint64_t)spec->least &&
        *value <= (uint64_t)spec->most) /* as doubles some beyond 2^53 would be equal */
        return true;
    return error_set(error, EXIT_USAGE, "--%s %s: give a whole number from %.0f to %.0f", spec->name, text, spec->least,
                     spec->most);
}

static bool parse_real(const struct option_spec *spec, const char *text, double *value, struct error *error)
{
    char *end;
    errno = 0; /* ERANGE: too large, or too small to be anything but 0 */
    *value = strtod(text, &end);
    bool is_tiny = *value < 1 && (errno == ERANGE || (*value > 0 && (float)*value == 0)); /* floats are used */
    if (is_decimal(text, "0123456789.eE+-") && *end == '\0' && errno == 0 && !is_tiny && *value >= spec->least &&
        *value <= spec->most)
        return true;
    if (is_tiny)
        return error_set(error, EXIT_USAGE, "--%s %s: a number too small to be told from 0", spec->name, text);
    return error_set(error, EXIT_USAGE, "--%s %s: give a number from %g to %g", spec->name, text, spec->least,
                     spec->most);
}

/* Seconds, or with s, m or h after the number. No text: half a minute. */
static bool parse_time(const struct option_spec *spec, const char *text, double *seconds, struct error *error)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}};
    char *end;
    *seconds = 30;
    if (text == NULL)
        return true;
    double number = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof *units && is_decimal(text, "0123456789.smh"); i++) {
        *seconds = number * units[i].seconds;
        if (strcmp(end, units[i].name) == 0 && *seconds >= spec->least && *seconds <= spec->most)
            return true;
    }
    return error_set(error, EXIT_USAGE, "--%s=%s: give a time from %.0f s to %.0f s, as 30, 30s, 10m or 2h", spec->name,
                     text, spec->least, spec->most);
}

/* Whether `text` is one of "one|two|three". */
static bool parse_choice(const struct option_spec *spec, const char *text, struct error *error)
{
    size_t length = strlen(text);
    for (const char *choice = spec->choices; choice != NULL; choice = strchr(choice, '|')) {
        choice += *choice == '|';
        if (length > 0 && strcspn(choice, "|") == length && strncmp(choice, text, length) == 0)
            return true;
    }
    return error_set(error, EXIT_USAGE, "--%s %s: give one of %s", spec->name, text, spec->choices);
}

static bool parse_value(const struct option_spec *spec, const char *text, struct options *options, struct error *error)
{
    void *member = (char *)options + spec->offset;
    switch (spec->kind) {
    case COUNT:
        return parse_count(spec, text, member, error);
    case REAL:
        return parse_real(spec, text, member, error);
    case FLAG:
    case ACTION:
        *(bool *)member = true;
        return true;
    case CHOICE:
        *(const char **)member = text;
        return parse_choice(spec, text, error);
    case VERIFY:
        options->verify = true;
        return parse_time(spec, text, member, error);
    case TEXT:
        *(const char **)member = text;
        return *text != '\0' || error_set(error, EXIT_USAGE, "--%s: empty; give %s", spec->name, spec->argument);
    case HEADING:
        break;
    }
    return true;
}

static void set_initial(struct options *options)
{
    memset(options, 0, sizeof *options);
    for (int i = 0; i < SPECS; i++) {
        struct error none = {0};
        if (specs[i].initial != NULL)
            parse_value(&specs[i], specs[i].initial, options, &none);
        else if (specs[i].kind == REAL)
            *(double *)((char *)options + specs[i].offset) = NAN;
    }
}

/* --- what no single value shows ------------------------------------------------------------------ */

/* And gives the nets their one name. */
static bool check(struct options *options, struct error *error)
{
    unsigned set;
    bool conv = false, fc = false;
    if (!trials_parse_nets(options->net, &set, error))
        return false;
    for (int i = 0; i < NETS; i++) {
        conv |= (set >> i & 1) && lenet5_nets[i].p_conv > 0;
        fc |= (set >> i & 1) && lenet5_nets[i].p_fc > 0;
    }
    if (!conv && !isnan(options->p_conv))
        return error_set(error, EXIT_USAGE, "--p-conv: net %s has no dropout on its convolutions; C and D do",
                         options->net);
    if (!fc && !isnan(options->p_fc))
        return error_set(error, EXIT_USAGE, "--p-fc: net %s has no dropout on its fully connected layer; B and D do",
                         options->net);
    trials_name_nets(set, options->net_name);
    options->net = options->net_name;
    return true;
}

/* --- argp ---------------------------------------------------------------------------------------- */

struct parse {
    struct options *options;
    struct error *error;
    bool given[SPECS];
};

/* The option that "--name" or "--name=value" names in full, or NULL. */
static const struct option_spec *find_spec(const char *word)
{
    size_t length = strncmp(word, "--", 2) == 0 ? strcspn(word + 2, "=") : 0;
    for (int i = 0; i < SPECS && length > 0; i++)
        if (specs[i].name != NULL && strlen(specs[i].name) == length && strncmp(word + 2, specs[i].name, length) == 0)
            return &specs[i];
    return NULL;
}

/* --verify trains nets, data and batches of its own. */
static bool check_verify(const struct parse *parse)
{
    for (int i = 0; i < SPECS && parse->options->verify; i++)
        if (parse->given[i] && !specs[i].beside_verify)
            return error_set(
                parse->error, EXIT_USAGE,
                "--%s: not with --verify, which trains nets and data of its own; beside it go --engine, --comm, "
                "--precision and --timeout",
                specs[i].name);
    return true;
}

/* Whether it is, with or without a value, an option of launch/run or mpirun. */
static bool is_of_launcher(const char *word)
{
    static const char *const names[] = {"-np", "--np", "-n", "-H", "--host", "--hostfile", "--interface"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcspn(word, "=") == strlen(names[i]) && strncmp(word, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

static bool refuse_stray(const char *word, struct error *error)
{
    return error_set(error, EXIT_USAGE, "%s: dtrain takes options only; see --help", word);
}

/* What getopt could not take; said here, so that one line from one rank says it. */
static bool refuse(const char *word, struct error *error)
{
    const struct option_spec *spec = find_spec(word);
    if (word[0] != '-' || word[1] == '\0')
        return refuse_stray(word, error);
    if (is_of_launcher(word))
        return error_set(error, EXIT_USAGE,
                         "%s: no option of dtrain; what %srun takes comes first: %srun -np 2 --net D", word,
                         beside_launch(), beside_launch());
    if (spec == NULL)
        return error_set(error, EXIT_USAGE, "%s: no such option; see --help", word);
    if (spec->argument == NULL)
        return error_set(error, EXIT_USAGE, "%s: --%s takes no value", word, spec->name);
    return error_set(error, EXIT_USAGE, "--%s: lacks its value; give %s", spec->name, spec->argument);
}

static error_t parse_one(int key, char *argument, struct argp_state *state)
{
    struct parse *parse = state->input;
    if (key == ARGP_KEY_ARG) { /* after -- */
        refuse_stray(argument, parse->error);
        return EINVAL;
    }
    if (key == ARGP_KEY_ERROR && !parse->options->help && !parse->options->version)
        refuse(state->argv[state->next - 1], parse->error);
    if (key < FIRST_KEY || key >= FIRST_KEY + SPECS)
        return ARGP_ERR_UNKNOWN;
    const struct option_spec *spec = &specs[key - FIRST_KEY];
    parse->given[key - FIRST_KEY] = true;
    if (!parse_value(spec, argument, parse->options, parse->error))
        return EINVAL;
    return parse->options->help || parse->options->version ? ECANCELED : 0;
}

/* argp's description, from our table. */
struct description {
    struct argp argp;
    struct argp_option table[SPECS + 1];
    char docs[SPECS][200];
};

static void build_argp(struct description *description, const char *engines, const char *transports)
{
    int group = 0;
    struct argp_option *table = description->table;
    for (int i = 0; i < SPECS; i++) {
        const struct option_spec *spec = &specs[i];
        if (spec->kind == HEADING) {
            group++;
            table[i] = (struct argp_option){.doc = spec->doc, .group = group};
            continue;
        }
        bool show = spec->initial != NULL;
        char *doc = description->docs[i];
        const char *names = spec->offset == IN(engine) ? engines : spec->offset == IN(comm) ? transports : "";
        snprintf(doc, sizeof description->docs[i], "%s%s%s%s%s", spec->doc, names, show ? " (default " : "",
                 show ? spec->initial : "", show ? ")" : "");
        table[i] = (struct argp_option){
            spec->name, FIRST_KEY + i, spec->argument, spec->kind == VERIFY ? OPTION_ARG_OPTIONAL : 0, doc, group};
    }
    table[SPECS] = (struct argp_option){0};
    description->argp = (struct argp){
        .options = table,
        .parser = parse_one,
        .doc = "Trains LeNet-5 with dropout on CIFAR-10, data-parallel over MPI ranks: mpirun -np 4 ./dtrain --net D"
               "\v"
               "Exit codes: 0 done; 1 the run failed; 2 wrong options; 3 bad data or checkpoint; 4 a rank was lost; "
               "5 replicas diverged, or --verify found a wrong answer; 6 too little time for --verify; 75 stopped by a "
               "signal, saved: run again with --resume.",
    };
}

/* getopt would take any beginning of a name that is only one option's, which scripts that look for --out would miss;
 * and of -xyz, as there are no short names, it would not tell the word. */
static bool names_are_whole(int argc, char **argv, struct error *error)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const struct option_spec *spec = find_spec(argv[i]);
        if (spec == NULL)
            return refuse(argv[i], error);
        if (spec->offset == IN(help) || spec->offset == IN(version))
            return true; /* the rest is not looked at */
        i += spec->argument != NULL && spec->kind != VERIFY && strchr(argv[i], '=') == NULL;
    }
    return true;
}

bool options_parse(int argc, char **argv, struct options *options, struct error *error)
{
    struct description description;
    struct parse parse = {.options = options, .error = error};
    build_argp(&description, "", "");
    set_initial(options);
    if (!names_are_whole(argc, argv, error))
        return false;
    error_t failed = argp_parse(&description.argp, argc, argv, ARGP_NO_HELP | ARGP_NO_EXIT | ARGP_NO_ERRS, NULL,
                                &parse);
    return failed ? failed == ECANCELED : check(options, error) && check_verify(&parse);
}

/* Without the lines of blanks alone that argp leaves below one which it has filled to the last column. */
static void print_lines(const char *text)
{
    while (*text != '\0') {
        size_t length = strcspn(text, "\n"), blanks = strspn(text, " ");
        if (blanks < length || length == 0)
            printf("%.*s\n", (int)length, text);
        text += length + (text[length] == '\n');
    }
}

void options_print_help(const char *engines, const char *transports)
{
    struct description description;
    char *text = NULL;
    size_t bytes;
    FILE *memory = memory_check(open_memstream(&text, &bytes), "the help");
    build_argp(&description, engines, transports);
    argp_help(&description.argp, memory,
              ARGP_HELP_SHORT_USAGE | ARGP_HELP_PRE_DOC | ARGP_HELP_LONG | ARGP_HELP_POST_DOC, (char *)"dtrain");
    fclose(memory);
    print_lines(memory_check(text, "the help"));
    free(text);
}

void options_terms(const struct options *options, struct terms *terms)
{
    for (int i = 0; i < SPECS; i++) {
        const struct option_spec *spec = &specs[i];
        const void *member = (const char *)options + spec->offset;
        if (spec->term == NULL)
            continue;
        struct term *term = run_add_term(terms, spec->term, spec->name);
        term->absent = spec->absent;
        if (spec->kind == COUNT)
            snprintf(term->value, sizeof term->value, "%llu", (unsigned long long)*(const uint64_t *)member);
        else if (spec->kind == REAL)
            run_print_number(*(const double *)member, term->value);
        else
            snprintf(term->value, sizeof term->value, "%s", *(const char *const *)member);
    }
}

cJSON *options_json(const struct options *options)
{
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < SPECS; i++) {
        const struct option_spec *spec = &specs[i];
        const void *member = (const char *)options + spec->offset;
        char number[32];
        cJSON *value = NULL;
        switch (spec->kind) {
        case HEADING:
        case ACTION:
        case VERIFY:
            continue;
        case COUNT: /* 64 bits: more than a JSON reader's double keeps */
            snprintf(number, sizeof number, "%llu", (unsigned long long)*(const uint64_t *)member);
            value = cJSON_CreateRaw(number);
            break;
        case REAL:
            value = isnan(*(const double *)member) ? cJSON_CreateNull() : cJSON_CreateNumber(*(const double *)member);
            break;
        case FLAG:
            value = cJSON_CreateBool(*(const bool *)member);
            break;
        case TEXT:
        case CHOICE:
            value = *(const char *const *)member != NULL ? run_directory_text(*(const char *const *)member)
                                                         : cJSON_CreateNull();
            break;
        }
        cJSON_AddItemToObject(json, spec->name, value);
    }
    return json;
}
