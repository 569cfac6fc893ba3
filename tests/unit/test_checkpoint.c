/* Checkpoints: exact, refused when damaged or of another run, and never lost: not by a kill, not by a full
 * disk. Each test works in an empty directory. */
#include <glob.h>
#include <grp.h>
#include <inttypes.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "checkpoint.h"
#include "options.h"
#include "scratch.h"
#include "src/files/safetensors.h"

static const char CURRENT[] = "checkpoint.safetensors", PREVIOUS[] = "checkpoint-previous.safetensors";
static const char BEST[] = "model-best.safetensors";

enum { SAMPLES = 50000 }; /* of an epoch */

static const struct terms terms = {.count = 4,
                                   .list = {
                                       {"net", "net", NULL, "D"},
                                       {"train_count", "data with a training set of", NULL, "50000"},
                                       {"momentum", "momentum", NULL, "0.9"},
                                       {"precision", "precision", "fp32", "fp32"},
                                   }};

/* Everything in a state tells its number. */
struct state {
    struct progress progress;
    float weights[LENET5_WEIGHTS], velocity[LENET5_WEIGHTS];
};

static void fill_state(struct state *state, uint64_t number)
{
    state->progress = (struct progress){
        .epoch = number,
        .step = UINT64_MAX - number,
        .in_epoch = 50000,
        .loss = INT64_MIN + (int64_t)number,
        .seconds = 1e300 / 3,
        .epoch_seconds = 0x1p-1074,
        .best_train = -1,
        .best_test = 100.0 / 3,
    };
    for (int i = 0; i < LENET5_WEIGHTS; i++) {
        state->weights[i] = (float)number + (float)i * 0x1p-16f;
        state->velocity[i] = -state->weights[i];
    }
}

static bool write_state(const char *directory, uint64_t number, struct error *error)
{
    struct state state;
    struct folder folder;
    fill_state(&state, number);
    bool done = folder_open(&folder, directory, error) &&
                checkpoint_write(&folder, &terms, &state.progress, state.weights, state.velocity, error);
    folder_close(&folder);
    return done;
}

static bool read_state(const char *directory, struct state *state, struct error *error)
{
    struct folder folder;
    memset(state, 0xff, sizeof *state);
    bool done = folder_open(&folder, directory, error) &&
                checkpoint_read(&folder, &terms, SAMPLES, &state->progress, state->weights, state->velocity, error);
    folder_close(&folder);
    return done;
}

static void assert_state(const struct state *state, uint64_t number)
{
    struct state expected;
    fill_state(&expected, number);
    assert_memory_equal(&state->progress, &expected.progress, sizeof expected.progress);
    assert_memory_equal(state->weights, expected.weights, sizeof expected.weights);
    assert_memory_equal(state->velocity, expected.velocity, sizeof expected.velocity);
}

static void assert_holds(const char *directory, uint64_t number)
{
    struct error error = {0};
    struct state state;
    read_state(directory, &state, &error);
    assert_no_error(&error);
    assert_state(&state, number);
}

/* --- exact ------------------------------------------------------------------------------------------ */

static void test_read_is_what_was_written(void **unused)
{
    (void)unused;
    struct error error = {0};
    assert_false(checkpoint_exists(&here));
    for (uint64_t number = 1; number <= 3; number++) {
        assert_true(write_state(".", number, &error));
        assert_true(checkpoint_exists(&here));
        assert_holds(".", number);
    }
    assert_int_equal(rename(PREVIOUS, CURRENT), 0);
    assert_holds(".", 2);
}

static void test_awkward_directory_names(void **unused)
{
    (void)unused;
    static const char *const names[] = {"a b", "it's \"it\"", "new\nline", "-rf", "*", "\xff%s%n"};
    struct error error = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(mkdir(names[i], 0777), 0);
        assert_true(write_state(names[i], i, &error));
        assert_holds(names[i], i);
    }
    char deep[4200];
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    assert_false(write_state(deep, 1, &error));
    assert_error(&error, EXIT_RUNTIME, "a path of 4199 bytes");
}

