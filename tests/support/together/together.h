/* together.h - kernels whose blocks wait for each other, on the host: every thread of every block is a fiber, all of
 * them at once on one thread of the host.
 *
 * A fiber gives way where it synchronises, where it waits for another block, and, at random, where it reads or writes
 * what other blocks do too. Which of all that can goes on next is drawn by `seed`: a kernel whose results depend on it
 * lacks a barrier. Shared memory begins as NaN; whoever reads or writes up to 64 KB behind it ends the program. So do,
 * with a message, a barrier that some never reach, waits without end, and canaries before shared memory that were
 * written on. Where a GPU is emulated a launch may wait for one of another process: it then gives way to the host, too.
 */
#ifndef DTRAIN_TOGETHER_H
#define DTRAIN_TOGETHER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct together {
    uint64_t seed;            /* 0: in the order in which they could go on */
    uint32_t multiprocessors; /* that the host claims to have; 0: 16 */
    uint32_t shared_bytes;    /* of a block, at most; 0: as many as sm_90 */
    uint32_t patience;        /* looks after which a wait has had no end; 0: endless */
    uint32_t is_device;       /* nothing of this can be had: the blocks are on a GPU (shim/cuda_device.c) */
    uint32_t late_from,
        late; /* blocks from `late_from` on begin once others have waited so many turns; late 0: at once */
};
extern struct together together;

#ifdef __cplusplus
}
#endif

#endif
