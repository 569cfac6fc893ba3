/* exchange.cuh - how blocks wait for each other.
 *
 * By words: a number and the round in one access of 8 bytes, written into the reader's mail in the GPU's L2 cache. The
 * reader reads until the word has the round. No barrier, no fence: 27 KB between the blocks of a group took 2.2 us on
 * an H200, by a counter 2.5 to 2.7. By lines: three numbers and the round in 16 bytes.
 * By counters, once a step each: the group's, for the part of the update that is fetched by plain loads, and the
 * grid's, here all blocks of the net.
 *
 * Mail is written again in the next round. The readers of a tile's mail have finished by then, without a barrier: a
 * seat sends a tile's pool2 when it has the previous tile's parts3 of all seats, which sent them when they had read
 * pool2; and parts3, rows and dpool2 when it has the pool2 of all seats, which sent that when they had finished the
 * previous tile altogether. The update's mail is read before the next grid barrier, and written after it.
 */
#ifndef DTRAIN_FUSED_EXCHANGE_CUH
#define DTRAIN_FUSED_EXCHANGE_CUH

#include "memory.cuh"

/* --- words ------------------------------------------------------------------------------------ */

DEVICE uint64_t pair_of(unsigned low, unsigned high)
{
    return (uint64_t)high << 32 | low;
}

DEVICE uint64_t pair_of(float low, float high)
{
    return pair_of((unsigned)bits_of_float(low), (unsigned)bits_of_float(high));
}

DEVICE float low_of(uint64_t pair)
{
    return float_of_bits((int32_t)(uint32_t)pair);
}

DEVICE float high_of(uint64_t pair)
{
    return float_of_bits((int32_t)(uint32_t)(pair >> 32));
}

DEVICE unsigned round_of(uint64_t pair)
{
    return (unsigned)(pair >> 32);
}

DEVICE void send_word(uint64_t *to, float v, unsigned round)
{
    store_word(to, pair_of((unsigned)bits_of_float(v), round));
}

/* Waits for N words, `pitch` apart. All are asked for at once, so that it takes one way to the L2 and back. */
template <int N>
DEVICE void receive_words(const uint64_t *from, unsigned pitch, unsigned round, float *v)
{
    uint64_t words[N];
    bool all = false;
#pragma unroll 1
    for (unsigned turns = 0; !all;) {
        all = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            words[i] = load_word(from + (unsigned)i * pitch);
#pragma unroll
        for (int i = 0; i < N; i++)
            all &= round_of(words[i]) == round;
        if (!all && waited_too_long(&turns))
            give_up(shared().run.trouble, FUSED_FOR_BLOCKS, round, round_of(words[0]));
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = low_of(words[i]);
}

DEVICE void send_line(ulonglong2 *to, float a, float b, float c, unsigned round)
{
    store_line(to, ulonglong2{pair_of(a, b), pair_of((unsigned)bits_of_float(c), round)});
}

/* Waits for N lines, in the same way. */
template <int N>
DEVICE void receive_lines(const ulonglong2 *const *from, unsigned round, ulonglong2 *lines)
{
    bool all = false;
#pragma unroll 1
    for (unsigned turns = 0; !all;) {
        all = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            lines[i] = load_line(from[i]);
#pragma unroll
        for (int i = 0; i < N; i++)
            all &= round_of(lines[i].y) == round;
        if (!all && waited_too_long(&turns))
            give_up(shared().run.trouble, FUSED_FOR_BLOCKS, round, round_of(lines[0].y));
    }
}

/* --- counters --------------------------------------------------------------------------------- */

constexpr unsigned COUNTER_PITCH = 32; /* from one counter to the next: each has a cache line of 128 bytes */

static __device__ __noinline__ void wait_for_count(const uint32_t *counter, unsigned wanted)
{
    unsigned found = load_acquire(counter);
#pragma unroll 1
    for (unsigned turns = 0; (int)(found - wanted) < 0; found = load_acquire(counter))
        if (waited_too_long(&turns))
            give_up(shared().run.trouble, FUSED_FOR_BLOCKS, wanted, found);
}

DEVICE uint32_t *grid_counter(const memory &m)
{
    return m.run.arrived;
}

DEVICE uint32_t *group_counter(const memory &m)
{
    return m.run.arrived + (1 + m.group) * COUNTER_PITCH;
}

/* By one thread, after a barrier: blocks that have waited for the group see what this block has written for it. */
DEVICE void tell_group(memory &m)
{
    add_release(group_counter(m));
    m.arrivals += SEATS;
}

/* By the same thread: waits until all blocks of the group have told as often as this one. */
DEVICE void wait_for_group(const memory &m)
{
    wait_for_count(group_counter(m), m.arrivals);
}

#endif
