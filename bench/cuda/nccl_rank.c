/* nccl_rank - one rank, and GPU, of bench/allreduce: the time of NCCL's all-reduce, and whether it is right.
 *
 *   mpirun -np N nccl_rank [MAX_BYTES]
 *
 * As allreduce_rank.c, of device memory. The communicator is that of the trainer's transport. A repetition begins at a
 * barrier and ends when the stream has; what the launch costs is included.
 */
#include <cuda_runtime_api.h>
#include <nccl.h>

#include "bench/sums.h"
#include "clock.h"
#include "engine.h"
#include "lenet5.h"
#include "memory.h"
#include "src/comm/transport.h"
#include "src/cuda/check.h"
#include "src/cuda/device.h"
#include "src/cuda/nccl.h"

struct bench {
    struct comm *comm;
    cudaStream_t stream;
    void *terms, *totals, *host; /* of max_bytes */
};

static bool has_left(void *context)
{
    ncclResult_t state;
    NCCL_CHECK(ncclCommGetAsyncError(context, &state));
    if (state != ncclInProgress)
        NCCL_CHECK(state);
    return state == ncclSuccess;
}

static void sum(struct bench *b, const void *terms, void *totals, size_t count, ncclDataType_t type)
{
    ncclComm_t nccl = nccl_communicator(b->comm);
    ncclResult_t result = ncclAllReduce(terms, totals, count, type, ncclSum, nccl, b->stream);
    if (result != ncclInProgress)
        NCCL_CHECK(result);
    comm_wait(b->comm, has_left, nccl, "a sum");
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
}

static void copy(struct bench *b, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, b->stream));
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
}

static void measure(struct bench *b, size_t count, bool is_float, bool in_place)
{
    size_t bytes = count * sums_width(is_float), repetitions = sums_repetitions(bytes), wrong = 0;
    void *totals = in_place ? b->terms : b->totals;
    double times[SUMS_MAX_REPETITIONS];
    for (size_t k = 0; k < repetitions; k++) {
        sums_fill(b->host, count, is_float, comm_rank(b->comm), k);
        copy(b, b->terms, b->host, bytes, cudaMemcpyHostToDevice);
        comm_barrier(b->comm);
        double start = clock_seconds();
        sum(b, b->terms, totals, count, is_float ? ncclFloat : ncclInt64);
        times[k] = clock_seconds() - start;
        copy(b, b->host, totals, bytes, cudaMemcpyDeviceToHost);
        wrong += sums_count_wrong(b->host, count, is_float, comm_size(b->comm), k);
    }
    sums_print(b->comm, "NCCL", is_float, count, in_place, times, repetitions, wrong);
}

static void measure_all(struct bench *b, size_t max_bytes)
{
    for (size_t bytes = SUMS_MIN_BYTES; bytes <= max_bytes; bytes *= 4)
        for (int way = 0; way < 4; way++)
            measure(b, bytes / sums_width(way < 2), way < 2, way % 2);
    for (int in_place = 0; in_place < 2; in_place++) { /* a gradient, and what the GPU engine sums */
        measure(b, LENET5_WEIGHTS, true, in_place);
        measure(b, LENET5_WEIGHTS + SUM_SLOTS, false, in_place);
    }
}

int main(int argc, char **argv)
{
    size_t max_bytes = argc > 1 ? strtoull(argv[1], NULL, 10) : (size_t)64 << 20;
    size_t step_bytes = (LENET5_WEIGHTS + SUM_SLOTS) * sizeof(int64_t);
    size_t bytes = max_bytes > step_bytes ? max_bytes : step_bytes;
    char why[300];
    struct error error = {0};
    struct comm *world = comm_open_world(60);
    if (!device_available(why, sizeof why))
        error_set(&error, EXIT_RUNTIME, "rank %d: %s", comm_rank(world), why);
    if (comm_agree(world, &error)) {
        struct bench b = {.comm = comm_split(world, 0, "mpi", COMM_FOR_CPU, &error),
                          .host = memory_allocate(1, bytes, "a sum")};
        device_use(comm_local_rank(world));
        transport_nccl.open(b.comm, &error);
        CUDA_CHECK(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
        CUDA_CHECK(cudaMalloc(&b.terms, bytes));
        CUDA_CHECK(cudaMalloc(&b.totals, bytes));
        measure_all(&b, max_bytes);
        CUDA_CHECK(cudaFree(b.totals));
        CUDA_CHECK(cudaFree(b.terms));
        CUDA_CHECK(cudaStreamDestroy(b.stream));
        transport_nccl.close(b.comm);
        comm_close(b.comm);
        free(b.host);
    } else if (comm_rank(world) == 0) {
        fprintf(stderr, "nccl_rank: %s\n", error.text);
    }
    comm_close(world);
    return (int)error.code;
}
