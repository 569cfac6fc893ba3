#include "together.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"

/* In tests/support/emulated: queues a copy of the context; a launch begins. */
extern "C" __attribute__((weak)) void emulated_queue(void *stream, bool (*run)(void *context), const void *context,
                                                     size_t bytes);
extern "C" __attribute__((weak)) void emulated_begins();

namespace
{

/* A stack is no power of two, so that those of all fibers do not meet in a few lines of the cache. */
enum {
    WARP = 32,
    STACK_BYTES = 32 * 1024 + 9 * 64,
    PAGE_BYTES = 4096,
    CANARY_BYTES = 4096,
    CANARY = 0xff,
    CLOSED_BYTES = 64 * 1024, /* behind a block's shared memory */
    MULTIPROCESSORS = 16,
    SHARED_BYTES = 227 << 10
};
enum { YIELD_ONE_IN = 16 }; /* at what others see */

struct copy {
    float *to, numbers[4];
};

struct fiber {
    fibers::place at;
    bool begun, done;
    unsigned exchanges;
    uint64_t exchanged[2]; /* what it hands to its warp, in turn: nobody is two ahead of one that has not read */
    std::vector<copy> copies;
};

/* A store, or with no bytes an addition, that others do not see yet. */
struct change {
    void *to;
    int64_t value;
    size_t bytes;
    unsigned fiber;
};
typedef std::vector<change> changes;

/* What a block has changed since its last barrier, and before. */
struct unseen {
    changes fresh, ordered;
};

struct released {
    std::vector<const uint32_t *> counters; /* any of which shows them */
    changes all;
};

/* Of a block or a warp: how many wait. */
struct waiting {
    unsigned threads, count;
    unsigned *fibers;
};

/* The launch that runs. */
struct launch {
    unsigned blocks, threads;
    void (*thread)(const void *context);
    const void *context;
    size_t shared_bytes;
    char *shared, *stacks;
    size_t stack_bytes;
    fiber *fibers;
    unsigned *ready, ready_count, first_ready; /* a ring of `ring` places, a power of two */
    unsigned ring;
    unsigned *polling, polling_count;          /* wait for another block, and look again later */
    waiting *at_block, *at_warp;
    uint64_t useless; /* times that they looked since one was of use */
    bool abroad;      /* and one of them at what another process may write */
    bool given_up;
    unsigned late; /* turns of waiting until the last blocks begin; 0: they have */
    std::vector<unseen> hidden; /* by block */
    std::vector<released> handed;
};

launch *running;
unsigned now; /* fiber */
fibers::place scheduler;
uint64_t state;

[[noreturn]] void fail(const char *what)
{
    fprintf(stderr, "together: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
    abort();
}

unsigned draw(unsigned below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((state >> 32) * below >> 32);
}

unsigned all()
{
    return running->blocks * running->threads;
}

/* Of the ready ones, from the one on that has been so for longest. */
unsigned *ready_at(unsigned i)
{
    return &running->ready[(running->first_ready + i) & (running->ring - 1)];
}

void make_ready(unsigned fiber)
{
    *ready_at(running->ready_count++) = fiber;
}

void look_again()
{
    for (unsigned i = 0; i < running->polling_count; i++)
        make_ready(running->polling[i]);
    running->polling_count = 0;
    if (running->late > 0 && --running->late == 0)
        for (unsigned i = together.late_from * running->threads; i < all(); i++)
            make_ready(i);
    if (++running->useless > 100000)
        fail("waits for another block without end");
}

/* By the seed: one of those that are ready since not long, so that a block runs ahead of others until it must wait (and
 * stays in the cache), or any. Without a seed the one that has been ready for longest. */
unsigned take_ready()
{
    if (running->ready_count == 0 || (together.seed % 3 == 2 && draw(all()) == 0))
        look_again();
    const unsigned windows[] = {512, 64, all()};
    unsigned window = windows[together.seed % 3], count = running->ready_count;
    unsigned first = together.seed == 0 ? 0 : count - 1 - draw(window < count ? window : count);
    unsigned *taken = ready_at(first), *last = ready_at(together.seed == 0 ? 0 : count - 1);
    unsigned fiber = *taken;
    *taken = *last;
    if (together.seed == 0)
        running->first_ready++;
    running->ready_count--;
    return fiber;
}

void name_running(unsigned fiber)
{
    now = fiber;
    together_thread.x = fiber % running->threads, together_block.x = fiber / running->threads;
}

void live();

/* Goes on with a fiber, or begins it; returns when somebody comes back to `from`. */
void leave_for(fibers::place from, unsigned number)
{
    fiber *fiber = &running->fibers[number];
    name_running(number);
    if (fiber->begun) {
        fibers::leave(from, fiber->at);
        return;
    }
    fiber->begun = true;
    fibers::begin(from, live, running->stacks + (size_t)number * STACK_BYTES, STACK_BYTES);
}

/* The running fiber stops until it is taken again. Another goes on at once, without the scheduler between, unless that
 * has something to decide. */
void leave()
{
    fiber *self = &running->fibers[now];
    if (running->given_up || running->ready_count == 0) {
        fibers::leave(self->at, scheduler);
        return;
    }
    unsigned next = take_ready();
    if (&running->fibers[next] != self)
        leave_for(self->at, next);
}

void append(changes &to, changes &from)
{
    to.insert(to.end(), from.begin(), from.end());
    from.clear();
}

void show(changes &all)
{
    for (const change &change : all)
        if (change.bytes == 0)
            *static_cast<int64_t *>(change.to) += change.value;
        else
            memcpy(change.to, &change.value, change.bytes);
    all.clear();
}

void wait_at(waiting *barrier)
{
    barrier->fibers[barrier->count++] = now;
    if (barrier->count == barrier->threads) {
        running->useless = 0;
        if (barrier == &running->at_block[blockIdx.x])
            append(running->hidden[blockIdx.x].ordered, running->hidden[blockIdx.x].fresh);
        for (unsigned i = 0; i < barrier->threads; i++)
            make_ready(barrier->fibers[i]);
        barrier->count = 0;
    }
    leave();
}

void live()
{
    running->thread(running->context);
    running->fibers[now].done = true;
    running->useless = 0;
    leave();
}

waiting *barriers(unsigned count, unsigned threads)
{
    waiting *made = static_cast<waiting *>(calloc(count, sizeof *made));
    for (unsigned i = 0; i < count; i++)
        made[i].threads = threads, made[i].fibers = static_cast<unsigned *>(calloc(threads, sizeof(unsigned)));
    return made;
}

void drop(waiting *barriers, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        free(barriers[i].fibers);
    free(barriers);
}

char *map(size_t bytes)
{
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fail("no memory for its blocks");
    return static_cast<char *>(memory);
}

/* A block has canaries, its shared memory, and behind that at once what nobody may touch. */
size_t open_bytes()
{
    return (CANARY_BYTES + running->shared_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

size_t pitch()
{
    return open_bytes() + CLOSED_BYTES;
}

char *shared_of(unsigned block)
{
    return running->shared + block * pitch() + open_bytes() - running->shared_bytes;
}

/* NaN of all kinds, so that neither its numbers nor its bytes will do for anything. */
void open_shared(unsigned block)
{
    char *end = shared_of(block) + running->shared_bytes;
    memset(end - open_bytes(), CANARY, open_bytes());
    uint32_t bits = (uint32_t)together.seed + block;
    for (char *at = shared_of(block); at < end; at += sizeof bits) {
        bits = bits * 1664525u + 1013904223u;
        uint32_t word = 0xff800001u | bits >> 9;
        memcpy(at, &word, sizeof word);
    }
    if (mprotect(end, CLOSED_BYTES, PROT_NONE) != 0)
        fail("no memory that is closed");
}

void look_at_canaries()
{
    for (unsigned block = 0; block < running->blocks; block++)
        for (const char *byte = running->shared + block * pitch(); byte < shared_of(block); byte++)
            if ((unsigned char)*byte != CANARY) {
                fprintf(stderr, "together: shared memory, before block %u\n", block);
                abort();
            }
}

struct call {
    unsigned blocks, threads;
    size_t shared_bytes;
    void (*thread)(const void *context);
    launch *begun; /* or nullptr */
    bool failed;
    alignas(16) char context[8192];
};

size_t all_shared_bytes()
{
    return (size_t)running->blocks * pitch();
}

size_t all_stack_bytes()
{
    return (size_t)all() * STACK_BYTES;
}

/* Those of the last launch, for the next: the kernel takes long to give new pages, and to take them back. */
struct stacks {
    char *memory;
    size_t bytes;
} spare;

void open_stacks(launch *launch)
{
    if (spare.bytes >= all_stack_bytes())
        launch->stacks = spare.memory, launch->stack_bytes = spare.bytes, spare = {nullptr, 0};
    else
        launch->stacks = map(all_stack_bytes()), launch->stack_bytes = all_stack_bytes();
}

void close_stacks(launch *launch)
{
    stacks given = {launch->stacks, launch->stack_bytes};
    if (given.bytes > spare.bytes)
        std::swap(given, spare);
    if (given.memory != nullptr)
        munmap(given.memory, given.bytes);
}

launch *begin(const call &call)
{
    launch *launch = running = new struct launch();
    if (emulated_begins != nullptr)
        emulated_begins();
    launch->blocks = call.blocks, launch->threads = call.threads, launch->shared_bytes = call.shared_bytes;
    launch->thread = call.thread, launch->context = call.context;
    launch->hidden = std::vector<unseen>(call.blocks);
    state = together.seed;
    launch->shared = map(all_shared_bytes());
    open_stacks(launch);
    for (unsigned block = 0; block < launch->blocks; block++)
        open_shared(block);
    launch->fibers = new fiber[all()]();
    for (launch->ring = 1; launch->ring < all();)
        launch->ring *= 2;
    launch->ready = static_cast<unsigned *>(calloc(launch->ring, sizeof(unsigned)));
    launch->polling = static_cast<unsigned *>(calloc(all(), sizeof(unsigned)));
    launch->at_block = barriers(launch->blocks, launch->threads);
    launch->at_warp = barriers(all() / WARP, WARP);
    launch->late = together.late;
    for (unsigned i = 0; i < (together.late > 0 ? together.late_from * launch->threads : all()); i++)
        make_ready(i);
    return launch;
}

/* True: it is over. False: it waits for another process. */
bool go_on()
{
    launch *launch = running;
    while (!launch->given_up && (launch->ready_count > 0 || launch->polling_count > 0)) {
        leave_for(scheduler, take_ready());
        if (emulated_queue != nullptr && launch->abroad && launch->ready_count == 0 && launch->polling_count > 0) {
            launch->abroad = false, launch->useless = 0;
            return false;
        }
    }
    return true;
}

void end(launch *launch)
{
    for (unsigned i = 0; i < all() && !launch->given_up; i++)
        if (!launch->fibers[i].done)
            name_running(i), fail("waits at a barrier or shuffle that others never reach");
    look_at_canaries();
    for (released &released : launch->handed)
        show(released.all);
    for (unseen &unseen : launch->hidden)
        show(unseen.ordered), show(unseen.fresh);
    drop(launch->at_block, launch->blocks), drop(launch->at_warp, all() / WARP);
    delete[] launch->fibers;
    free(launch->ready), free(launch->polling);
    munmap(launch->shared, all_shared_bytes());
    close_stacks(launch);
    delete launch;
}

bool run_call(void *context)
{
    call *call = static_cast<struct call *>(context);
    running = call->begun != nullptr ? call->begun : (call->begun = begin(*call));
    bool over = go_on();
    call->failed = running->given_up;
    if (over)
        end(running);
    running = nullptr;
    return over;
}

} // namespace

struct together together;
together_index together_thread, together_block;

void together_barrier()
{
    wait_at(&running->at_block[blockIdx.x]);
}

void together_warp_barrier()
{
    wait_at(&running->at_warp[now / WARP]);
}

void together_yield(bool waiting)
{
    if (!waiting && (together.seed == 0 || draw(YIELD_ONE_IN) != 0))
        return;
    if (waiting)
        running->polling[running->polling_count++] = now;
    else
        make_ready(now);
    leave();
}

void together_store(void *to, const void *value, size_t bytes)
{
    change change = {to, 0, bytes, now};
    memcpy(&change.value, value, bytes);
    running->hidden[blockIdx.x].fresh.push_back(change);
}

void together_add(int64_t *to, int64_t term)
{
    running->hidden[blockIdx.x].fresh.push_back({to, term, 0, now});
}

/* What this thread may hand on. */
static changes take_ordered()
{
    changes all, others;
    append(all, running->hidden[blockIdx.x].ordered);
    for (const change &change : running->hidden[blockIdx.x].fresh)
        (change.fiber == now ? all : others).push_back(change);
    running->hidden[blockIdx.x].fresh.swap(others);
    return all;
}

void together_release(const uint32_t *counter)
{
    running->handed.push_back({{counter}, take_ordered()});
}

/* What lies in memory that other processes see is theirs to see at once, which they may do no sooner than they look. */
void together_release_to_peers(uint32_t *const *counters, unsigned count)
{
    changes all = take_ordered();
    if (emulated_queue != nullptr)
        show(all);
    else
        running->handed.push_back({{counters, counters + count}, all});
    for (unsigned i = 0; i < count; i++)
        __atomic_fetch_add(counters[i], 1u, __ATOMIC_RELEASE);
}

void together_acquire(const uint32_t *counter)
{
    std::vector<released> &all = running->handed;
    for (size_t i = 0; i < all.size();)
        if (std::find(all[i].counters.begin(), all[i].counters.end(), counter) != all[i].counters.end()) {
            show(all[i].all);
            all.erase(all.begin() + (long)i);
        } else
            i++;
}

uint32_t together_acquire_of_peers(const uint32_t *counter)
{
    together_acquire(counter);
    running->abroad = true;
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

void together_give_up()
{
    running->given_up = true;
    leave();
    abort(); /* nobody comes back */
}

void together_copy_later(float *to, const float *from)
{
    copy copy = {to, {from[0], from[1], from[2], from[3]}};
    running->fibers[now].copies.push_back(copy);
}

void together_await_copies()
{
    for (const copy &copy : running->fibers[now].copies)
        memcpy(copy.to, copy.numbers, sizeof copy.numbers);
    running->fibers[now].copies.clear();
}

/* Hands bits to the warp; when all have, returns where they lie. */
static unsigned hand_in(uint64_t bits)
{
    fiber *self = &running->fibers[now];
    unsigned turn = self->exchanges++ % 2;
    self->exchanged[turn] = bits;
    together_warp_barrier();
    return turn;
}

uint64_t together_exchange(uint64_t bits, unsigned from)
{
    unsigned turn = hand_in(bits);
    return running->fibers[now / WARP * WARP + from].exchanged[turn];
}

unsigned together_ballot(bool yes)
{
    unsigned turn = hand_in(yes), bits = 0;
    for (unsigned lane = 0; lane < WARP; lane++)
        bits |= (unsigned)running->fibers[now / WARP * WARP + lane].exchanged[turn] << lane;
    return bits;
}

/* The host's nanoseconds, with all that other fibers do meanwhile: they mean nothing. */
long long clock64()
{
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

void *together_shared()
{
    return shared_of(blockIdx.x);
}

/* Of the environment if it is there, else what the test says, else what a test's time allows. */
static int value_of(const char *name, uint32_t said, int otherwise)
{
    const char *text = getenv(name);
    return text != nullptr ? atoi(text) : said != 0 ? (int)said : otherwise;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrCooperativeLaunch ? 1
             : attribute == cudaDevAttrMpsEnabled      ? 0
             : attribute == cudaDevAttrMultiProcessorCount
                 ? value_of("EMULATED_MULTIPROCESSORS", together.multiprocessors, MULTIPROCESSORS)
                 : value_of("EMULATED_SHARED", together.shared_bytes, SHARED_BYTES);
    return cudaSuccess;
}

cudaError_t together_launch(unsigned blocks, unsigned threads, size_t shared_bytes, void *stream,
                            void (*thread)(const void *context), const void *context, size_t context_bytes)
{
    call call = {blocks, threads, shared_bytes, thread, nullptr, false, {}};
    if (context_bytes > sizeof call.context || threads % WARP != 0 || threads == 0 || blocks == 0 ||
        shared_bytes % 16 != 0)
        fail("a launch that nobody can do");
    memcpy(call.context, context, context_bytes);
    if (emulated_queue != nullptr)
        emulated_queue(stream, run_call, &call, sizeof call);
    else
        run_call(&call);
    return call.failed ? cudaErrorLaunchFailure : cudaSuccess;
}
