/* The dense half of a training step, forward and backward, in one launch instead of nine, each too
 * small to fill a GPU. A block has SAMPLES samples and all of fc1's weights in shared memory; nothing of a
 * sample leaves the block in between. */
#include "device.cuh"

enum {
    SAMPLES = 2, /* 128 blocks for a batch of 256: about one for each multiprocessor */
    THREADS = 384,
    IN = CONV3_ELEMENTS,
    OUT = FC1_ELEMENTS,
    CLASSES = LENET5_CLASSES,
    PITCH = IN + 4, /* so that 8 rows by 4 columns, and 32 columns of a row, lie in different banks */
    SPLIT = 4,      /* threads to an output of fc1: neighbours */
    PARTS = 3,      /* threads to an input's gradient: far apart */
};

/* A block's shared memory. */
struct alignas(16) memory {
    float weights[OUT][PITCH];
    float x[IN][SAMPLES], y[OUT][SAMPLES], dy[OUT][SAMPLES]; /* conv3, fc1, fc1's gradient */
    float logits[CLASSES][SAMPLES];                          /* and then their gradient */
    float part[PARTS][IN][SAMPLES];
    uint8_t kept[OUT / 4][SAMPLES]; /* of fc1's mask */
};

struct head {
    struct cuda_head at;
    const float *bias3, *weights1, *bias1, *weights2, *bias2; /* of conv3, fc1, fc2 */
    struct layer_mask mask3, mask1;
    uint32_t count;
};

/* A quad of conv3: its bias, ReLU and dropout. */
static __device__ void read_quad(const struct head &head, struct memory &m, uint32_t n, unsigned s,
                                 unsigned q)
{
    float4 v = make_float4(0, 0, 0, 0);
    if (n < head.count) {
        float4 *quad = (float4 *)head.at.conv3 + n * (IN / 4) + q;
        float4 b = ((const float4 *)head.bias3)[q];
        unsigned kept = layer_mask_draw(head.mask3, n, q);
        v = *quad;
        v = make_float4(kept & 1 ? relu(v.x + b.x) * head.mask3.scale : 0,
                        kept & 2 ? relu(v.y + b.y) * head.mask3.scale : 0,
                        kept & 4 ? relu(v.z + b.z) * head.mask3.scale : 0,
                        kept & 8 ? relu(v.w + b.w) * head.mask3.scale : 0);
        *quad = v;
    }
    m.x[4 * q][s] = v.x;
    m.x[4 * q + 1][s] = v.y;
    m.x[4 * q + 2][s] = v.z;
    m.x[4 * q + 3][s] = v.w;
}

static __device__ void read_all(const struct head &head, struct memory &m, uint32_t first)
{
    unsigned t = threadIdx.x,
             fc1 = (SAMPLES * IN / 4 + WARP - 1) / WARP * WARP; /* the first thread for its masks */
    const float4 *weights = (const float4 *)head.weights1;
#pragma unroll
    for (unsigned i = t; i < OUT * IN / 4; i += THREADS)
        *(float4 *)&m.weights[i / (IN / 4)][i % (IN / 4) * 4] = weights[i];
    if (t < SAMPLES * IN / 4)
        read_quad(head, m, first + t / (IN / 4), t / (IN / 4), t % (IN / 4));
    if (t >= fc1 && t - fc1 < SAMPLES * OUT / 4) {
        unsigned s = (t - fc1) / (OUT / 4), q = (t - fc1) % (OUT / 4);
        m.kept[q][s] = (uint8_t)layer_mask_draw(head.mask1, first + s, q);
    }
}

/* Every thread stays, for the sums over neighbours. */
static __device__ void fc1_forward(const struct head &head, struct memory &m, uint32_t first)
{
    unsigned split = threadIdx.x % SPLIT, o = threadIdx.x / SPLIT, row = o < OUT ? o : 0;
    float sums[SAMPLES] = {0};
#pragma unroll 10
    for (unsigned k = split; k < IN; k += SPLIT)
        for (int s = 0; s < SAMPLES; s++)
            sums[s] += m.weights[row][k] * m.x[k][s];
#pragma unroll
    for (unsigned s = 0; s < SAMPLES; s++) {
        sums[s] += __shfl_xor_sync(0xffffffffu, sums[s], 1);
        sums[s] += __shfl_xor_sync(0xffffffffu, sums[s], 2);
        if (split == s && o < OUT) {
            float sum = sums[s] + head.bias1[o];
            float y = m.kept[o / 4][s] >> o % 4 & 1 ? relu(sum) * head.mask1.scale : 0;
            m.y[o][s] = y;
            if (first + s < head.count)
                head.at.fc1[(first + s) * OUT + o] = y;
        }
    }
}

