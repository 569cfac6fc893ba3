#include "cuda_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "cuda_runtime.h"

enum { MAX_THREADS = 1024, WARP = 32, STACK_BYTES = 64 * 1024 };

namespace
{

enum state { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

typedef void *place[5]; /* where a fiber or the scheduler goes on */

struct fiber {
    place at;
    enum state state;
    uint64_t exchanged; /* what it hands to its warp */
};

/* The block that runs, and the fibers of all before it, which wait for their next. */
struct block {
    fiber fibers[MAX_THREADS];
    unsigned prepared; /* fibers that have a stack */
    unsigned order[MAX_THREADS];
    place scheduler;
    unsigned threads;
    void (*thread)(void *context);
    void *context;
};

block *running;

[[noreturn]] void fail(const char *what, unsigned thread)
{
    fprintf(stderr, "cuda_host: block %u, thread %u: %s\n", blockIdx.x, thread, what);
    abort();
}

/* A permutation of 0..count-1 by cuda_host.order. */
void arrange(unsigned count, unsigned *order)
{
    for (unsigned i = 0; i < count; i++)
        order[i] = cuda_host.order == 1 ? count - 1 - i : i;
    uint64_t state = cuda_host.order;
    for (unsigned i = count; cuda_host.order > 1 && i > 1; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        unsigned j = (unsigned)((state >> 32) * i >> 32);
        unsigned swap = order[i - 1];
        order[i - 1] = order[j], order[j] = swap;
    }
}

/* Leaves for `to`; returns when somebody comes back to `from`. swapcontext would ask the kernel for the signal mask each
 * time, and AddressSanitizer's longjmp walks the stack: both take longer than the kernels do. The compilers want their
 * setjmp and longjmp in different functions; and callers must not know which registers are left alone here. */
__attribute__((noinline, noreturn, no_sanitize("address"))) void jump(place to)
{
    __builtin_longjmp(to, 1);
}

__attribute__((no_sanitize("address"))) void leave(place from, place to)
{
    if (__builtin_setjmp(from) == 0)
        jump(to);
}

void (*volatile go)(place from, place to) = leave;

/* The running thread gives way. */
void wait(enum state state)
{
    fiber *self = &running->fibers[threadIdx.x];
    self->state = state;
    go(self->at, running->scheduler);
}

/* A fiber is one thread after the other: of every block, of every launch. */
void live()
{
    for (;;) {
        wait(DONE);
        running->thread(running->context);
    }
}

/* Lets the threads first..last go on if all of them are at the barrier; some may not have left. */
bool release(enum state barrier, unsigned first, unsigned last)
{
    unsigned arrived = 0, done = 0;
    for (unsigned t = first; t < last; t++) {
        arrived += running->fibers[t].state == barrier;
        done += running->fibers[t].state == DONE;
    }
    if (arrived > 0 && done > 0)
        fail("waits at a barrier or shuffle that others have left without", first);
    if (arrived < last - first)
        return false;
    for (unsigned t = first; t < last; t++)
        running->fibers[t].state = READY;
    return true;
}

/* Runs the ready threads, each until it waits or ends. Returns whether there was any. */
bool run_ready()
{
    bool any = false;
    for (unsigned i = 0; i < running->threads; i++) {
        unsigned t = running->order[i];
        if (running->fibers[t].state != READY)
            continue;
        any = true;
        cuda_host_thread_now.thread.x = t;
        go(running->scheduler, running->fibers[t].at);
    }
    return any;
}

/* Starts fiber t, which waits for its first thread. */
__attribute__((noinline, no_sanitize("address"))) void prepare(unsigned t)
{
    ucontext_t context;
    void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        fail("no memory for its stack", t);
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    cuda_host_thread_now.thread.x = t;
    if (__builtin_setjmp(running->scheduler) == 0)
        setcontext(&context);
}

void run_block()
{
    for (unsigned t = 0; t < running->threads; t++)
        running->fibers[t].state = READY;
    bool alive = true;
    while (alive) {
        if (run_ready())
            continue;
        alive = release(AT_BLOCK_BARRIER, 0, running->threads);
        for (unsigned first = 0; first < running->threads; first += WARP)
            alive |= release(AT_WARP_BARRIER, first,
                             first + WARP < running->threads ? first + WARP : running->threads);
    }
    for (unsigned t = 0; t < running->threads; t++)
        if (running->fibers[t].state != DONE)
            fail("waits at a barrier or shuffle that others never reach", t);
}

} // namespace

struct cuda_host cuda_host;
cuda_host_thread cuda_host_thread_now;

void __syncthreads()
{
    wait(AT_BLOCK_BARRIER);
}

unsigned __ballot_sync(unsigned lanes, bool yes)
{
    unsigned self = threadIdx.x, bits = 0;
    (void)lanes;
    running->fibers[self].exchanged = yes;
    wait(AT_WARP_BARRIER);
    for (unsigned lane = 0; lane < WARP && self / WARP * WARP + lane < running->threads; lane++)
        bits |= (unsigned)running->fibers[self / WARP * WARP + lane].exchanged << lane;
    wait(AT_WARP_BARRIER);
    return bits;
}

uint64_t cuda_host_exchange(uint64_t bits, unsigned from)
{
    unsigned self = threadIdx.x;
    running->fibers[self].exchanged = bits;
    wait(AT_WARP_BARRIER);
    uint64_t result = running->fibers[self / WARP * WARP + from].exchanged;
    wait(AT_WARP_BARRIER); /* nobody hands in the next before all have taken this one */
    return result;
}

void cuda_host_run(unsigned blocks, unsigned threads, void (*thread)(void *context), void *context)
{
    if (blocks == 0 || threads == 0 || threads > MAX_THREADS)
        fail("a launch of no blocks, no threads or too many", threads);
    if (running == nullptr)
        running = static_cast<block *>(calloc(1, sizeof *running));
    unsigned first = cuda_host.first_block, last = cuda_host.last_block ? cuda_host.last_block : blocks;
    unsigned *order = static_cast<unsigned *>(malloc((last - first) * sizeof *order));
    if (running == nullptr || order == nullptr)
        fail("no memory for its block", 0);
    for (; running->prepared < threads; running->prepared++)
        prepare(running->prepared);
    running->threads = threads;
    running->thread = thread;
    running->context = context;
    arrange(threads, running->order);
    arrange(last - first, order);
    for (unsigned b = 0; b < last - first; b++) {
        cuda_host_thread_now = {{0}, {first + order[b]}, {threads}, {blocks}};
        run_block();
    }
    free(order);
}
