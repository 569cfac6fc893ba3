#include "shared_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* A page before the rest: it begins with the nonce. */
static size_t header_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static uint64_t *map(int descriptor, size_t bytes)
{
    void *header = mmap(NULL, header_bytes() + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return header == MAP_FAILED ? NULL : header;
}

static void *behind(uint64_t *header)
{
    return (char *)header + header_bytes();
}

void *shared_memory_make(size_t bytes, struct shared_memory *memory)
{
    *memory = (struct shared_memory){.process = getpid(), .descriptor = -1, .bytes = bytes};
    if (getrandom(&memory->nonce, sizeof memory->nonce, 0) != (ssize_t)sizeof memory->nonce)
        return NULL;
    int descriptor = memfd_create("dtrain", MFD_CLOEXEC);
    uint64_t *header = NULL;
    if (descriptor >= 0 && ftruncate(descriptor, (off_t)(header_bytes() + bytes)) == 0)
        header = map(descriptor, bytes);
    memory->descriptor = descriptor;
    if (header == NULL) {
        shared_memory_unpublish(memory);
        return NULL;
    }
    *header = memory->nonce;
    return behind(header);
}

void shared_memory_unpublish(struct shared_memory *memory)
{
    if (memory->descriptor >= 0)
        close(memory->descriptor);
    memory->descriptor = -1;
}

void *shared_memory_open(const struct shared_memory *memory)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)memory->process, memory->descriptor);
    struct stat status; /* before it is opened, as it may be anything: a terminal, a pipe */
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode) ||
        status.st_size != (off_t)(header_bytes() + memory->bytes))
        return NULL;
    int descriptor = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0)
        return NULL;
    uint64_t *header = map(descriptor, memory->bytes);
    close(descriptor);
    if (header != NULL && *header == memory->nonce)
        return behind(header);
    if (header != NULL)
        munmap(header, header_bytes() + memory->bytes);
    return NULL;
}

void shared_memory_close(void *mapping, size_t bytes)
{
    if (mapping != NULL)
        munmap((char *)mapping - header_bytes(), header_bytes() + bytes);
}
