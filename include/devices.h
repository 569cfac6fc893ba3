/* devices.h - which rank uses which GPU, and what is odd about it.
 *
 * Rank r of a host uses GPU r modulo those its process sees. Launchers decide what a process sees
 * (CUDA_VISIBLE_DEVICES, SLURM's binding), so ranks compare notes: the table at start, whether NCCL can
 * work, and an explanation where the binding is not what anybody wants.
 */
#ifndef DTRAIN_DEVICES_H
#define DTRAIN_DEVICES_H

#include <stdbool.h>
#include <stddef.h>

#include "comm.h"
#include "gpu.h"

/* The GPU among `visible` for a local rank. */
int devices_index(int local_rank, int visible);

/* Collective: every rank's device, on every rank. all[comm_size]. */
void devices_gather(struct comm *comm, struct device *all);

/* Whether every rank has a GPU of its own, as NCCL needs it; `why` says so, or which ranks do not and what to
 * do about it. */
bool devices_are_apart(const struct device *all, int count, char *why, size_t why_bytes);

/* A rank's line of the table: "rank 0  host-a  GPU 0 of 8  NVIDIA H200  GPU-5e7a..." */
void devices_line(const struct device *all, int rank, char *text, size_t bytes);

/* One line about ranks that share GPUs, or a binding that is surely unwanted, and its remedy; "" if there is none. */
void devices_advice(const struct device *all, int count, char *text, size_t bytes);

#endif