/* --- other terms ------------------------------------------------------------------------------------ */

static void test_other_terms_are_named(void **unused)
{
    (void)unused;
    struct {
        const char *value, *message;
    } cases[] = {
        {"A", "--net D, but this one has A"},
        {"1000", "--data with a training set of 50000, but this one has 1000"},
        {"0", "--momentum 0.9, but this one has 0"},
        {"tf32", "--precision fp32, but this one has tf32"},
    };

    struct error error = {0};
    assert_true(write_state(".", 1, &error));
    assert_true(write_state(".", 2, &error)); /* the previous one is of no more help */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct state state;
        struct terms others = terms;
        strcpy(others.list[i].value, cases[i].value);
        assert_false(checkpoint_read(&here, &others, SAMPLES, &state.progress, state.weights, state.velocity, &error));
        assert_null(strstr(error.text, PREVIOUS));
        assert_non_null(strstr(error.text, "--init-from"));
        assert_error(&error, EXIT_INPUT, cases[i].message);
    }
}

/* Options that are terms, and how their values are written. */
static void test_options_that_are_terms(void **unused)
{
    (void)unused;
    static const struct {
        const char *key, *option, *value;
    } expected[] = {
        {"seed", "seed", "18446744073709551615"},
        {"batch_size", "batch-size", "256"},
        {"learning_rate", "lr", "0.10000000000000002"},
        {"momentum", "momentum", "0.9"},
        {"lr_step", "lr-step", "150"},
        {"lr_gamma", "lr-gamma", "0.3333333333333333"},
        {"precision", "precision", "fp32"},
    };
    struct options options;
    struct error error = {0};
    struct terms found = {0};
    assert_true(options_parse(1, (char *[]){(char *)"dtrain", NULL}, &options, &error));
    options.seed = UINT64_MAX;
    options.learning_rate = nextafter(0.1, 1);
    options.lr_gamma = 1.0 / 3;
    options_terms(&options, &found);
    assert_int_equal(found.count, sizeof expected / sizeof *expected);
    for (int i = 0; i < found.count; i++) {
        assert_string_equal(found.list[i].key, expected[i].key);
        assert_string_equal(found.list[i].option, expected[i].option);
        assert_string_equal(found.list[i].value, expected[i].value);
    }
}

/* --- damage ----------------------------------------------------------------------------------------- */

static void test_every_damage_is_found(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    size_t bytes;
    uint64_t header;
    assert_true(write_state(".", 1, &error));
    char *file = scratch_read(CURRENT, &bytes);
    memcpy(&header, file, 8);
    FILE *stream = fopen(CURRENT, "r+b");
    setbuf(stream, NULL);
    for (size_t i = 0; i < bytes; i += i < 8 + header ? 1 : 1009) { /* the header, and a sample of the data */
        fseek(stream, (long)i, SEEK_SET);
        putc(file[i] ^ 1 << i % 8, stream);
        if (read_state(".", &state, &error))
            fail_msg("byte %zu is flipped and nobody noticed", i);
        assert_error(&error, EXIT_INPUT, "./checkpoint.safetensors: ");
        fseek(stream, (long)i, SEEK_SET);
        putc(file[i], stream);
    }
    fclose(stream);
    assert_holds(".", 1);
    for (size_t left = 0; left < bytes; left += 4999) {
        scratch_write(CURRENT, file, left);
        assert_false(read_state(".", &state, &error));
        assert_error(&error, EXIT_INPUT, "./checkpoint.safetensors: ");
    }
    free(file);
}

