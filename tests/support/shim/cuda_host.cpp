#include "cuda_host.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cuda_runtime.h"
#include "fibers.h"

/* A stack is no power of two, so that those of all fibers do not meet in a few lines of the cache. */
enum { MAX_THREADS = 1024, WARP = 32, STACK_BYTES = 64 * 1024 + 9 * 64 };

namespace
{

enum state : uint8_t { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

/* A thread of the block: where it goes on, once it has begun. */
struct thread {
    fibers::place at;
    bool begun;
    unsigned exchanges;
    uint64_t exchanged[2]; /* what it hands to its warp, in turn: nobody is two ahead of one that has not read */
};

/* The block that runs, and the fibers, each of which runs one thread after the other: those of a kernel without
 * barriers are all run by one, which never leaves. */
struct block {
    thread all[MAX_THREADS];
    enum state states[MAX_THREADS]; /* apart, as they are searched often */
    fibers::place idle[MAX_THREADS]; /* fibers without a thread */
    unsigned idle_count, fibers;
    char *stacks;
    unsigned order[MAX_THREADS], turn; /* whose turn it is */
    fibers::place scheduler;
    unsigned threads;
    void (*run)(void *context);
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

/* Whether there is another thread whose turn it is; it is then the running one. */
bool take_next()
{
    while (++running->turn < running->threads)
        if (running->states[running->order[running->turn]] == READY) {
            cuda_host_thread_now.thread.x = running->order[running->turn];
            return true;
        }
    return false;
}

/* A fiber is one thread after the other: of every block, of every launch. It begins the running one. */
void live()
{
    for (;;) {
        running->all[threadIdx.x].begun = true;
        running->run(running->context);
        running->states[threadIdx.x] = DONE;
        bool any = take_next();
        if (any && !running->all[threadIdx.x].begun)
            continue;
        fibers::leave(running->idle[running->idle_count++], any ? running->all[threadIdx.x].at : running->scheduler);
    }
}

/* Leaves for the running thread, which may not have begun. */
void leave_for_running(fibers::place from)
{
    if (running->all[threadIdx.x].begun)
        fibers::leave(from, running->all[threadIdx.x].at);
    else if (running->idle_count > 0)
        fibers::leave(from, running->idle[--running->idle_count]);
    else {
        char *stack = running->stacks + (size_t)running->fibers++ * STACK_BYTES;
        fibers::begin(from, live, stack, STACK_BYTES);
    }
}

/* The running thread gives way to the next, or to the scheduler. */
void wait(enum state state)
{
    thread *self = &running->all[threadIdx.x];
    running->states[threadIdx.x] = state;
    if (take_next())
        leave_for_running(self->at);
    else
        fibers::leave(self->at, running->scheduler);
}

/* Hands bits to the warp; when all have, returns where they lie. */
unsigned hand_in(uint64_t bits)
{
    thread *self = &running->all[threadIdx.x];
    unsigned turn = self->exchanges++ % 2;
    self->exchanged[turn] = bits;
    wait(AT_WARP_BARRIER);
    return turn;
}

/* Lets the threads first..last go on if all of them are at the barrier; some may not have left. */
bool release(enum state barrier, unsigned first, unsigned last)
{
    unsigned arrived = 0, done = 0;
    for (unsigned t = first; t < last; t++) {
        arrived += running->states[t] == barrier;
        done += running->states[t] == DONE;
    }
    if (arrived > 0 && done > 0)
        fail("waits at a barrier or shuffle that others have left without", first);
    if (arrived < last - first)
        return false;
    for (unsigned t = first; t < last; t++)
        running->states[t] = READY;
    return true;
}

/* Runs the ready threads, each until it waits or ends. Returns whether there was any. */
bool run_ready()
{
    running->turn = UINT_MAX;
    bool any = take_next();
    if (any)
        leave_for_running(running->scheduler);
    return any;
}

/* NULL without memory. */
block *open_block()
{
    block *made = static_cast<block *>(calloc(1, sizeof *made));
    void *stacks = mmap(nullptr, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == nullptr || stacks == MAP_FAILED)
        return nullptr;
    made->stacks = static_cast<char *>(stacks);
    return made;
}

void run_block()
{
    for (unsigned t = 0; t < running->threads; t++)
        running->states[t] = READY, running->all[t].begun = false, running->all[t].exchanges = 0;
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
        if (running->states[t] != DONE)
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
    unsigned first = threadIdx.x / WARP * WARP, turn = hand_in(yes), bits = 0;
    (void)lanes;
    for (unsigned lane = 0; lane < WARP && first + lane < running->threads; lane++)
        bits |= (unsigned)running->all[first + lane].exchanged[turn] << lane;
    return bits;
}

uint64_t cuda_host_exchange(uint64_t bits, unsigned from)
{
    unsigned first = threadIdx.x / WARP * WARP, turn = hand_in(bits);
    return running->all[first + from].exchanged[turn];
}

void cuda_host_run(unsigned blocks, unsigned threads, void (*thread)(void *context), void *context)
{
    if (blocks == 0 || threads == 0 || threads > MAX_THREADS)
        fail("a launch of no blocks, no threads or too many", threads);
    if (running == nullptr)
        running = open_block();
    unsigned first = cuda_host.first_block, last = cuda_host.last_block ? cuda_host.last_block : blocks;
    unsigned *order = static_cast<unsigned *>(malloc((last - first) * sizeof *order));
    if (running == nullptr || order == nullptr)
        fail("no memory for its block", 0);
    running->threads = threads;
    running->run = thread;
    running->context = context;
    arrange(threads, running->order);
    arrange(last - first, order);
    for (unsigned b = 0; b < last - first; b++) {
        cuda_host_thread_now = {{0}, {first + order[b]}, {threads}, {blocks}};
        run_block();
    }
    free(order);
}
