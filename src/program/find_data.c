#include "find_data.h"

#include <stdlib.h>

#include "convert_data.h"
#include "dataset.h"
#include "synthetic.h"

static void alive(void *world)
{
    comm_alive(world);
}

bool find_data(const char *wanted, struct comm *world, char directory[4096], struct error *error)
{
    size_t train, test;
    bool synthetic = wanted != NULL && synthetic_parse(wanted, &train, &test, error);
    if (error->code != EXIT_DONE)
        return false;
    const char *named = wanted != NULL ? wanted : getenv("DTRAIN_DATA");
    bool foreign = !synthetic && named != NULL && convert_data_wants(named);
    if (comm_host_rank(world) == 0 && synthetic) {
        comm_away(world); /* it may draw a million pictures */
        synthetic_make(train, test, directory, error);
        comm_back(world);
    }
    if (comm_host_rank(world) == 0 && foreign)
        convert_data(named, directory, alive, world, error);
    if (!comm_agree(world, error)) /* then all of a host find what its first rank has made */
        return false;
    if (synthetic)
        return synthetic_find(train, test, directory, error);
    return foreign ? convert_data(named, directory, alive, world, error) : dataset_find(wanted, directory, error);
}
