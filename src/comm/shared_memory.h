/* shared_memory.h - memory that the ranks of one host share.
 *
 * It has no name in any file system: one process makes it, the others open it through the maker's entry in /proc, and
 * it ends with the last process that maps it. So nothing stays behind, whatever is killed when, and no limit of
 * /dev/shm applies.
 */
#ifndef DTRAIN_COMM_SHARED_MEMORY_H
#define DTRAIN_COMM_SHARED_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Where shared memory is found, for the ranks that open it. nonce tells it from what a process with the same id in
 * another container may have there. */
struct shared_memory {
    pid_t process;
    int descriptor; /* -1: nowhere */
    uint64_t nonce;
    size_t bytes;
};

/* Makes `bytes` of zeroes and maps them, from the start of a page; *memory says where others find them. NULL when it
 * cannot. */
void *shared_memory_make(size_t bytes, struct shared_memory *memory);

/* Called by the maker once all others have opened it, or failed to; from then on nobody else can. */
void shared_memory_unpublish(struct shared_memory *memory);

/* Maps what another process has made and not yet unpublished. NULL when it cannot. */
void *shared_memory_open(const struct shared_memory *memory);

/* Ends this process's mapping; bytes: as of struct shared_memory. NULL is fine. */
void shared_memory_close(void *mapping, size_t bytes);

#endif
