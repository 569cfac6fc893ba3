/* dtrain: trains LeNet-5 with dropout on CIFAR-10, data-parallel.
 *
 * main reads the options, finds the data, makes sure all ranks agree, and hands over to study.c. Errors
 * come back as values; rank 0 prints the one that counts.
 */
#include <stdio.h>

#include "comm.h"
#include "dataset.h"
#include "describe.h"
#include "doctor.h"
#include "options.h"
#include "signals.h"
#include "study.h"
#include "synthetic.h"
#include "watch.h"

/* `--data synthetic` is made in the cache by one rank a host, then read like any other data. */
static bool find_data(const struct options *options, struct comm *world, char directory[4096], struct error *error)
{
    size_t train, test;
    bool synthetic = options->data != NULL && synthetic_parse(options->data, &train, &test, error);
    if (error->code != EXIT_DONE)
        return false;
    if (!synthetic)
        return dataset_find(options->data, directory, error);
    if (comm_host_rank(world) == 0)
        synthetic_make(train, test, directory, error);
    if (!comm_agree(world, error))
        return false;
    return synthetic_make(train, test, directory, error);
}

static enum exit_code run(const struct options *options, struct comm *world, struct error *error)
{
    char directory[4096];
    struct dataset data;
    if (options->doctor)
        return doctor(options, world);
    signals_install();
    if (!describe_agree_options(options, world, error))
        return error->code;
    bool opened = find_data(options, world, directory, error) && dataset_open(&data, directory, error);
    if (!comm_agree(world, error)) {
        if (opened)
            dataset_close(&data);
        return error->code;
    }
    enum exit_code code = describe_agree_data(&data, world, error) ? study_run(options, &data, world, error)
                                                                   : error->code;
    dataset_close(&data);
    return code;
}

int main(int argc, char **argv)
{
    int rank, threads;
    struct options options;
    struct error error = {0};
    MPI_CHECK(MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &threads)); /* for turns.h */
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));

    /* Ranks started with unlike command lines must not wait for each other either. */
    bool parsed = options_parse(argc, argv, rank == 0, &options, &error);
    struct comm *world = comm_open_world(parsed ? options.timeout_seconds : 60);
    enum exit_code code = EXIT_DONE;
    if (!comm_agree(world, &error))
        code = error.code;
    else if (!options.help && !options.version)
        code = run(&options, world, &error);
    comm_close(world);
    if (rank == 0 && error.code != EXIT_DONE)
        fprintf(stderr, "dtrain: %s\n", error.text);
    fflush(stdout);
    MPI_Finalize();
    return code;
}
