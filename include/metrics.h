/* metrics.h - metrics.jsonl: one JSON object a line, one line an epoch, flushed as it is written.
 *
 * {"epoch":20,"step":3920,"loss":1.23,"lr":0.01,"seconds":1.9,"images_per_second":26000,
 *  "train_accuracy":57.0,"test_accuracy":50.9,"test_loss":1.4}   - the last three only at a check
 *
 * What is not finite is null. TensorBoard gets the same: train/loss, train/learning_rate,
 * train/images_per_second, check/train_accuracy, check/test_accuracy, check/test_loss, over epochs.
 */
#ifndef DTRAIN_METRICS_H
#define DTRAIN_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "files.h"
#include "run.h"

struct metrics; /* opaque */

/* The last epoch that metrics.jsonl has a line of; 0: none, or there is no such file. */
double metrics_last_epoch(const struct folder *folder);

/* Opens metrics.jsonl to append, and events.out.tfevents.* (tensorboard.h), in a folder that must outlive it. Lines of
 * epochs after `epochs_done`, which will be done again, are taken out first, and one that a crash tore; all other lines
 * stay, and it is said that they do. On failure (EXIT_RUNTIME: no space, no permission, no longer this run's folder)
 * NULL, and *error names the file. */
struct metrics *metrics_open(const struct folder *folder, uint64_t epochs_done, struct error *error);
/* One that was removed or replaced meanwhile is put there again, or gone on with, and that is said. Errors as
 * metrics_open's. */
bool metrics_write(struct metrics *metrics, const struct epoch_metrics *epoch, struct error *error);

/* Puts the lines on the disk as far as it can, so that no checkpoint is there without those of its epochs. */
void metrics_sync(struct metrics *metrics);

void metrics_close(struct metrics *metrics); /* NULL is fine */

#endif
