#include "cudnn_buffers.h"

#include <stdlib.h>

#include "check.h"
#include "device_memory.h"
#include "memory.h"

enum { ALIGNMENT = 256 };

struct piece {
    void **at;
    size_t bytes;
};

static void carve(struct cudnn_net *net, struct piece *pieces, int count)
{
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += (pieces[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    net->arena = device_allocate(total, "the network");
    CUDA_CHECK(cudaMemsetAsync(net->arena, 0, total, net->stream));
    char *next = net->arena;
    for (int i = 0; i < count; i++) {
        *pieces[i].at = next;
        next += (pieces[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
}

static void upload(struct cudnn_net *net, void *to, const void *from, size_t bytes)
{
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, net->stream));
    CUDA_CHECK(cudaStreamSynchronize(net->stream)); /* the source is about to go */
}

/* Plans are timed on what lies in the buffers, and on zeros a GPU draws so little power that it clocks higher than in
 * training. So the weights become initial ones, and the buffers from the images up to the labels noise in [-1, 1), as
 * pixels are. No result depends on it: every pass writes what it reads later. */
static void fill(struct cudnn_net *net)
{
    enum { NOISE = 1 << 18 };
    float weights[LENET5_WEIGHTS], *noise = memory_allocate(NOISE, sizeof *noise, "noise");
    for (uint32_t i = 0; i < NOISE; i++)
        noise[i] = (float)(i * 2654435761u >> 8) * 0x1p-23f - 1; /* [-1, 1), scattered by the golden ratio */
    for (float *to = net->images, *end = (float *)net->labels; to < end; to += NOISE)
        upload(net, to, noise, (size_t)(end - to < NOISE ? end - to : NOISE) * sizeof *noise);
    lenet5_initialise(1, weights);
    upload(net, net->weights, weights, sizeof weights);
    free(noise);
}

void buffers_open(struct cudnn_net *net)
{
    size_t n = net->most, f = sizeof(float);
    struct piece pieces[] = {
        {(void **)&net->weights, LENET5_WEIGHTS * f},
        {(void **)&net->velocity, LENET5_WEIGHTS * f},
        {(void **)&net->gradient, cuda_splits(net->most) * LENET5_WEIGHTS * f},
        {(void **)&net->sums, CUDA_SUMS * sizeof *net->sums},
        {(void **)&net->images, n * LENET5_PIXELS * f},
        {(void **)&net->pool1_y, n * POOL1_NUMBERS * f},
        {(void **)&net->d_pool1_y, n * POOL1_NUMBERS * f},
        {(void **)&net->conv2_y, n * 16 * 10 * 10 * f},
        {(void **)&net->pool2_y, n * POOL2_NUMBERS * f},
        {(void **)&net->d_pool2_y, n * POOL2_NUMBERS * f},
        {(void **)&net->conv3_y, n * CONV3_ELEMENTS * f},
        {(void **)&net->d_conv3_y, n * CONV3_ELEMENTS * f},
        {(void **)&net->fc1_y, n * FC1_ELEMENTS * f},
        {(void **)&net->d_fc1_y, n * FC1_ELEMENTS * f},
        {(void **)&net->logits, n * LENET5_CLASSES * f},
        {(void **)&net->losses, n * f},
        {(void **)&net->parts1, cuda_parts(net->most) * CUDA_CONV1_WIDTH * f},
        {(void **)&net->parts2, cuda_parts(net->most) * CUDA_CONV2_WIDTH * f},
        {(void **)&net->labels, n},
        {(void **)&net->origin1, n * POOL1_NUMBERS},
        {(void **)&net->origin2, n * POOL2_NUMBERS},
        {&net->workspace, CUDNN_WORKSPACE + CUBLAS_WORKSPACE},
    };
    carve(net, pieces, sizeof pieces / sizeof *pieces);
    fill(net);
}

void buffers_close(struct cudnn_net *net)
{
    CUDA_CHECK(cudaFree(net->arena));
}
