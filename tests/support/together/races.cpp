/* races.cpp - hazards in the shared memory of a launch that runs on the host, as compute-sanitizer's racecheck tells
 * them on a GPU (tests/races): two accesses to a byte by threads of a block, one of them a write, with no barrier
 * between, whatever order they came in. A shuffle or ballot is no barrier. What is compiled with -fsanitize=thread
 * calls this before every access; the linker has it called at barriers and copies. */
#include <map>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <string>
#include <vector>

#include "cuda_runtime.h"

extern "C" size_t fused_shared_bytes(void);

namespace
{

enum { THREADS = 512, READERS = 4 };

/* A thread, and how many barriers it had passed, of its block and of its warp; whence: 0 if there was no access. */
struct place {
    uint32_t thread, barriers, of_warp;
    uintptr_t whence;
};

/* Of a byte: who wrote it last, and some of those who have read it since, of unlike warps if there are. */
struct byte {
    place writer, readers[READERS];
};

struct launch {
    size_t bytes; /* of a block */
    std::vector<place> now;
    std::vector<byte> all;
    std::vector<std::vector<float *>> copies; /* by thread: on their way */
} running;

std::map<std::string, long> told;

unsigned this_thread()
{
    return blockIdx.x * THREADS + threadIdx.x;
}

bool is_after(const place &now, const place &before)
{
    return before.whence == 0 || before.thread == now.thread || before.barriers < now.barriers ||
           (before.thread / 32 == now.thread / 32 && before.of_warp < now.of_warp);
}

void compare(const char *what, const place &now, const place &before)
{
    char text[80];
    if (is_after(now, before))
        return;
    snprintf(text, sizeof text, "%s %#lx %#lx", what, (unsigned long)before.whence, (unsigned long)now.whence);
    if (told[text]++ == 0)
        fprintf(stderr, "RACE %s\n", text);
}

/* Whose place the reader takes: its own, a free one, that of one before a barrier, or of its warp. */
place &seat_of(byte &byte, const place &now)
{
    place *found = &byte.readers[now.thread % READERS];
    for (place &reader : byte.readers)
        if (reader.thread / 32 == now.thread / 32 || reader.barriers < now.barriers)
            found = &reader;
    for (place &reader : byte.readers)
        if (reader.whence == 0 || reader.thread == now.thread)
            return reader;
    return *found;
}

void access(const void *at, size_t count, bool writes, uintptr_t whence)
{
    size_t first = running.bytes != 0 ? (size_t)((const char *)at - (const char *)together_shared()) : 0;
    if (first >= running.bytes)
        return;
    place now = running.now[this_thread()];
    now.whence = whence;
    for (size_t i = first; i < first + count; i++) {
        byte &byte = running.all[blockIdx.x * running.bytes + i];
        compare(writes ? "written,written" : "written,read", now, byte.writer);
        if (!writes) {
            seat_of(byte, now) = now;
            continue;
        }
        for (const place &reader : byte.readers)
            compare("read,written", now, reader);
        byte = {now, {}};
    }
}

} // namespace

#define ACCESS(name, bytes, writes)                                                                                    \
    extern "C" void __tsan_##name(void *at)                                                                            \
    {                                                                                                                  \
        access(at, bytes, writes, (uintptr_t)__builtin_return_address(0));                                             \
    }
#define ACCESSES(bytes)                                                                                                \
    ACCESS(read##bytes, bytes, false)                                                                                  \
    ACCESS(write##bytes, bytes, true)                                                                                  \
    ACCESS(unaligned_read##bytes, bytes, false)                                                                        \
    ACCESS(unaligned_write##bytes, bytes, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" void __tsan_read_range(void *at, unsigned long bytes)
{
    access(at, bytes, false, (uintptr_t)__builtin_return_address(0));
}

extern "C" void __tsan_write_range(void *at, unsigned long bytes)
{
    access(at, bytes, true, (uintptr_t)__builtin_return_address(0));
}

extern "C" void __tsan_init()
{
}

extern "C" void __tsan_func_entry(void *)
{
}

extern "C" void __tsan_func_exit()
{
}

/* The names that the compiler gives to what together.cpp has, as the linker wraps them. */
#define WRAPPED(result, name, ...)                                                                                     \
    extern "C" result __real_##name(__VA_ARGS__);                                                                      \
    extern "C" result __wrap_##name(__VA_ARGS__)

WRAPPED(void, _Z16together_barrierv)
{
    __real__Z16together_barrierv();
    running.now[this_thread()].barriers++, running.now[this_thread()].of_warp++;
}

WRAPPED(void, _Z21together_warp_barrierv)
{
    __real__Z21together_warp_barrierv();
    running.now[this_thread()].of_warp++;
}

/* A copy may arrive at any time from here to its end. */
WRAPPED(void, _Z19together_copy_laterPfPKf, float *to, const float *from)
{
    access(to, 16, true, (uintptr_t)__builtin_return_address(0));
    running.copies[this_thread()].push_back(to);
    __real__Z19together_copy_laterPfPKf(to, from);
}

WRAPPED(void, _Z21together_await_copiesv)
{
    for (float *to : running.copies[this_thread()])
        access(to, 16, true, (uintptr_t)__builtin_return_address(0));
    running.copies[this_thread()].clear();
    __real__Z21together_await_copiesv();
}

WRAPPED(cudaError_t, _Z15together_launchjjmPvPFvPKvES1_m, unsigned blocks, unsigned threads, size_t bytes, void *stream,
        void (*thread)(const void *context), const void *context, size_t context_bytes)
{
    running = {fused_shared_bytes(), {}, {}, {}};
    running.all.resize(blocks * running.bytes);
    running.copies.resize((size_t)blocks * threads);
    for (unsigned i = 0; i < blocks * threads; i++)
        running.now.push_back({i, 0, 0, 0});
    cudaError_t status =
        __real__Z15together_launchjjmPvPFvPKvES1_m(blocks, threads, bytes, stream, thread, context, context_bytes);
    running = {};
    return status;
}
