/* nccl.h - sums of device memory by NCCL: the transport behind transport_nccl, inside the GPU part. */
#ifndef DTRAIN_COMM_NCCL_H
#define DTRAIN_COMM_NCCL_H

#include "transport.h"

extern const struct transport nccl_transport;

#endif
