/* doctor.h - `--doctor`: what this machine has and what a run would choose, and why. */
#ifndef DTRAIN_DOCTOR_H
#define DTRAIN_DOCTOR_H

#include "comm.h"
#include "error.h"
#include "options.h"

/* Collective; rank 0 prints. EXIT_DONE when a run with these options could start, else the exit code it
 * would end with. */
enum exit_code doctor(const struct options *options, struct comm *world);

#endif
