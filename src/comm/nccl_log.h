/* nccl_log.h - what NCCL says of its rings and transports, which no function of it tells: read from its log. */
#ifndef DTRAIN_COMM_NCCL_LOG_H
#define DTRAIN_COMM_NCCL_LOG_H

#include <stddef.h>

/* Before NCCL's first call in the process: has its log go to memory, whose file descriptor it returns. -1 when
 * the user has settings of their own for it (NCCL_DEBUG), or it cannot be had. */
int nccl_log_open(void);

/* After the start: takes back from the environment what open put there. */
void nccl_log_started(int log);

/* "24 rings, the first 0 1 2 3; 48 x P2P/CUMEM", as far as is known: NCCL connects at the first sum. "" for -1. */
void nccl_log_summarise(int log, char *text, size_t bytes);

#endif
