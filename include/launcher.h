/* launcher.h - what this process takes from its launcher (mpirun, srun, launch/run, a shell), and tells it. */
#ifndef DTRAIN_LAUNCHER_H
#define DTRAIN_LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include "error.h"

/* The variables of the environment that tell a rank. */
#define LAUNCHER_RANKS                                                                                                 \
    {                                                                                                                  \
        "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"                                                                \
    }

/* This process's rank, as a number in decimal, by whoever started it: Open MPI's mpirun, Hydra (MPICH, Intel) or srun
 * with pmi2, srun with pmix. NULL: nobody did. Inline, as built_for.c needs it compiled for any processor. */
static inline const char *launcher_rank(void)
{
    static const char *const names[] = LAUNCHER_RANKS;
    const char *rank = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && rank == NULL; i++)
        rank = getenv(names[i]);
    return rank;
}

/* How many ranks it started in all, 0 where it does not tell, or nobody did. */
int launcher_size(void);

/* "mpirun", "mpiexec (Hydra)" or "srun"; NULL: none. */
const char *launcher_name(void);

/* Opens standard input, output and error on /dev/null where the starter has closed them, lest MPI's sockets be taken
 * for them. Before anything else is opened. */
void launcher_mend_streams(void);

/* Which terminal the job's output appears on, although what this process prints may go through others first: its path,
 * or NULL where it is none. */
const char *launcher_terminal(void);

/* Tells launch/run, which takes the line ($DTRAIN_MARK) out of standard error again, that all ranks are there and heed
 * signals; by a file too ($DTRAIN_BEGUN_FILE), as a script between the two may hide the line. On one rank. */
void launcher_begin(void);

/* Whether launch/run has started the job: it hands most signals on as SIGUSR1, which mpirun passes to the ranks. */
bool launcher_renames_signals(void);

/* Leaves the job's exit code for launch/run in $DTRAIN_EXIT_FILE: mpirun that is ended together with its ranks says 1,
 * whatever they do. On one rank. */
void launcher_tell(enum exit_code code);

#endif
