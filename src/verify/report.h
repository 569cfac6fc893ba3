/* report.h - what --verify says: a line a rank, one for all together, the verdict. */
#ifndef DTRAIN_VERIFY_REPORT_H
#define DTRAIN_VERIFY_REPORT_H

#include "pass.h"

/* What rank 0 learns of each rank. Plain data. */
struct testimony {
    char device[300];     /* "rank 0  node1  AMD EPYC 9B14, 2 cores" */
    uint64_t kind, steps; /* equal for devices whose digests must be equal, of engines without known answers */
    uint64_t digests[LESSON_STEPS]; /* alone; 0: of a step that was not reached, or was wrong */
    struct finding finding;
};

/* Engines without known answers: whose step differs from that of most ranks of the same kind which reached it gets a
 * finding of that, unless it has one. Ranks that have one are no measure for others. */
void report_compare(struct testimony *all, int count);

/* Prints the lines. `together`: of this rank, NULL if there is one rank. Returns how many ranks have a finding. */
int report_print(const struct testimony *all, int count, const struct pass *together, const struct verify *verify);

#endif
