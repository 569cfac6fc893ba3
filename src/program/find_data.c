#include "find_data.h"

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
    if (!synthetic)
        return dataset_find(wanted, directory, error);
    if (comm_host_rank(world) == 0)
        synthetic_make(train, test, directory, alive, world, error);
    return comm_agree(world, error) && synthetic_make(train, test, directory, alive, world, error);
}
