/* machine.h - kernels/fused/machine.cuh for the host. */
#ifndef DTRAIN_TOGETHER_MACHINE_H
#define DTRAIN_TOGETHER_MACHINE_H

#include <cuda_runtime.h>

#include "kernels/fused/fused.h"

static inline unsigned tid()
{
    return threadIdx.x;
}

static inline unsigned block()
{
    return blockIdx.x;
}

static inline void *shared_bytes()
{
    return together_shared();
}

template <typename T> static inline void store_for_others(T *to, T value)
{
    together_yield(false);
    *to = value;
}

template <typename T> static inline T load_of_others(const T *from)
{
    together_yield(false);
    return *from;
}

#define store_word store_for_others<uint64_t>
#define load_word load_of_others<uint64_t>
#define store_line store_for_others<ulonglong2>
#define load_line load_of_others<ulonglong2>

static inline unsigned load_acquire(const uint32_t *from)
{
    together_yield(false);
    together_acquire(from);
    return *from;
}

static inline void add_release(uint32_t *to)
{
    together_yield(false);
    together_release(to);
    ++*to;
}

static inline void add_sum(int64_t *to, long long term)
{
    together_yield(false);
    together_add(to, term);
}

static inline void store_pair_of_peer(int64_t *to, longlong2 pair)
{
    together_yield(false);
    together_store(to, &pair.x, sizeof pair.x);
    together_store(to + 1, &pair.y, sizeof pair.y);
}

static inline longlong2 load_pair_of_peer(const int64_t *from)
{
    together_yield(false);
    return {from[0], from[1]};
}

static inline unsigned load_acquire_of_peers(const uint32_t *from)
{
    together_yield(false);
    return together_acquire_of_peers(from);
}

static inline void add_release_to_peers(uint32_t *const *to, unsigned count)
{
    together_yield(false);
    together_release_to_peers(to, count);
}

static inline bool waited_too_long(unsigned *turns)
{
    together_yield(true);
    return together.patience != 0 && ++*turns >= together.patience;
}

static inline void give_up(fused_trouble *trouble, unsigned whom, unsigned wanted, unsigned found)
{
    trouble->block = block(), trouble->wanted = wanted, trouble->found = found;
    trouble->waited = whom;
    together_give_up();
}

static inline void fetch_into_l2(const uint8_t *at)
{
    (void)at;
}

static inline void copy_later(float *to, const float *from)
{
    together_copy_later(to, from);
}

static inline void await_copies()
{
    together_await_copies();
}

static inline float whole_pixel(unsigned four, unsigned i)
{
    return (float)(2 * (int)(four >> 8 * i & 255) - 255);
}

static inline unsigned shifted(unsigned low, unsigned high, unsigned bits)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> bits);
}

#endif
