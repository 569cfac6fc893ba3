#include "device.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <dlfcn.h>
#include <glob.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "devices.h"
#include "error.h"
#include "kernels/cuda/kernels.h"

static int count_visible(cudaError_t *status)
{
    int count = 0;
    *status = cudaGetDeviceCount(&count);
    if (*status != cudaSuccess) {
        cudaGetLastError(); /* clears it */
        return 0;
    }
    return count;
}

/* The driver lists all of the host's GPUs here, also those that a container or a batch system hides. */
static int count_present(void)
{
    glob_t found;
    int count = glob("/proc/driver/nvidia/gpus/*", 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    globfree(&found);
    return count;
}

static void explain_none(cudaError_t status, char *why, size_t why_bytes)
{
    int driver = 0;
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) {
        snprintf(why, why_bytes, "the NVIDIA driver knows CUDA %d.%d, this program needs %d.%d: update the driver",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    } else if (status == cudaSuccess || status == cudaErrorNoDevice) {
        snprintf(why, why_bytes, "no GPU is visible (nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides them)");
    } else {
        snprintf(why, why_bytes, "CUDA does not start: %s", cudaGetErrorString(status));
    }
}

/* Whether the kernels were made for so early a GPU; else the text says so. */
static bool is_new_enough(const struct cudaDeviceProp *properties, char *text, size_t bytes)
{
    if (properties->major >= 8)
        return true;
    snprintf(text, bytes, "%s has compute capability %d.%d, the kernels need 8.0", properties->name, properties->major,
             properties->minor);
    return false;
}

bool device_available(char *why, size_t why_bytes)
{
    cudaError_t status;
    struct cudaDeviceProp properties;
    int count = count_visible(&status);
    if (count == 0) {
        explain_none(status, why, why_bytes);
        return false;
    }
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    snprintf(why, why_bytes, "%d GPU%s visible, the first: %s", count, count == 1 ? "" : "s", properties.name);
    return is_new_enough(&properties, why, why_bytes);
}

bool device_suits(struct comm *comm, struct error *error)
{
    int device;
    struct cudaDeviceProp properties;
    char who[GPU_WHO_BYTES], why[400];
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    gpu_who(device, who, sizeof who);
    if (!is_new_enough(&properties, why, sizeof why)) {
        error_set(error, EXIT_RUNTIME, "%s: %s: hide it (CUDA_VISIBLE_DEVICES), or give --engine cpu", who, why);
    } else {
        cudaError_t status = cuda_loads();
        if (status != cudaSuccess)
            error_set(error, EXIT_RUNTIME,
                      "%s: %s of compute capability %d.%d does not load the kernels (%s): build them for it, by make "
                      "SM=%d%d, or update its driver",
                      who, properties.name, properties.major, properties.minor, cudaGetErrorString(status),
                      properties.major, properties.minor);
    }
    return comm_agree(comm, error);
}

static void write_uuid(const cudaUUID_t *uuid, char *text, size_t bytes)
{
    size_t used = (size_t)snprintf(text, bytes, "GPU-");
    for (size_t i = 0; i < sizeof uuid->bytes; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        used += (size_t)snprintf(text + used, bytes - used, "%s%02x", dash ? "-" : "", (unsigned char)uuid->bytes[i]);
    }
}

void device_look(int local_rank, struct device *device)
{
    cudaError_t status;
    struct cudaDeviceProp properties;
    device->visible = count_visible(&status);
    device->present = count_present();
    device->index = devices_index(local_rank, device->visible);
    if (device->index < 0) {
        explain_none(status, device->why, sizeof device->why);
        return;
    }
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device->index));
    snprintf(device->name, sizeof device->name, "%.79s", properties.name);
    write_uuid(&properties.uuid, device->uuid, sizeof device->uuid);
    CUDA_CHECK(cudaDeviceGetPCIBusId(device->bus, sizeof device->bus, device->index));
}

