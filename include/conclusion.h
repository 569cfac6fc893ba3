/* conclusion.h - what is printed when all nets have ended: table, figures, digest. */
#ifndef DTRAIN_CONCLUSION_H
#define DTRAIN_CONCLUSION_H

#include "comm.h"
#include "lenet5.h"
#include "run.h"

/* Of several nets the table and the figures; how to go on after a stop; and last the digest. On one rank;
 * `world` is only kept alive. directory: of the run, or of the nets' directories. */
void conclusion_print(const struct net *nets, const struct outcome *outcomes, int count, const char *directory,
                      struct comm *world);

#endif
