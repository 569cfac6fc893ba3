/* device.h - the GPU this process uses. */
#ifndef DTRAIN_GPU_DEVICE_H
#define DTRAIN_GPU_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "gpu.h"
#include "processor.h"

/* Whether there is one that the kernels run on; `why` names it, or says what is missing. */
bool device_available(char *why, size_t why_bytes);

/* What this process sees, for the rank in this slot of its host. */
void device_look(int slot, struct device *device);

/* Makes the GPU of this slot the calling thread's. */
void device_use(int slot);

/* Of the driver and the libraries that are loaded. */
void device_versions(char *text, size_t bytes);

extern const struct processor gpu_processor; /* of processor.c: the first visible one, for benchmarks */

#endif
