/* fused.h - the GPU engine whose whole step is one kernel (kernels/fused). Inside the GPU part; the program finds it by
 * gpu_find_fused (gpu.h).
 *
 * It follows kernels/README.md: weights, velocity, losses and checks are the CPU engine's, bit for bit, on any number
 * of ranks. A rank alone trains up to a thousand steps in a launch, and so do several ranks by the transport `peers`,
 * whose kernels sum together: between its steps a launch waits for those of the others. By NCCL ranks launch once a
 * step, and sum in between: each launch begins with the update of the step before.
 */
#ifndef DTRAIN_CUDA_FUSED_H
#define DTRAIN_CUDA_FUSED_H

#include "engine.h"

extern const struct engine_ops engine_fused;

struct device;
struct gpu_node;
/* As in gpu.h. */
bool fused_peers_reach(const struct device *all, int count, int rank, char *why, size_t why_bytes);
bool fused_peers_can_map(struct comm *comm, struct error *error);
int fused_profile(struct engine *engine, struct gpu_node *nodes, int most);

#endif
