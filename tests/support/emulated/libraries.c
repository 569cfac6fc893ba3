/* cuBLAS's product, cuDNN's convolutions in place of src/cuda/cudnn_conv.c, NCCL over MPI. */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated.h"
#include "kernels/reference/reference.h"
#include "src/cuda/cudnn_conv.h"

/* --- cuBLAS ------------------------------------------------------------------------------------------ */

struct product {
    bool transposed_a, transposed_b;
    int m, n, k, lda, ldb, ldc;
    const float *a, *b;
    float *c;
};

/* Columns first: element (i, j) of a matrix is at [i + j * ld]. */
static bool run_product(void *context)
{
    const struct product *p = context;
    for (int j = 0; j < p->n; j++)
        for (int i = 0; i < p->m; i++) {
            double sum = 0;
            for (int l = 0; l < p->k; l++)
                sum += (double)p->a[p->transposed_a ? l + i * p->lda : i + l * p->lda] *
                       (double)p->b[p->transposed_b ? j + l * p->ldb : l + j * p->ldb];
            p->c[i + j * p->ldc] = (float)sum;
        }
    return true;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType type_a, int lda, const void *b,
                            cudaDataType type_b, int ldb, const void *beta, void *c, cudaDataType type_c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm)
{
    (void)type_a, (void)type_b, (void)type_c, (void)compute, (void)algorithm;
    struct product product = {op_a == CUBLAS_OP_T, op_b == CUBLAS_OP_T, m, n, k, lda, ldb, ldc, a, b, c};
    if (*(const float *)alpha != 1 || *(const float *)beta != 0)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    emulated_queue(*(void **)handle, run_product, &product, sizeof product);
    return CUBLAS_STATUS_SUCCESS;
}

/* A handle is its stream. */
cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    void **stream = calloc(1, sizeof *stream);
    *handle = (void *)stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
    *(void **)handle = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *workspace, size_t bytes)
{
    (void)handle, (void)workspace, (void)bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t mode)
{
    (void)handle;
    return mode == CUBLAS_ATOMICS_NOT_ALLOWED ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasGetProperty(libraryPropertyType type, int *value)
{
    (void)type;
    *value = 0;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "an error";
}

/* --- cuDNN ------------------------------------------------------------------------------------------- */

struct convolution {
    struct conv conv;
    struct conv_tensors tensors;
};

static double *widened(const float *from, size_t count)
{
    double *to = calloc(count, sizeof *to);
    for (size_t i = 0; i < count; i++)
        to[i] = from[i];
    return to;
}

static bool run_convolution(void *context)
{
    const struct convolution *c = context;
    size_t side = (size_t)c->conv.side, channels = (size_t)c->conv.channels, outputs = (size_t)c->conv.outputs;
    size_t xs = channels * side * side, ws = outputs * channels * 25, ys = outputs * (side - 4) * (side - 4);
    double *w = widened(c->tensors.w, ws), *bias = calloc(outputs, sizeof *bias); /* the pool's */
    double *y = calloc(ys, sizeof *y);
    for (size_t n = 0; n < (size_t)c->conv.samples; n++) {
        double *x = widened((float *)c->tensors.x + n * xs, xs);
        reference_conv_forward((struct reference_conv){channels, side, outputs}, x, w, bias, y);
        for (size_t i = 0; i < ys; i++)
            ((float *)c->tensors.y)[n * ys + i] = (float)y[i];
        free(x);
    }
    free(w);
    free(bias);
    free(y);
    return true;
}

bool conv_choose(const struct conv_planner *planner, const struct conv *conv, const struct conv_tensors *tensors,
                 struct conv_choice *choice, struct error *error)
{
    (void)planner, (void)error;
    struct convolution *bound = malloc(sizeof *bound);
    *bound = (struct convolution){*conv, *tensors};
    *choice = (struct conv_choice){.bound = bound};
    return true;
}

void conv_run(const struct conv_choice *choice, cudnnHandle_t handle)
{
    emulated_queue(*(void **)handle, run_convolution, choice->bound, sizeof(struct convolution));
}

void conv_release(struct conv_choice *choice)
{
    free(choice->bound);
    choice->bound = NULL;
}

void conv_planner_open(struct conv_planner *planner, struct chooser *chooser, cudnnHandle_t handle,
                       enum precision precision, void *workspace, size_t workspace_bytes)
{
    (void)handle, (void)precision, (void)workspace, (void)workspace_bytes;
    *planner = (struct conv_planner){.chooser = chooser};
}

void conv_planner_close(struct conv_planner *planner)
{
    (void)planner;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    void **stream = calloc(1, sizeof *stream);
    *handle = (void *)stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    *(void **)handle = stream;
    return CUDNN_STATUS_SUCCESS;
}

size_t cudnnGetVersion(void)
{
    return 0;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_SUCCESS ? "success" : "an error";
}

/* --- NCCL -------------------------------------------------------------------------------------------- */

/* As one that does not block: every call answers "in progress". */
struct ncclComm {
    MPI_Comm mpi;
};

static int sums_begun;

static bool lacks_way(void)
{
    const char *setting = getenv("NCCL_P2P_DISABLE");
    return getenv("EMULATED_ALONE") != NULL && getenv("EMULATED_IPC") != NULL &&
           (setting == NULL || strcmp(setting, "1") != 0);
}

/* Whether NCCL no longer works, and what it says then. */
static bool is_broken(ncclResult_t *result)
{
    int said, at;
    const char *asked = getenv("EMULATED_NCCL");
    *result = ncclUnhandledCudaError;
    if (sums_begun > 0 && lacks_way())
        return true;
    if (asked == NULL || sscanf(asked, "%d:%d", &said, &at) != 2 || sums_begun < at)
        return false;
    if (getenv("EMULATED_NCCL_KILLED") != NULL && emulated_is_meant("EMULATED_NCCL_KILLED"))
        raise(SIGKILL);
    *result = (ncclResult_t)said;
    return true;
}

struct reduction {
    MPI_Comm mpi;
    const void *from;
    void *to;
    int count;
    MPI_Datatype type;
    MPI_Request request; /* MPI_REQUEST_NULL: not begun */
    bool begun;
};

static bool run_reduction(void *context)
{
    struct reduction *r = context;
    ncclResult_t result;
    int done;
    sums_begun += !r->begun;
    if (is_broken(&result)) {
        r->begun = true;
        return false;
    }
    if (!r->begun)
        MPI_Iallreduce(r->from == r->to ? MPI_IN_PLACE : r->from, r->to, r->count, r->type, MPI_SUM, r->mpi,
                       &r->request);
    r->begun = true;
    MPI_Test(&r->request, &done, MPI_STATUS_IGNORE);
    return done;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t comm, cudaStream_t stream)
{
    struct reduction reduction = {comm->mpi,        from, to, (int)count, type == ncclFloat ? MPI_FLOAT : MPI_INT64_T,
                                  MPI_REQUEST_NULL, false};
    if ((type != ncclInt64 && type != ncclFloat) || operation != ncclSum)
        return ncclInvalidArgument;
    emulated_queue(stream, run_reduction, &reduction, sizeof reduction);
    return ncclInProgress;
}

/* The id is the root's rank in the world. */
ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    memcpy(id->internal, &rank, sizeof rank);
    return ncclSuccess;
}

