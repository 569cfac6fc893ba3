#include "find_data.h"

#include <stdlib.h>

#include "convert_data.h"
#include "dataset.h"
#include "synthetic.h"

bool find_data_choose(const char *wanted, struct data_choice *choice, struct error *error)
{
    const char *named = wanted != NULL ? wanted : getenv("DTRAIN_DATA");
    struct error why = {0};
    *choice = (struct data_choice){.kind = DATA_BINARY};
    if (named != NULL && synthetic_parse(named, &choice->train, &choice->test, &why)) {
        choice->kind = DATA_SYNTHETIC;
    } else if (why.code != EXIT_DONE) {
        error_set(error, why.code, "%s %s", wanted != NULL ? "--data" : "DTRAIN_DATA", why.text);
    } else if (named != NULL && convert_data_wants(named)) {
        choice->kind = DATA_TO_CONVERT;
        choice->named = named;
    }
    return error->code == EXIT_DONE;
}

/* If it is not in the cache yet. */
static void make(const struct data_choice *choice, struct comm *world, char directory[4096], struct error *error)
{
    comm_away(world); /* it may draw a million pictures */
    if (choice->kind == DATA_SYNTHETIC)
        synthetic_make(choice->train, choice->test, directory, error);
    else if (choice->kind == DATA_TO_CONVERT)
        convert_data(choice->named, directory, error);
    comm_back(world);
}

bool find_data(const char *wanted, struct comm *world, char directory[4096], struct error *error)
{
    struct data_choice choice;
    if (find_data_choose(wanted, &choice, error) && comm_rank(world) == 0)
        make(&choice, world, directory, error);
    if (!comm_agree(world, error)) /* then other hosts find it, too, where they share the cache */
        return false;
    if (comm_rank(world) > 0 && comm_host_rank(world) == 0)
        make(&choice, world, directory, error);
    if (!comm_agree(world, error)) /* then all of a host find what its first rank has made */
        return false;
    switch (choice.kind) {
    case DATA_SYNTHETIC:
        return synthetic_find(choice.train, choice.test, directory, error);
    case DATA_TO_CONVERT:
        return convert_data_find(choice.named, directory, error);
    case DATA_BINARY:
        break;
    }
    return dataset_find(wanted, directory, error);
}
