/* emulated.h - a GPU of which nothing is there: CUDA's runtime, cuBLAS, cuDNN's convolutions and NCCL, as far as the
 * GPU part of dtrain calls them, computed on the host. With the project's kernels compiled for the host
 * (tests/support/shim) it makes a dtrain-cuda.so that the whole program runs with, so that all of the engine and the
 * transport but the libraries themselves is tested where there is no GPU.
 *
 * Work that is queued runs when somebody looks for its end (an event's query, a synchronisation), not before: who
 * forgets to wait finds nothing done. Of the environment:
 *
 *   EMULATED_GPUS              how many GPUs there are; 1 if unset
 *   EMULATED_MODELS            of how many models in turn; 1
 *   EMULATED_ALONE=1           each rank sees its own alone; NCCL then fails at its first sum if processes cannot map
 *                              memory either (EMULATED_IPC), unless NCCL_P2P_DISABLE=1
 *   EMULATED_OLD               which GPU is of compute capability 7.0
 *   EMULATED_TAKEN             which one another process has for itself
 *   EMULATED_UNLOADABLE=1      there is no machine code of the kernels for them
 *   EMULATED_SLICES            how many of them are slices of one card
 *   EMULATED_MULTIPROCESSORS   for kernels/fused; 16
 *   EMULATED_SHARED            bytes of a block's shared memory, for kernels/fused
 *   EMULATED_PEERS=0           GPUs do not reach each other's memory
 *   EMULATED_IPC=0             nor can processes map it; with EMULATED_IPC_RANK that rank's alone
 *   EMULATED_FULL_AT           which request for memory is refused; with EMULATED_FULL_RANK that rank's alone
 *   EMULATED_FAILS_AT          from which look at the end of queued work on this has failed
 *   EMULATED_NCCL=RESULT:SUM   from its sum number SUM on, 0: from its start, NCCL says that ncclResult_t, and no sum
 *                              ends; ncclInProgress: no sum ends. With EMULATED_NCCL_KILLED that rank is killed then
 *   EMULATED_FLIP=BYTES:BYTE   before the first launch of kernels/fused a bit of that byte is flipped in the first
 *                              memory of so many bytes; with EMULATED_FLIP_RANK that rank's alone
 */
#ifndef DTRAIN_EMULATED_H
#define DTRAIN_EMULATED_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Queues a copy of the context; run(context) is called until it returns true: it is done. */
void emulated_queue(void *stream, bool (*run)(void *context), const void *context, size_t bytes);

/* Whether an environment variable names no rank, or this one. */
bool emulated_is_meant(const char *variable);

/* A launch of kernels/fused begins. */
void emulated_begins(void);

#ifdef __cplusplus
}
#endif

#endif
