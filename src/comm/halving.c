#include "halving.h"

#include <mpi.h>
#include <stddef.h>

enum { OWN_CHOICE = 0, RABENSEIFNER = 3 }; /* as ompi_info --param coll libnbc --level 9 lists them */

static bool is_open;
static MPI_T_cvar_handle algorithm = MPI_T_CVAR_HANDLE_NULL;

void halving_open(void)
{
    int threads, index, count, value;
    is_open = MPI_T_init_thread(MPI_THREAD_SERIALIZED, &threads) == MPI_SUCCESS;
    if (is_open && MPI_T_cvar_get_index("coll_libnbc_iallreduce_algorithm", &index) == MPI_SUCCESS &&
        MPI_T_cvar_handle_alloc(index, NULL, &algorithm, &count) == MPI_SUCCESS &&
        (MPI_T_cvar_read(algorithm, &value) != MPI_SUCCESS || value != OWN_CHOICE))
        MPI_T_cvar_handle_free(&algorithm);
}

void halving_close(void)
{
    if (algorithm != MPI_T_CVAR_HANDLE_NULL)
        MPI_T_cvar_handle_free(&algorithm);
    if (is_open)
        MPI_T_finalize();
}

void halving_use(bool on)
{
    int value = on ? RABENSEIFNER : OWN_CHOICE;
    if (algorithm != MPI_T_CVAR_HANDLE_NULL)
        MPI_T_cvar_write(algorithm, &value);
}