static void test_the_previous_one_helps(void **unused)
{
    (void)unused;
    static const char advice[] = "; checkpoint-previous.safetensors (epoch 6) is whole: rename it to "
                                 "checkpoint.safetensors and --resume goes on from there";
    struct error error = {0};
    struct state state;
    assert_true(write_state(".", 6, &error));
    assert_true(write_state(".", 7, &error));

    assert_int_equal(truncate(CURRENT, 100000), 0);
    assert_false(read_state(".", &state, &error));
    assert_non_null(strstr(error.text, "./checkpoint.safetensors: damaged"));
    assert_error(&error, EXIT_INPUT, advice);

    assert_int_equal(unlink(CURRENT), 0);
    assert_true(checkpoint_exists(&here));
    assert_holds(".", 6); /* which is said */
    assert_true(write_state(".", 8, &error));
    assert_holds(".", 8);
    assert_int_equal(rename(PREVIOUS, CURRENT), 0);
    assert_holds(".", 6);

    assert_int_equal(truncate(CURRENT, 0), 0);
    scratch_write(PREVIOUS, "damaged as well", 15);
    assert_false(read_state(".", &state, &error));
    assert_null(strstr(error.text, "--init-from"));
    assert_non_null(
        strstr(error.text, "; checkpoint-previous.safetensors is damaged, too: start anew with another --out"));
    assert_error(&error, EXIT_INPUT, "./checkpoint.safetensors: not a safetensors file, or truncated");
    scratch_write("model-best.safetensors", "x", 1);
    assert_false(read_state(".", &state, &error));
    assert_error(&error, EXIT_INPUT, " another --out and --init-from ./model-best.safetensors");
    assert_int_equal(unlink(PREVIOUS), 0);
    assert_false(read_state(".", &state, &error));
    assert_null(strstr(error.text, PREVIOUS));
    assert_error(&error, EXIT_INPUT, " truncated: 0 bytes");
}

/* Killed before the file was given its name, where there was no other, or no hard links. */
static void test_an_interrupted_write_helps(void **unused)
{
    (void)unused;
    struct error error = {0};
    assert_true(write_state(".", 7, &error));
    assert_int_equal(rename(CURRENT, "checkpoint.safetensors.tmp-77"), 0);
    scratch_write("checkpoint.safetensors.tmp-78", "half", 4);
    assert_false(checkpoint_exists(&here));
    checkpoint_recover(&here);
    assert_holds(".", 7);

    assert_true(write_state(".", 9, &error)); /* 7 is the previous one, and of a later step: fill_state */
    assert_int_equal(rename(CURRENT, "checkpoint.safetensors.tmp-77"), 0);
    checkpoint_recover(&here);
    assert_holds(".", 7);

    assert_true(write_state(".", 6, &error));
    assert_true(write_state(".", 5, &error));
    assert_int_equal(rename(CURRENT, "checkpoint.safetensors.tmp-79"), 0);
    checkpoint_recover(&here);
    assert_holds(".", 5);

    assert_int_equal(rename(PREVIOUS, "checkpoint.safetensors.tmp-80"), 0);
    checkpoint_recover(&here); /* one that is there stays */
    assert_holds(".", 5);
}

/* Rewrites the current checkpoint with one metadata value replaced (NULL: left out), checksum and all. */
static void forge(const char *key, const char *value)
{
    static const char *const keys[] = {
        "dtrain-checkpoint", "net",  "train_count", "momentum",      "precision",  "epoch",    "step",
        "in_epoch",          "loss", "seconds",     "epoch_seconds", "best_train", "best_test"};
    enum { KEYS = sizeof keys / sizeof *keys };
    struct error error = {0};
    assert_true(write_state(".", 1, &error));
    struct safetensors *file = safetensors_open(CURRENT, &error);
    struct metadata metadata[KEYS];
    size_t n = 0;
    for (size_t i = 0; i < KEYS; i++) {
        const char *old = safetensors_metadata(file, keys[i]);
        assert_non_null(old);
        metadata[n] = (struct metadata){keys[i], strcmp(keys[i], key) == 0 ? value : old};
        n += metadata[n].value != NULL;
    }
    assert_true(safetensors_write(&here, CURRENT, NULL, NULL, 0, metadata, n, &error));
    safetensors_close(file);
}

