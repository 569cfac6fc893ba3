/* A batch's images and labels, from the bytes of the data set that lies on the device. */
#include "device.cuh"

enum { THREADS = 256, RECORD = 1 + LENET5_PIXELS, QUADS = LENET5_PIXELS / 4 };

/* pixel / 127.5 - 1, as the CPU's kernels compute it. */
static __device__ __forceinline__ float normalise(uint8_t pixel)
{
    return (float)(2 * pixel - 255) * (1 / 255.0f);
}

/* A block a sample, four pixels a thread at a time: records begin anywhere, so bytes are read one by one. */
static __global__ void __launch_bounds__(THREADS)
    gather_kernel(const uint8_t *records, const uint32_t *order, const struct cuda_step *step, uint32_t first,
                  float *images, uint8_t *labels)
{
    uint32_t n = blockIdx.x, place = first + n + (step ? step->position : 0);
    const uint8_t *record = records + (size_t)(order ? order[place] : place) * RECORD;
    float4 *image = (float4 *)images + (size_t)n * QUADS;
    if (threadIdx.x == 0)
        labels[n] = record[0];
#pragma unroll
    for (unsigned i = threadIdx.x; i < QUADS; i += THREADS) {
        const uint8_t *pixels = record + 1 + 4 * i;
        image[i] = make_float4(normalise(pixels[0]), normalise(pixels[1]), normalise(pixels[2]),
                               normalise(pixels[3]));
    }
}

cudaError_t cuda_gather(const uint8_t *records, const uint32_t *order, const struct cuda_step *step,
                        uint32_t first, uint32_t count, float *images, uint8_t *labels, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    return LAUNCH(gather_kernel, count, THREADS, stream, records, order, step, first, images, labels);
}
