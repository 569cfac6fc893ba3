/* cores.h - which core computes. Where a machine computes wrongly without a word, mostly one core of it does: so
 * --verify takes one after the other, and names it. */
#ifndef DTRAIN_VERIFY_CORES_H
#define DTRAIN_VERIFY_CORES_H

#include <sched.h>
#include <stddef.h>

enum { CORE_SETS = 16 }; /* of 1,024 each: where the kernel may have more than there is room for, it tells of none */

/* The hardware threads that this one may run on when it opens them. */
struct cores {
    cpu_set_t all[CORE_SETS], taken[CORE_SETS];
    int count; /* of all */
};
void cores_open(struct cores *cores);

/* From now on this thread runs on number n modulo count of them alone. Returns its number as the kernel counts, -1
 * where that is refused. */
int cores_take(struct cores *cores, int n);
void cores_release(const struct cores *cores); /* on any again */

/* How many were taken so far. *first: the lowest of their numbers, if there is one. */
int cores_taken(const struct cores *cores, int *first);

/* "AMD EPYC 9B14", as the kernel names it; else the machine's kind. */
void cores_model(char *text, size_t bytes);

#endif
