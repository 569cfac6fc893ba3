/* tensorboard.h - scalars in TensorBoard's event file format: TFRecords (length, masked crc32c, data,
 * masked crc32c) of Event protocol buffers, written by hand: the format is small and fixed.
 */
#ifndef DTRAIN_FILES_TENSORBOARD_H
#define DTRAIN_FILES_TENSORBOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "files.h"

struct tensorboard; /* opaque */

struct scalar {
    const char *tag; /* "train/loss" */
    double value;
};

/* A new file events.out.tfevents.SECONDS.HOST.PID.N. TensorBoard is to forget what earlier files of the directory hold
 * from first_step on, as of a run that is resumed. On failure NULL and *error (EXIT_RUNTIME) names the path. */
struct tensorboard *tensorboard_open(const struct folder *folder, uint64_t first_step, struct error *error);

/* One event with all the scalars at `step`, flushed; 4,000 bytes at most (some hundred scalars). Errors: EXIT_RUNTIME
 * (no space, an event too long). */
bool tensorboard_write(struct tensorboard *board, uint64_t step, const struct scalar *scalars, int count,
                       struct error *error);
void tensorboard_close(struct tensorboard *board); /* NULL is fine */

#endif
