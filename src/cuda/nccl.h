/* nccl.h - sums of device memory by NCCL: the transport behind proxy_nccl, inside the GPU part. */
#ifndef DTRAIN_CUDA_NCCL_H
#define DTRAIN_CUDA_NCCL_H

#include "src/comm/transport.h"

extern const struct transport transport_nccl;

/* NCCL's own of a comm that the transport has opened: for bench/cuda. */
struct ncclComm *nccl_communicator(const struct comm *comm);

#endif
