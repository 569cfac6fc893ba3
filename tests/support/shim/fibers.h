/* fibers.h - leaving one fiber for another, in C++ that gcc or clang compiles. */
#ifndef DTRAIN_SHIM_FIBERS_H
#define DTRAIN_SHIM_FIBERS_H

#include <ucontext.h>

namespace fibers
{

typedef void *place[5]; /* where a fiber or the scheduler goes on */

/* swapcontext would ask the kernel for the signal mask each time, AddressSanitizer's longjmp walks the stack, and
 * glibc's looks for handlers of cleanup: all take longer than the kernels do. The compilers want their setjmp and
 * longjmp in different functions; and callers must not know which registers are left alone here. */
__attribute__((noinline, noreturn, no_sanitize("address"))) static void jump(place to)
{
    __builtin_longjmp(to, 1);
}

__attribute__((no_sanitize("address"))) static void leave_now(place from, place to)
{
    if (__builtin_setjmp(from) == 0)
        jump(to);
}

/* Leaves for `to`; returns when somebody comes back to `from`. */
static void (*volatile leave)(place from, place to) = leave_now;

/* Leaves for a new fiber, which runs live() on this stack and never returns from it; likewise. */
__attribute__((noinline, no_sanitize("address"))) static void begin(place from, void (*live)(void), char *stack,
                                                                    size_t bytes)
{
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    if (__builtin_setjmp(from) == 0)
        setcontext(&context);
}

} // namespace fibers

#endif
