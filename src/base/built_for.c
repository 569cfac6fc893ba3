/* Says in one line, before anything else runs, that this processor lacks what the program was built for: it would die
 * by an illegal instruction. So this file alone is compiled for any processor of the kind (Makefile), and names the
 * instruction sets by which processors of today differ most. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "launcher.h"

#ifdef __x86_64__

static const char *missing(void)
{
    __builtin_cpu_init();
#ifdef BUILT_FOR_AVX512F
    if (!__builtin_cpu_supports("avx512f"))
        return "AVX-512";
#endif
#ifdef BUILT_FOR_AVX512VL
    if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq"))
        return "AVX-512 VL, BW and DQ";
#endif
#ifdef BUILT_FOR_AVX512VNNI
    if (!__builtin_cpu_supports("avx512vnni"))
        return "AVX-512 VNNI";
#endif
#ifdef BUILT_FOR_AVX2
    if (!__builtin_cpu_supports("avx2"))
        return "AVX2";
#endif
#ifdef BUILT_FOR_FMA
    if (!__builtin_cpu_supports("fma"))
        return "FMA";
#endif
#ifdef BUILT_FOR_AVX
    if (!__builtin_cpu_supports("avx"))
        return "AVX";
#endif
#ifdef BUILT_FOR_SSE4_2
    if (!__builtin_cpu_supports("sse4.2"))
        return "SSE4.2";
#endif
    return NULL;
}

/* The first rank speaks, as everywhere. */
static void __attribute__((constructor)) check_processor(void)
{
    const char *lacks = missing(), *rank = launcher_rank();
    if (lacks == NULL)
        return;
    if (rank == NULL || strcmp(rank, "0") == 0)
        fprintf(
            stderr,
            "dtrain: this program was built for a processor with %s (%s), which this one lacks: build it here, or with "
            "make MARCH=x86-64-v3 for all that have AVX2\n",
            lacks, DTRAIN_BUILD);
    _exit(EXIT_RUNTIME);
}

#endif
