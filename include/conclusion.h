/* conclusion.h - what is printed when all trials have ended: tables, figures, digest. */
#ifndef DTRAIN_CONCLUSION_H
#define DTRAIN_CONCLUSION_H

#include "comm.h"
#include "run.h"
#include "trials.h"

/* Of several trials the table, and the figures if an epoch is finished; of several seeds how far these lie apart;
 * how to go on after a stop; and last the digest. On one rank; `world` is only kept alive. directory: of the study. */
void conclusion_print(const struct trial *trials, const struct outcome *outcomes, int count, const char *directory,
                      struct comm *world);

#endif
