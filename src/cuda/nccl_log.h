/* nccl_log.h - what NCCL says of its rings and transports, which no function of it tells: read from its log. */
#ifndef DTRAIN_COMM_NCCL_LOG_H
#define DTRAIN_COMM_NCCL_LOG_H

#include <stddef.h>

/* Before NCCL's first call in the process: has its log go to memory, whose file descriptor it returns, by settings
 * in the environment. They stay there: NCCL's threads read it too. -1 when the user has settings of their own for
 * the log (NCCL_DEBUG, also in NCCL's files), or it cannot be had. */
int nccl_log_open(void);

/* "24 rings, the first 0 1 2 3; 48 x P2P/CUMEM", as far as is known: NCCL connects at the first sum. "" for -1, and
 * where the log has nothing of the kind. */
void nccl_log_summarise(int log, char *text, size_t bytes);

#endif
