/* halving.h - recursive halving for large sums between hosts.
 *
 * By itself Open MPI sums in place along a binomial tree, all numbers on every edge, both ways. Recursive halving
 * and doubling (Rabenseifner 2004) sends less: 2 (H-1)/H of the numbers a host, for H hosts; bench/network has the
 * times. For small sums the tree is better, also for those that Open MPI makes for itself: so halving is switched on
 * for one call at a time.
 *
 * The choice is a control variable of MPI's tool interface. Without it (another MPI), or where the user has set it
 * (OMPI_MCA_coll_libnbc_iallreduce_algorithm), these functions do nothing. Not collective; by one thread at a time.
 */
#ifndef DTRAIN_COMM_HALVING_H
#define DTRAIN_COMM_HALVING_H

#include <stdbool.h>

void halving_open(void);  /* after MPI_Init, where there are several hosts */
void halving_close(void); /* before MPI_Finalize, opened or not */

/* Whether calls of MPI_Iallreduce from now on are by recursive halving. */
void halving_use(bool on);

#endif