/* A warp a logit. */
static __device__ void fc2_forward(const struct head &head, struct memory &m)
{
    for (unsigned i = threadIdx.x / WARP; i < CLASSES * SAMPLES; i += THREADS / WARP) {
        unsigned k = i / SAMPLES, s = i % SAMPLES;
        float sum = 0;
        for (unsigned o = threadIdx.x % WARP; o < OUT; o += WARP)
            sum += head.weights2[k * OUT + o] * m.y[o][s];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0)
            m.logits[k][s] = sum + head.bias2[k];
    }
}

/* A warp a sample, a lane a class. A sample past the end has no gradient. */
static __device__ void softmax(const struct head &head, struct memory &m, uint32_t first)
{
    unsigned k = threadIdx.x % WARP, s = threadIdx.x / WARP;
    if (s >= SAMPLES)
        return;
    bool there = first + s < head.count;
    unsigned label = there ? head.at.labels[first + s] : 0;
    float z = k < CLASSES ? m.logits[k][s] : -INFINITY, largest = warp_max(z);
    float numerator = k < CLASSES ? expf(z - largest) : 0, sum = warp_sum(numerator);
    float wanted = warp_sum(k == label ? z : 0);
    if (k < CLASSES) {
        float d = there ? numerator / sum - (k == label) : 0;
        m.logits[k][s] = d;
        if (there)
            head.at.dlogits[(first + s) * CLASSES + k] = d;
    }
    if (k == 0 && there)
        head.at.losses[first + s] = logf(sum) + (largest - wanted);
}

/* y and x are 0 where they were dropped or not above 0 before the ReLU. */
static __device__ void fc1_gradient(const struct head &head, struct memory &m, uint32_t first)
{
    unsigned s = threadIdx.x / OUT, o = threadIdx.x % OUT;
    if (s >= SAMPLES)
        return;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < CLASSES; k++)
        sum += head.weights2[k * OUT + o] * m.logits[k][s];
    float d = m.y[o][s] == 0 ? 0 : sum * head.mask1.scale;
    m.dy[o][s] = d;
    if (first + s < head.count)
        head.at.dfc1[(first + s) * OUT + o] = d;
}

static __device__ void conv3_gradient_parts(struct memory &m)
{
    unsigned part = threadIdx.x / IN, k = threadIdx.x % IN;
    if (part >= PARTS)
        return;
    float sums[SAMPLES] = {0};
#pragma unroll 14
    for (unsigned o = part * (OUT / PARTS); o < (part + 1) * (OUT / PARTS); o++)
        for (int s = 0; s < SAMPLES; s++)
            sums[s] += m.weights[o][k] * m.dy[o][s];
    for (int s = 0; s < SAMPLES; s++)
        m.part[part][k][s] = sums[s];
}

static __device__ void conv3_gradient(const struct head &head, struct memory &m, uint32_t first)
{
    unsigned s = threadIdx.x / IN, k = threadIdx.x % IN;
    if (s >= SAMPLES || first + s >= head.count)
        return;
    float sum = 0;
    for (int part = 0; part < PARTS; part++)
        sum += m.part[part][k][s];
    head.at.dconv3[(first + s) * IN + k] = m.x[k][s] == 0 ? 0 : sum * head.mask3.scale;
}

static __global__ void __launch_bounds__(THREADS) head_kernel(struct head head, int64_t *refused)
{
    __shared__ struct memory m;
    uint32_t first = blockIdx.x * SAMPLES;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *refused = 0;
    read_all(head, m, first);
    __syncthreads();
    fc1_forward(head, m, first);
    __syncthreads();
    fc2_forward(head, m);
    __syncthreads();
    softmax(head, m, first);
    __syncthreads();
    fc1_gradient(head, m, first);
    __syncthreads();
    conv3_gradient_parts(m);
    __syncthreads();
    conv3_gradient(head, m, first);
}

cudaError_t cuda_head(struct cuda_dropout dropout, uint32_t count, struct cuda_head at, int64_t *sums,
                      cudaStream_t stream)
{
    const float *tensors[LENET5_PARAMETERS];
    for (int i = 0; i < LENET5_PARAMETERS; i++)
        tensors[i] = at.weights + lenet5_parameters[i].offset;
    struct layer_mask mask3 = layer_mask_make(DROPOUT_CONV3, dropout);
    struct layer_mask mask1 = layer_mask_make(DROPOUT_FC1, dropout);
    struct head head = {at, tensors[5], tensors[6], tensors[7], tensors[8], tensors[9], mask3, mask1, count};
    unsigned blocks = count > 0 ? blocks_for(count, SAMPLES) : 1;
    return LAUNCH(head_kernel, blocks, THREADS, stream, head, sums + CUDA_SUMS_REFUSED);
}
