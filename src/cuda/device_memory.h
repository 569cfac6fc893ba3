/* device_memory.h - memory of the calling thread's GPU, or end the job: one line that names bytes and purpose,
 * EXIT_RUNTIME. Of no particular content. The caller frees it, by cudaFree. */
#ifndef DTRAIN_CUDA_DEVICE_MEMORY_H
#define DTRAIN_CUDA_DEVICE_MEMORY_H

#include <stddef.h>

/* purpose, in a few words: "the training set". */
void *device_allocate(size_t bytes, const char *purpose);

/* Of the host, pinned: copies to and from it need not be waited for. Freed by cudaFreeHost. */
void *device_allocate_pinned(size_t bytes, const char *purpose);

#endif
