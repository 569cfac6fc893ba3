/* part.c - what the program finds in the shared object (gpu.h). */
#include "gpu.h"

#include "cudnn.h"
#include "device.h"
#include "dropout_time.h"
#include "fused.h"
#include "nccl.h"

extern const struct gpu_part dtrain_gpu_part;

__attribute__((visibility("default"))) const struct gpu_part dtrain_gpu_part = {
    .revision = DTRAIN_REVISION,
    .cudnn = &engine_cudnn,
    .fused = &engine_fused,
    .nccl = &transport_nccl,
    .cudnn_profile = cudnn_profile,
    .reaches = fused_peers_reach,
    .sees = device_sees,
    .can_map = fused_peers_can_map,
    .fused_profile = fused_profile,
    .time_dropout = dropout_time,
    .look = device_look,
    .versions = device_versions,
    .libraries = device_libraries,
};