static void test_contents_that_cannot_be(void **unused)
{
    (void)unused;
    static const struct {
        const char *key, *value, *message;
    } cases[] = {
        {"dtrain-checkpoint", "2", "a checkpoint of format 2, this dtrain reads format 1"},
        {"dtrain-checkpoint", NULL, "not a checkpoint of dtrain: its metadata has no 'dtrain-checkpoint'"},
        {"momentum", NULL, "its metadata lacks 'momentum'"},
        {"epoch", NULL, "'epoch' is missing"},
        {"epoch", "-1", "'epoch' is -1, not a number"},
        {"epoch", "1x", "'epoch' is 1x"},
        {"epoch", "18446744073709551616", "'epoch' is 18446744073709551616"},
        {"seconds", "nan", "'seconds' is nan"},
        {"seconds", "inf", "'seconds' is inf"},
        {"loss", "", "'loss' is "},
        {"loss", "-0", "'loss' is -0"},
        {"loss", "1234567890123456789012345678901234567890", "'loss' is 1234567890123456789012345678901"},
        {"in_epoch", "50001", "50001 samples used of an epoch of 50000"},
        {"precision", "tf32", "--precision tf32, but this one has fp32"},
        {"precision", NULL, "has no tensor 'conv1.weight'"}, /* an older file: it was fp32, so the terms hold */
        {"none", NULL, "has no tensor 'conv1.weight'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error error = {0};
        struct state state;
        forge(cases[i].key, cases[i].value);
        unlink(PREVIOUS);
        assert_false(read_state(".", &state, &error));
        assert_error(&error, EXIT_INPUT, cases[i].message);
    }
}

static void test_a_model_is_no_checkpoint(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    fill_state(&state, 1);
    assert_true(checkpoint_write_best(&here, &terms, &state.progress, state.weights, &error));
    assert_int_equal(rename(BEST, CURRENT), 0);
    assert_false(read_state(".", &state, &error));
    assert_error(&error, EXIT_INPUT, "not a checkpoint of dtrain");
}

/* --- never lost ------------------------------------------------------------------------------------- */

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* A child that writes checkpoint after checkpoint, numbers from `number` on. */
static pid_t start_writer(uint64_t number)
{
    pid_t child = fork();
    if (child == 0) {
        struct error error = {0};
        while (write_state(".", number++, &error))
            ;
        _exit(1);
    }
    return child;
}

static size_t count_leftovers(void)
{
    glob_t found;
    size_t count = glob("*.tmp-*", 0, NULL, &found) == 0 ? found.gl_pathc : 0;
    globfree(&found);
    return count;
}

static void test_killed_100_times(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    uint64_t number = 1, advances = 0, torn = 0;
    srand(1);
    assert_true(write_state(".", number, &error));
    double start = now_seconds();
    assert_true(write_state(".", number, &error));
    double most_seconds = 4 * (now_seconds() - start); /* a disk may become slower, or faster, meanwhile */
    for (int round = 0; round < 100; round++) {
        int status;
        pid_t child = start_writer(number + 1);
        assert_true(child > 0);
        usleep((useconds_t)(most_seconds * 1e6 * rand() / RAND_MAX));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        torn += count_leftovers() > 0;

        read_state(".", &state, &error);
        assert_no_error(&error);
        assert_true(state.progress.epoch >= number);
        bool advanced = state.progress.epoch > number;
        advances += advanced;
        most_seconds *= advanced ? 0.9 : 1.2;
        number = state.progress.epoch;
        assert_state(&state, number);
    }
    print_message("# %d of 100 kills tore a file, %d came after a whole one\n", (int)torn, (int)advances);
    assert_true(torn >= 5 && advances >= 5); /* the kills did fall into the middle of writing */
    assert_true(write_state(".", 5, &error));
    assert_int_equal(count_leftovers(), 0);
}

static void test_a_full_disk(void **unused)
{
    (void)unused;
    struct error error = {0};
    assert_true(write_state(".", 1, &error));
    assert_true(write_state(".", 2, &error));
    static const rlim_t room[] = {0, 1, 4096, 100000, 495000};
    for (size_t i = 0; i < sizeof room / sizeof *room; i++) {
        scratch_limit(room[i]);
        bool done = write_state(".", 3, &error);
        scratch_limit(RLIM_INFINITY);
        assert_false(done);
        assert_error(&error, EXIT_RUNTIME, "./checkpoint.safetensors: cannot be written: File too large");
        assert_holds(".", 2);
    }
    assert_int_equal(rename(PREVIOUS, CURRENT), 0);
    assert_holds(".", 1);
}

static void test_a_directory_that_cannot_be_written(void **unused)
{
    (void)unused;
    struct error error = {0};
    assert_true(write_state(".", 1, &error));
    assert_int_equal(chmod(".", 0555), 0);
    int status;
    pid_t child = fork();
    if (child == 0) { /* root may write anywhere: become nobody */
        if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0))
            _exit(2);
        bool refused = !write_state(".", 2, &error) && error.code == EXIT_RUNTIME &&
                       strstr(error.text, "./checkpoint.safetensors: cannot be written: Permission denied");
        _exit(!refused);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(chmod(".", 0755), 0);
    if (WEXITSTATUS(status) == 2) {
        print_message("# needs a user who is not root, and this root may not become one\n");
        skip();
    }
    assert_int_equal(status, 0);
    assert_holds(".", 1);
}

