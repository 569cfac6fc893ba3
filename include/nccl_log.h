/* nccl_log.h - what NCCL says of its rings and transports, which no function of it tells: read from its log.
 *
 * NCCL takes what it logs, and where to, from the environment alone, and a process may change that only as long as it
 * has one thread: so this is opened before MPI starts, by whatever may come to use NCCL.
 */
#ifndef DTRAIN_NCCL_LOG_H
#define DTRAIN_NCCL_LOG_H

#include <stdbool.h>
#include <stddef.h>

/* Has NCCL's log go to memory. Not when the user has settings of their own for it (NCCL_DEBUG, also in NCCL's files).
 * Once a process, before there is another thread. */
void nccl_log_open(void);

/* Whether the user has set something for NCCL whose name begins so: in the environment, in a file of their own or the
 * host's. What dtrain sets in the environment would override all three. */
bool nccl_log_user_sets(const char *beginning);

/* Whether that setting of the environment, NAME=VALUE, was made here. */
bool nccl_log_has_set(const char *setting);

/* "24 rings, the first 0 1 2 3; 48 x P2P/CUMEM", as far as is known: NCCL connects at the first sum. "" where the log
 * has nothing of the kind, or is not opened. */
void nccl_log_summarise(char *text, size_t bytes);

#endif
