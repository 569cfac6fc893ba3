/* clock.h - seconds on a clock that only goes forward. */
#ifndef DTRAIN_CLOCK_H
#define DTRAIN_CLOCK_H

#include <time.h>

static inline double clock_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* The same clock `seconds` from now. */
static inline struct timespec clock_after(double seconds)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += (long)(1e9 * seconds);
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

#endif
