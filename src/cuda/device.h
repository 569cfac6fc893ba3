/* device.h - the GPU this process uses. */
#ifndef DTRAIN_CUDA_DEVICE_H
#define DTRAIN_CUDA_DEVICE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "gpu.h"

/* Whether the first GPU that this process sees is one that the kernels run on; `why` names it, or says what is
 * missing. */
bool device_available(char *why, size_t why_bytes);

/* Collective: whether the kernels run on the calling thread's GPU, on every rank; `error` names one on which they do
 * not. EXIT_RUNTIME. */
bool device_suits(struct comm *comm, struct error *error);

/* What this process sees, and which GPU is this local rank's. */
void device_look(int local_rank, struct device *device);

/* As gpu_part's (gpu.h). */
bool device_sees(const struct device *all, int count, int rank);
bool device_reaches(const struct device *all, int count, int rank, char *why, size_t why_bytes);

/* Makes the GPU of this local rank the calling thread's. */
void device_use(int local_rank);

/* Of the driver and the libraries that are loaded. */
void device_versions(char *text, size_t bytes);

/* Their files, as the loader found them. */
void device_libraries(const char *paths[GPU_LIBRARIES]);

#endif