/* What NCCL 2.28 writes of one ring over two channels, a connection by the host's memory and one by a network. */
static void log_start(int count)
{
    const char *path = getenv("NCCL_DEBUG_FILE"), *about = getenv("NCCL_DEBUG_SUBSYS");
    FILE *log = path != NULL ? fopen(path, "w") : NULL;
    if (log == NULL)
        return;
    if (about != NULL && strcmp(about, "INIT") == 0)
        for (int channel = 0; channel < 2; channel++) {
            fprintf(log, "vm:7:9 [0] NCCL INFO Channel %02d/02 : ", channel);
            for (int rank = 0; rank < count; rank++)
                fprintf(log, " %3d", rank);
            fprintf(log, "\nvm:7:9 [0] NCCL INFO Channel %02d : 0[0] -> 1[1] via SHM/direct/direct\n", channel);
        }
    fprintf(log, "vm:7:9 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [receive] via NET/Socket/0\n");
    fclose(log);
}

/* Between those ranks alone, as others may never call: the root gathers who they are, and tells them. */
static MPI_Comm assemble(int root, int rank, int count)
{
    enum { TAG = 77 };
    int self, *world_ranks = calloc((size_t)count, sizeof *world_ranks), numbers[2];
    MPI_Comm mpi;
    MPI_Group world, group;
    MPI_Comm_rank(MPI_COMM_WORLD, &self);
    world_ranks[rank] = self;
    for (int i = 1; i < count && self == root; i++) {
        MPI_Recv(numbers, 2, MPI_INT, MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        world_ranks[numbers[0]] = numbers[1];
    }
    for (int i = 0; i < count && self == root; i++)
        if (world_ranks[i] != root)
            MPI_Send(world_ranks, count, MPI_INT, world_ranks[i], TAG, MPI_COMM_WORLD);
    if (self != root) {
        MPI_Send((int[]){rank, self}, 2, MPI_INT, root, TAG, MPI_COMM_WORLD);
        MPI_Recv(world_ranks, count, MPI_INT, root, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, count, world_ranks, &group);
    MPI_Comm_create_group(MPI_COMM_WORLD, group, TAG, &mpi);
    MPI_Group_free(&group);
    MPI_Group_free(&world);
    free(world_ranks);
    return mpi;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int count, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    int root;
    if (config->blocking)
        return ncclInvalidArgument;
    memcpy(&root, id.internal, sizeof root);
    *comm = calloc(1, sizeof **comm);
    (*comm)->mpi = assemble(root, rank, count);
    log_start(count);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    (void)comm;
    if (!is_broken(state) || *state == ncclInProgress)
        *state = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    (void)comm;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    MPI_Comm_free(&comm->mpi);
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess ? "success" : "an error";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}
