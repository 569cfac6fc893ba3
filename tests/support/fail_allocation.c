/* Preloaded by tests/program/memory.py: one allocation of those that dtrain itself asks for fails, number $FAIL_AT, or
 * number $FAIL_AT of those for JSON if $FAIL_JSON is set; with $FAIL_RANK on that rank alone. Other libraries get what
 * they ask for. $ALLOCATIONS: a file for how many there were of either kind. */
#include <cjson/cJSON.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_malloc(size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static _Thread_local bool for_json;
static long count[2], fails_at[2]; /* of all else, of JSON */
static cJSON_Hooks hooks;

static void __attribute__((constructor)) begin(void)
{
    const char *at = getenv("FAIL_AT"), *only = getenv("FAIL_RANK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (at != NULL && (only == NULL || (rank != NULL && strcmp(only, rank) == 0)))
        fails_at[getenv("FAIL_JSON") != NULL] = atol(at);
}

static void __attribute__((destructor)) end(void)
{
    const char *path = getenv("ALLOCATIONS");
    FILE *file = path != NULL && count[0] > 0 ? fopen(path, "w") : NULL;
    if (file != NULL) {
        fprintf(file, "%ld %ld\n", count[0], count[1]);
        fclose(file);
    }
}

static bool fails(void *caller)
{
    Dl_info info;
    const char *name = dladdr(caller, &info) != 0 ? strrchr(info.dli_fname, '/') : NULL;
    if (name == NULL || strcmp(name, "/dtrain") != 0 || ++count[for_json] != fails_at[for_json])
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t bytes)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t number, size_t bytes)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(number, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, bytes);
}

static void *allocate_json(size_t bytes)
{
    for_json = true;
    void *memory = hooks.malloc_fn(bytes);
    for_json = false;
    return memory;
}

/* What dtrain asks cJSON to call is called by way of here. */
void cJSON_InitHooks(cJSON_Hooks *wanted)
{
    void (*init)(cJSON_Hooks *) = (void (*)(cJSON_Hooks *))dlsym(RTLD_NEXT, "cJSON_InitHooks");
    hooks = *wanted;
    init(&(cJSON_Hooks){allocate_json, wanted->free_fn});
}