/* Among those this process sees; -1: it is none of them. */
static int find_device(const char *uuid)
{
    cudaError_t status;
    int count = count_visible(&status);
    for (int i = 0; i < count; i++) {
        struct cudaDeviceProp properties;
        char text[sizeof((struct device *)0)->uuid];
        CUDA_CHECK(cudaGetDeviceProperties(&properties, i));
        write_uuid(&properties.uuid, text, sizeof text);
        if (strcmp(text, uuid) == 0)
            return i;
    }
    return -1;
}

bool device_sees(const struct device *all, int count, int rank)
{
    for (int i = 0; i < count; i++)
        if (strcmp(all[i].host, all[rank].host) == 0 && find_device(all[i].uuid) < 0)
            return false;
    return true;
}

/* Whether kernels on GPU `from` reach the memory of `to`, also to add to it, as over NVLink. */
static bool has_way(int from, int to)
{
    int access = 0, atomics = 0;
    CUDA_CHECK(cudaDeviceGetP2PAttribute(&access, cudaDevP2PAttrAccessSupported, from, to));
    CUDA_CHECK(cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to));
    return access && atomics;
}

bool device_reaches(const struct device *all, int count, int rank, char *why, size_t why_bytes)
{
    const char *hides = getenv("SLURM_JOB_ID") == NULL
                            ? "CUDA_VISIBLE_DEVICES, or a container"
                            : "CUDA_VISIBLE_DEVICES, as SLURM binds tasks: --gpus-per-node with --gpu-bind=none";
    for (int i = 0; i < count; i++) {
        int other = find_device(all[i].uuid);
        if (other < 0)
            snprintf(why, why_bytes, "rank %d does not see the GPU of rank %d (%s): let it see all of the host's", rank,
                     i, hides);
        else if (i != rank && !has_way(all[rank].index, other))
            snprintf(why, why_bytes, "the GPU of rank %d does not reach the memory of rank %d's, as over NVLink", rank,
                     i);
        else
            continue;
        return false;
    }
    return true;
}

/* What cudaSetDevice finds as it starts CUDA there. */
static _Noreturn void refuse_taken(int device)
{
    char who[GPU_WHO_BYTES];
    gpu_who(device, who, sizeof who);
    abort_job(
        MPI_COMM_WORLD, EXIT_RUNTIME,
        "%s: another process, or another rank, has it for itself, by its compute mode (nvidia-smi -q -d COMPUTE): "
        "start no more ranks than GPUs, when these are free",
        who);
}

void device_use(int local_rank)
{
    cudaError_t status;
    int device = devices_index(local_rank, count_visible(&status));
    status = cudaSetDevice(device);
    if (status == cudaErrorDevicesUnavailable)
        refuse_taken(device);
    CUDA_CHECK(status);
}

void device_versions(char *text, size_t bytes)
{
    int driver = 0, nccl = 0, blas[3] = {0};
    size_t cudnn = cudnnGetVersion();
    cudaDriverGetVersion(&driver);
    ncclGetVersion(&nccl);
    for (int i = 0; i < 3; i++)
        cublasGetProperty((libraryPropertyType)i, &blas[i]);
    char of_driver[40] = "no driver";
    if (driver > 0)
        snprintf(of_driver, sizeof of_driver, "the driver's: %d.%d", driver / 1000, driver % 1000 / 10);
    snprintf(text, bytes, "CUDA %d.%d (%s), cuDNN %zu.%zu.%zu, cuBLAS %d.%d.%d, NCCL %d.%d.%d", CUDART_VERSION / 1000,
             CUDART_VERSION % 1000 / 10, of_driver, cudnn / 10000, cudnn / 100 % 100, cudnn % 100, blas[0], blas[1],
             blas[2], nccl / 10000, nccl / 100 % 100, nccl % 100);
}

static const char *file_of(const void *function)
{
    Dl_info found;
    return dladdr(function, &found) != 0 ? found.dli_fname : "?";
}

void device_libraries(const char *paths[GPU_LIBRARIES])
{
    paths[0] = file_of((const void *)cudnnGetVersion);
    paths[1] = file_of((const void *)cublasGetProperty);
    paths[2] = file_of((const void *)ncclGetVersion);
}
