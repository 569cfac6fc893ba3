/* launcher.h - what whoever started this process left it, and wants to know: mpirun, srun, launch/run, a shell. */
#ifndef DTRAIN_LAUNCHER_H
#define DTRAIN_LAUNCHER_H

#include <stdbool.h>

#include "error.h"

/* Opens standard input, output and error on /dev/null where the starter has closed them, lest MPI's sockets be taken
 * for them. Before anything else is opened. */
void launcher_mend_streams(void);

/* Neither mpirun nor srun waits for this process, so it may end before MPI starts. */
bool launcher_is_none(void);

/* Leaves the job's exit code for launch/run in $DTRAIN_EXIT_FILE: mpirun that is ended together with its ranks says 1,
 * whatever they do. On one rank. */
void launcher_tell(enum exit_code code);

#endif
