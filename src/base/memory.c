#include "memory.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abort.h"
#include "error.h"

static _Noreturn void end(const char *bytes, const char *purpose)
{
    char who[WHO_BYTES];
    abort_who(who, sizeof who);
    abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "%s: out of memory: %s bytes for %s", who, bytes, purpose);
}

static _Noreturn void end_for(size_t count, size_t item_bytes, const char *purpose)
{
    char number[40];
    snprintf(number, sizeof number, "%.0f", (double)count * (double)item_bytes);
    end(number, purpose);
}

void *memory_allocate(size_t count, size_t item_bytes, const char *purpose)
{
    void *memory = calloc(count > 0 ? count : 1, item_bytes); /* of nothing calloc may give NULL */
    if (memory == NULL)
        end_for(count, item_bytes, purpose);
    return memory;
}

void *memory_allocate_aligned(size_t alignment, size_t bytes, const char *purpose)
{
    void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory != NULL)
        return memset(memory, 0, bytes);
    end_for(1, bytes, purpose);
}

void *memory_check(void *memory, const char *purpose)
{
    if (memory == NULL)
        end("some", purpose);
    return memory;
}

static void *allocate_json(size_t bytes)
{
    return memory_allocate(1, bytes, "JSON");
}

void memory_guard_json(void)
{
    cJSON_InitHooks(&(cJSON_Hooks){allocate_json, free});
}
