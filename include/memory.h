/* memory.h - memory on the host, which is there or the whole job ends: one line names the rank, the bytes and what they
 * were for, and the exit code is EXIT_RUNTIME. So nobody checks what these return. On any thread; free with free.
 */
#ifndef DTRAIN_MEMORY_H
#define DTRAIN_MEMORY_H

#include <stddef.h>

/* Zeroes. `purpose` ends the line: "the weights". */
void *memory_allocate(size_t count, size_t item_bytes, const char *purpose) __attribute__((malloc, returns_nonnull));

/* The same, from a multiple of `alignment` on, a power of two. */
void *memory_allocate_aligned(size_t alignment, size_t bytes, const char *purpose)
    __attribute__((malloc, returns_nonnull));

/* What another library has allocated, and says NULL for if it could not. */
void *memory_check(void *memory, const char *purpose) __attribute__((returns_nonnull));

/* From now on cJSON takes its memory here, too, so that no object lacks an entry and no text is NULL for want of it. */
void memory_guard_json(void);

#endif