/* As nobody, if this is root: whether what is read is refused for this and no other reason. False: this root may not
 * become another user. */
static bool refused_to_nobody(const char *reason, bool *refused)
{
    int status;
    struct state state;
    struct error error = {0};
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0))
            _exit(2);
        bool read = read_state(".", &state, &error);
        _exit(read || error.code != EXIT_INPUT || strcmp(error.text, reason) != 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    *refused = status == 0;
    return WEXITSTATUS(status) != 2;
}

/* It is not called damaged, and nobody is told to put another in its place. */
static void test_one_that_may_not_be_read(void **unused)
{
    (void)unused;
    struct error error = {0};
    bool refused;
    assert_true(write_state(".", 1, &error));
    assert_true(write_state(".", 2, &error));
    assert_int_equal(chmod(".", 0755), 0);
    assert_int_equal(chmod(CURRENT, 0), 0);
    if (!refused_to_nobody("./checkpoint.safetensors: cannot be read: Permission denied", &refused)) {
        print_message("# needs a user who is not root, and this root may not become one\n");
        skip();
    }
    assert_true(refused);
    assert_int_equal(chmod(PREVIOUS, 0), 0);
    refused_to_nobody("./checkpoint.safetensors: cannot be read: Permission denied", &refused);
    assert_true(refused);
    assert_int_equal(unlink(CURRENT), 0);
    refused_to_nobody("./checkpoint-previous.safetensors: cannot be read: Permission denied", &refused);
    assert_true(refused);
}

/* --- weights alone ---------------------------------------------------------------------------------- */

static void test_models(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    float weights[LENET5_WEIGHTS];
    fill_state(&state, 9);
    assert_true(checkpoint_write_best(&here, &terms, &state.progress, state.weights, &error));
    assert_true(checkpoint_read_model(BEST, weights, &error));
    assert_memory_equal(weights, state.weights, sizeof weights);
    struct safetensors *file = safetensors_open(BEST, &error);
    assert_string_equal(safetensors_metadata(file, "format"), "pt");
    safetensors_close(file);

    assert_true(write_state(".", 10, &error)); /* a checkpoint will do */
    assert_true(checkpoint_read_model(CURRENT, weights, &error));
    fill_state(&state, 10);
    assert_memory_equal(weights, state.weights, sizeof weights);
}

