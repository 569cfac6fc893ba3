/* dtrain: trains LeNet-5 with dropout on CIFAR-10, data-parallel.
 *
 * main reads the options, finds the data, makes sure all ranks agree, and hands over to study.c. Errors
 * come back as values; rank 0 prints the one that counts.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agree.h"
#include "comm.h"
#include "dataset.h"
#include "doctor.h"
#include "engine.h"
#include "find_data.h"
#include "launcher.h"
#include "memory.h"
#include "options.h"
#include "signals.h"
#include "study.h"
#include "verify.h"
#include "version.h"

/* In the handler of a signal. */
static const char *explain_bus_error(const void *context, const void *address)
{
    static char line[4300];
    const struct dataset *data = context;
    const char *file = dataset_file_at(data, address);
    if (file == NULL)
        return NULL;
    char *end = stpcpy(stpcpy(stpcpy(stpcpy(line, "dtrain: "), data->directory), "/"), file);
    stpcpy(end, " was cut short while the run used it, or cannot be read: restore it, then --resume\n");
    return line;
}

static enum exit_code run(const struct options *options, struct comm *world, struct error *error)
{
    static struct dataset data; /* for as long as the process lives */
    char directory[4096];
    if (comm_rank(world) == 0)
        launcher_begin();
    if (options->doctor)
        return doctor(options, world);
    if (options->verify)
        return verify_run(options, world, error);
    if (!agree_on_options(options, world, error))
        return error->code;
    bool opened = find_data(options->data, world, directory, error);
    if (opened) {
        comm_away(world); /* it reads all of the data */
        opened = dataset_open(&data, directory, error);
        comm_back(world);
    }
    if (!comm_agree(world, error)) {
        if (opened)
            dataset_close(&data);
        return error->code;
    }
    signals_explain_bus_error(explain_bus_error, &data, EXIT_INPUT);
    enum exit_code code = agree_on_data(&data, world, error) ? study_run(options, &data, world, error) : error->code;
    dataset_close(&data);
    return code;
}

/* The mpirun of another MPI starts processes that know nothing of each other: each would train alone. */
static bool is_whole(const struct comm *world, struct error *error)
{
    char mpi[100];
    if (comm_size(world) >= launcher_size())
        return true;
    comm_library(mpi, sizeof mpi);
    return error_set(
        error, EXIT_USAGE,
        "mpirun started %d ranks, but %s, the MPI this program was built with, sees %d: use that MPI's mpirun, or run "
        "make with the mpicc of this one",
        launcher_size(), mpi, comm_size(world));
}

static void print_help(void)
{
    char engines[200], transports[200];
    engine_names(engines, sizeof engines, true);
    comm_names(transports, sizeof transports, true);
    options_print_help(engines, transports);
}

/* Prints --help and --version, which need no other rank, and are to work where MPI cannot start. Returns whether that
 * was all there was to do. */
static bool answer(const struct options *options)
{
    if (options->help)
        print_help();
    else if (options->version)
        printf("dtrain %s, revision %s, %s\n", version_number, version_revision, version_build);
    return options->help || options->version;
}

/* Returns the exit code: success becomes failure when standard output could not be written, which is told unless an
 * error is. */
static enum exit_code end_output(enum exit_code code, const struct error *error)
{
    if (error->code != EXIT_DONE)
        fprintf(stderr, "dtrain: %s\n", error->text);
    if ((fflush(stdout) == 0 && !ferror(stdout)) || error->code != EXIT_DONE)
        return code;
    fprintf(stderr, "dtrain: standard output: %s\n", strerror(errno));
    return code == EXIT_DONE ? EXIT_RUNTIME : code;
}

int main(int argc, char **argv)
{
    struct options options;
    struct error error = {0};
    launcher_mend_streams();
    memory_guard_json();
    bool parsed = options_parse(argc, argv, &options, &error);
    double timeout = parsed ? options.timeout_seconds : 60;
    if (launcher_rank() == NULL && (!parsed || answer(&options)))
        return (int)end_output(error.code, &error);

    signals_install();
    struct comm *world = comm_open_world(timeout);
    bool whole = is_whole(world, &error), speaks = whole ? comm_rank(world) == 0 : strcmp(launcher_rank(), "0") == 0;
    enum exit_code code = EXIT_DONE;
    if (!whole || !comm_agree(world, &error) || !agree_on_action(&options, world, &error))
        code = error.code;
    else if (!options.help && !options.version)
        code = run(&options, world, &error);
    else if (speaks)
        answer(&options);
    if (speaks) {
        code = end_output(code, &error);
        launcher_tell(code);
    }

    comm_barrier(world); /* a rank that stalls here is still noticed */
    comm_close(world);
    return (int)code;
}
