/* guarded.h - buffers with canaries on both sides, in memory that host and device share: a kernel that writes
 * beside its own ends the test. */
#ifndef DTRAIN_GUARDED_H
#define DTRAIN_GUARDED_H

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <string.h>

/* Runs what queues work on the device, and waits for it. */
#define RUN(call)                                                                                                      \
    do {                                                                                                               \
        assert_int_equal(call, cudaSuccess);                                                                           \
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);                                                        \
    } while (0)

enum { GUARD_BYTES = 512, GUARD_ALIGN = 64, GUARD_BYTE = 0xff };

struct guarded {
    size_t bytes;
    uint8_t *data;
};

/* `bytes` that begin `skew` (below GUARD_ALIGN) bytes after a multiple of 64. Floats in it and beside it are
 * NaN, so that what nobody wrote is seen, and what reads beside it too. (Out of line, as GCC 12 would else take what
 * CUDA hands out for the address of `block`.) */
static __attribute__((noinline, unused)) void *guarded_new(size_t bytes, size_t skew)
{
    void *block;
    size_t whole = GUARD_ALIGN + GUARD_BYTES + skew + bytes + GUARD_BYTES;
    assert_int_equal(cudaMallocManaged(&block, whole, cudaMemAttachGlobal), cudaSuccess);
    uint8_t *data = (uint8_t *)block + GUARD_ALIGN + GUARD_BYTES + skew;
    *(struct guarded *)block = (struct guarded){bytes, data};
    memset(data - GUARD_BYTES, GUARD_BYTE, GUARD_BYTES);
    memset(data, GUARD_BYTE, bytes);
    memset(data + bytes, GUARD_BYTE, GUARD_BYTES);
    return data;
}

/* Looks at the canaries; NULL is fine. */
static inline void guarded_free(void *pointer)
{
    if (pointer == NULL)
        return;
    uint8_t *data = pointer;
    uintptr_t before = (uintptr_t)(data - GUARD_BYTES - GUARD_ALIGN) % GUARD_ALIGN;
    struct guarded *guarded = (struct guarded *)(void *)(data - GUARD_BYTES - GUARD_ALIGN - before);
    assert_ptr_equal(guarded->data, data);
    for (size_t i = 1; i <= GUARD_BYTES; i++)
        if (data[-(ptrdiff_t)i] != GUARD_BYTE)
            fail_msg("a byte was written %zu before the buffer", i);
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (data[guarded->bytes + i] != GUARD_BYTE)
            fail_msg("a byte was written %zu past the buffer's end", i);
    assert_int_equal(cudaFree(guarded), cudaSuccess);
}

static inline float *guarded_floats(size_t count)
{
    return guarded_new(count * sizeof(float), 0);
}

static inline void *guarded_copy(const void *data, size_t bytes)
{
    void *copy = guarded_new(bytes, 0);
    memcpy(copy, data, bytes);
    return copy;
}

#endif
