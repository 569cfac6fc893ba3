/* One of the eight kernels: -DKERNEL=name -DCLUSTER=0|1 [-DSTAMPS], from fo/ or fx/. */
#include "fused.cuh"
#include "variant.h"
#ifndef MAIL_SIZE
#define MAIL_SIZE sizeof(exchange)
#endif
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
extern const variant CAT(info_, KERNEL) = {(const void *)KERNEL, sizeof(memory), MAIL_SIZE, CLUSTER,
#ifdef STAMPS
    1
#else
    0
#endif
};
