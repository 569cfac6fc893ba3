/* range.h - names for what the engine does, on the timeline of Nsight Systems (NVTX). They cost nothing where nobody
 * looks, and where the toolkit's header is not found they are nothing. A replayed CUDA graph bears no names of its
 * parts: those show in the steps that run without one. */
#ifndef DTRAIN_CUDA_RANGE_H
#define DTRAIN_CUDA_RANGE_H

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else
#define nvtxRangePushA(name) ((void)(name))
#define nvtxRangePop() ((void)0)
#endif

/* Pairs nest, within a thread. */
static inline void range_begin(const char *name)
{
    nvtxRangePushA(name);
}

static inline void range_end(void)
{
    nvtxRangePop();
}

#endif
