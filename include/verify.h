/* verify.h - `--verify`: training with a known answer, a test of machines.
 *
 * Every rank trains the lessons of src/verify/lesson.h, first by itself, each time on another of the cores it may use,
 * then all together, again and again for the time given. After every step weights, velocity and losses are compared
 * with a digest that the program carries (an engine that follows kernels/README.md), or with the first round's and with
 * those of ranks on equal devices (one that does not). Writes no files.
 */
#ifndef DTRAIN_VERIFY_H
#define DTRAIN_VERIFY_H

#include "comm.h"
#include "error.h"
#include "options.h"

/* Collective over the world. A line a rank, then the verdict. EXIT_DIVERGED with *error when a rank
 * computed wrongly, EXIT_UNVERIFIED when the time was over in the first round and nothing was wrong until then. */
enum exit_code verify_run(const struct options *options, struct comm *world, struct error *error);

#endif