static void test_models_that_do_not_fit(void **unused)
{
    (void)unused;
    struct error error = {0};
    float weights[LENET5_WEIGHTS] = {0};
    struct tensor gray = {"conv1.weight", 4, {6, 1, 5, 5}, 150, weights};
    assert_true(safetensors_write(&here, "gray", NULL, &gray, 1, NULL, 0, &error));
    assert_false(checkpoint_read_model("gray", weights, &error));
    assert_error(&error, EXIT_INPUT, "gray: tensor 'conv1.weight' has shape [6,1,5,5], but [6,3,5,5] is");

    struct tensor wrapped[] = {{"module.conv1.weight", 4, {6, 3, 5, 5}, 450, weights},
                               {"conv1.weight", 4, {6, 3, 5, 5}, 450, weights}};
    assert_true(safetensors_write(&here, "wrapped", NULL, wrapped, 1, NULL, 0, &error));
    assert_false(checkpoint_read_model("wrapped", weights, &error));
    assert_error(&error, EXIT_INPUT, "wrapped: has no tensor 'module.conv1.bias'");
    assert_true(safetensors_write(&here, "both", NULL, wrapped, 2, NULL, 0, &error)); /* a mean beside the model */
    assert_false(checkpoint_read_model("both", weights, &error));
    assert_error(&error, EXIT_INPUT, "both: has no tensor 'conv1.bias'");

    weights[1000] = NAN;
    struct progress progress = {.best_test = 50};
    assert_true(checkpoint_write_best(&here, &terms, &progress, weights, &error));
    assert_false(checkpoint_read_model(BEST, weights, &error));
    assert_error(&error, EXIT_INPUT, "weight 1000 is nan, not a finite number");
}

static void test_another_best_model(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    struct terms others = terms;
    bool has_checksum;
    fill_state(&state, 1);
    assert_false(checkpoint_check_best(&here, &terms, &state.progress, &has_checksum, &error));
    assert_error(&error, EXIT_INPUT, "./model-best.safetensors: cannot be read: No such file");
    assert_true(checkpoint_write_best(&here, &terms, &state.progress, state.weights, &error));
    assert_true(checkpoint_check_best(&here, &terms, &state.progress, &has_checksum, &error) && has_checksum);
    for (double known = -1; known < 50; known += 34) { /* none, or of an earlier check: it is of one before a kill */
        state.progress.best_test = known;
        assert_true(checkpoint_check_best(&here, &terms, &state.progress, &has_checksum, &error) && has_checksum);
        assert_true(state.progress.best_test == 100.0 / 3);
    }
    state.progress.best_test += 1;
    assert_false(checkpoint_check_best(&here, &terms, &state.progress, &has_checksum, &error));
    assert_error(&error, EXIT_INPUT, "of a check with 33.3333333333333");
    strcpy(others.list[0].value, "A");
    assert_false(checkpoint_check_best(&here, &others, &state.progress, &has_checksum, &error));
    assert_error(&error, EXIT_INPUT, "--net D, but this one has A");

    FILE *file = fopen(BEST, "r+b");
    assert_int_equal(fseek(file, -1000, SEEK_END), 0);
    fputc('x', file);
    fclose(file);
    assert_false(checkpoint_check_best(&here, &terms, &state.progress, &has_checksum, &error));
    assert_error(&error, EXIT_INPUT, "./model-best.safetensors: damaged");
}

/* The losses of an epoch may be more than 64 bits. */
static void test_large_losses(void **unused)
{
    (void)unused;
    struct error error = {0};
    struct state state;
    for (int sign = -1; sign <= 1; sign++) {
        fill_state(&state, 1);
        state.progress.loss = sign * ((exact_wide)INT64_MAX * 1000000 + 7);
        assert_true(checkpoint_write(&here, &terms, &state.progress, state.weights, state.velocity, &error));
        exact_wide loss = state.progress.loss;
        assert_true(read_state(".", &state, &error));
        assert_true(state.progress.loss == loss);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_read_is_what_was_written),
        TEST(test_awkward_directory_names),
        TEST(test_other_terms_are_named),
        TEST(test_options_that_are_terms),
        TEST(test_every_damage_is_found),
        TEST(test_the_previous_one_helps),
        TEST(test_an_interrupted_write_helps),
        TEST(test_contents_that_cannot_be),
        TEST(test_a_model_is_no_checkpoint),
        TEST(test_killed_100_times),
        TEST(test_a_full_disk),
        TEST(test_a_directory_that_cannot_be_written),
        TEST(test_one_that_may_not_be_read),
        TEST(test_models),
        TEST(test_models_that_do_not_fit),
        TEST(test_another_best_model),
        TEST(test_large_losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
