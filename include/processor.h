/* processor.h - where a benchmark's tensors lie and its work is done: host memory and the CPU, or a GPU (gpu.h).
 *
 * Work is queued on a stream, in order; on the CPU it is done at once. What fails of the machinery ends the
 * program with a message.
 */
#ifndef DTRAIN_PROCESSOR_H
#define DTRAIN_PROCESSOR_H

#include <stdbool.h>
#include <stddef.h>

#include "dropout.h"

/* Something queued again and again to be timed. */
struct timed {
    void (*queue)(void *context, void *stream);
    void *context;
};

struct processor {
    void (*name)(char *text, size_t bytes); /* the processor */
    void *(*open_stream)(void);
    void (*close_stream)(void *stream);
    void *(*get)(size_t bytes); /* memory there, of no particular content */
    void (*drop)(void *memory);
    void (*copy)(void *to, const void *from, size_t bytes, void *stream); /* from or to host memory, too */
    void (*wait)(void *stream);
    double (*time)(struct timed work, void *stream); /* microseconds each: the median over windows */

    /* As dropout_forward and dropout_backward. */
    bool (*forward)(const struct dropout *dropout, struct dropout_stream numbers, const float *x, float *y,
                    void *stream, struct error *error);
    bool (*backward)(const struct dropout *dropout, struct dropout_stream numbers, const float *dy, float *dx,
                     void *stream, struct error *error);
};

#endif
