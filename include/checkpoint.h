/* checkpoint.h - a run's whole state in one file, and the best model in another. */
#ifndef DTRAIN_CHECKPOINT_H
#define DTRAIN_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "files.h"
#include "lenet5.h"
#include "run.h"

/* The files of a run's folder: checkpoint.safetensors, the one before it as
 * checkpoint-previous.safetensors, model-best.safetensors. */

/* Weights and velocity, in the file called momentum (LENET5_WEIGHTS, canonical layout), terms and progress; the file
 * that was current becomes the previous one. At every instant at least one of the two is whole. Errors (EXIT_RUNTIME:
 * no space, no permission) name the file and leave the old ones. */
bool checkpoint_write(const struct folder *folder, const struct terms *terms, const struct progress *progress,
                      const float *weights, const float *velocity, struct error *error);

/* Where checkpoint.safetensors is not there, but a write of it that was interrupted has left a whole one, further than
 * the previous one: that takes its place, which is said. */
void checkpoint_recover(const struct folder *folder);

/* Whether there is a checkpoint, or at least a previous one. */
bool checkpoint_exists(const struct folder *folder);

/* Whether model-best.safetensors is there, as a regular file. */
bool checkpoint_has_best(const struct folder *folder);

/* Reads checkpoint.safetensors; where it is not there, the previous one, and says so. Errors (EXIT_INPUT): damaged,
 * another format version, other terms (the first that differs is named as the user's option with both values). When it
 * is there and damaged, and the previous one is whole and of these terms, the message says so and how to go on from it;
 * where no whole one is there, how to start anew.
 * On failure the outputs hold nothing. samples: of an epoch. */
bool checkpoint_read(const struct folder *folder, const struct terms *terms, size_t samples, struct progress *progress,
                     float *weights, float *velocity, struct error *error);

/* model-best.safetensors: weights alone, complete or absent; loads in PyTorch with load_state_dict(load_file(path)).
 * Its metadata, which PyTorch ignores, has a checksum, the terms and the accuracy. Errors as checkpoint_write's. */
bool checkpoint_write_best(const struct folder *folder, const struct terms *terms, const struct progress *progress,
                           const float *weights, struct error *error);

/* Whether model-best.safetensors is as checkpoint_write_best left it, in a run of these terms that stands at `progress`
 * or was killed further on: then its accuracy, which may be better, becomes progress->best_test. If not, *error
 * (EXIT_INPUT) says why. *has_checksum: false for one without, perhaps an older dtrain's, of which nothing can be
 * told. */
bool checkpoint_check_best(const struct folder *folder, const struct terms *terms, struct progress *progress,
                           bool *has_checksum, struct error *error);

/* Weights from any safetensors file with the net's names and shapes: a model, a checkpoint, PyTorch's (--init-from),
 * wrapped or not ("module."). Other tensors are ignored. Errors (EXIT_INPUT) name the file and the tensor. */
bool checkpoint_read_model(const char *path, float *weights, struct error *error);

#endif
