/* cuda_host.h - how the host runs a kernel: what a test may choose.
 *
 * Blocks run one after the other; the threads of a block are fibers, which give way where they synchronise.
 * A barrier or a shuffle that not every thread reaches ends the program with a message. CUDA promises no
 * order of blocks, nor of threads between barriers: a kernel whose results change with `order` lacks one.
 */
#ifndef DTRAIN_CUDA_HOST_H
#define DTRAIN_CUDA_HOST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_host {
    uint32_t order;                   /* 0 ascending, 1 descending, else a shuffle of that number */
    uint32_t first_block, last_block; /* only blocks [first, last) run; last 0: to the end */
};
extern struct cuda_host cuda_host;

#ifdef __cplusplus
}
#endif

#endif
