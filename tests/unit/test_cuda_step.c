/* Whole training steps by the CUDA kernels, run on the host (tests/support/shim), with the reference's convolutions
 * and matrix products between them: gradients, masks and state from step to step. */
#include "kernels/cuda/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_host.h"
#include "dataset.h"
#include "exact_sum.h"
#include "guarded.h"
#include "kernels/reference/reference.h"
#include "philox.h"

enum { RECORDS = 9, BATCH = 6, FIRST = 1, MOST = BATCH - FIRST, SEED = 3 };
enum { CONV1_W, CONV1_B, CONV2_W, CONV2_B, CONV3_W, CONV3_B, FC1_W, FC1_B, FC2_W, FC2_B };

static const struct reference_conv conv2 = {6, 14, 16}, conv3 = {16, 5, 120};

/* Everything in memory that the device sees. */
struct replica {
    uint8_t *records, *labels, *origin1, *origin2;
    uint32_t *order;
    struct cuda_step *step;
    float *weights, *velocity, *gradient;
    int64_t *sums;
    float *images, *pool1, *conv2, *pool2, *conv3, *fc1, *logits, *losses;
    float *dlogits, *dfc1, *dconv3, *dpool2, *dpool1, *parts1, *parts2;
};

/* ----- the parts that cuDNN and cuBLAS do ---------------------------------------------------------- */

static void widen(size_t count, const float *x, double *wide)
{
    for (size_t i = 0; i < count; i++)
        wide[i] = x[i];
}

static void narrow(size_t count, const double *wide, float *x)
{
    for (size_t i = 0; i < count; i++)
        x[i] = (float)wide[i];
}

static double zeros[LENET5_WEIGHTS];

/* y = x * w for `count` samples, without the bias. */
static void convolve(struct reference_conv shape, uint32_t count, const float *x, const float *weights, int w, float *y)
{
    size_t in = shape.in_channels * shape.side * shape.side;
    size_t out = shape.out_channels * (shape.side - 4) * (shape.side - 4);
    static double wide_x[6 * 14 * 14], wide_w[48000], wide_y[16 * 10 * 10];
    widen(lenet5_parameters[w].count, weights + lenet5_parameters[w].offset, wide_w);
    for (uint32_t n = 0; n < count; n++) {
        widen(in, x + n * in, wide_x);
        reference_conv_forward(shape, wide_x, wide_w, zeros, wide_y);
        narrow(out, wide_y, y + n * out);
    }
}

/* The gradient of x from that of y. */
static void convolve_back(struct reference_conv shape, uint32_t count, const float *weights, int w, const float *dy,
                          float *dx)
{
    size_t in = shape.in_channels * shape.side * shape.side;
    size_t out = shape.out_channels * (shape.side - 4) * (shape.side - 4);
    static double wide_w[48000], wide_dy[120], wide_dx[16 * 5 * 5], dw[48000], db[120];
    widen(lenet5_parameters[w].count, weights + lenet5_parameters[w].offset, wide_w);
    for (uint32_t n = 0; n < count; n++) {
        widen(out, dy + n * out, wide_dy);
        reference_conv_backward(shape, zeros, wide_w, wide_dy, wide_dx, dw, db);
        narrow(in, wide_dx, dx + n * in);
    }
}

static void multiply(size_t in, size_t out, uint32_t count, const float *x, const float *weights, int w, float *y)
{
    static double wide_x[120], wide_w[10080], wide_y[84];
    widen(in * out, weights + lenet5_parameters[w].offset, wide_w);
    for (uint32_t n = 0; n < count; n++) {
        widen(in, x + n * in, wide_x);
        reference_dense_forward(in, out, wide_x, wide_w, zeros, wide_y);
        narrow(out, wide_y, y + n * out);
    }
}

static void multiply_back(size_t in, size_t out, uint32_t count, const float *weights, int w, const float *dy,
                          float *dx)
{
    static double wide_w[10080], wide_dy[84], wide_dx[120], dw[10080], db[84];
    widen(in * out, weights + lenet5_parameters[w].offset, wide_w);
    for (uint32_t n = 0; n < count; n++) {
        widen(out, dy + n * out, wide_dy);
        reference_dense_backward(in, out, zeros, wide_w, wide_dy, wide_dx, dw, db);
        narrow(in, wide_dx, dx + n * in);
    }
}

/* ----- a step -------------------------------------------------------------------------------------- */

static const float *bias_of(const struct replica *r, int parameter)
{
    return r->weights + lenet5_parameters[parameter].offset;
}

/* To conv3 without its bias. */
static void forward(struct replica *r, struct cuda_dropout dropout, uint32_t count)
{
    struct cuda_input input = {r->records, r->order, r->step, FIRST};
    RUN(cuda_conv1_forward(input, dropout, count, r->weights, r->images, r->labels, r->pool1, r->origin1, NULL));
    convolve(conv2, count, r->pool1, r->weights, CONV2_W, r->conv2);
    RUN(cuda_pool_forward(dropout, count, r->conv2, bias_of(r, CONV2_B), r->pool2, r->origin2, NULL));
    convolve(conv3, count, r->pool2, r->weights, CONV3_W, r->conv3);
}

/* To the gradient before conv3's bias, one kernel at a time. */
static void head_in_parts(struct replica *r, struct cuda_dropout dropout, uint32_t count)
{
    const float *w = r->weights;
    RUN(cuda_activation_forward(DROPOUT_CONV3, dropout, count, bias_of(r, CONV3_B), r->conv3, NULL));
    multiply(120, 84, count, r->conv3, w, FC1_W, r->fc1);
    RUN(cuda_activation_forward(DROPOUT_FC1, dropout, count, bias_of(r, FC1_B), r->fc1, NULL));
    multiply(84, 10, count, r->fc1, w, FC2_W, r->logits);
    RUN(cuda_loss(count, r->logits, bias_of(r, FC2_B), r->labels, r->losses, r->dlogits, r->sums, NULL));
    multiply_back(84, 10, count, w, FC2_W, r->dlogits, r->dfc1);
    RUN(cuda_activation_backward(DROPOUT_FC1, dropout.masks, count, r->fc1, r->dfc1, NULL));
    multiply_back(120, 84, count, w, FC1_W, r->dfc1, r->dconv3);
    RUN(cuda_activation_backward(DROPOUT_CONV3, dropout.masks, count, r->conv3, r->dconv3, NULL));
}

/* The same in one. */
static void head_at_once(struct replica *r, struct cuda_dropout dropout, uint32_t count)
{
    struct cuda_head head = {r->weights, r->labels, r->conv3, r->fc1, r->losses, r->dlogits, r->dfc1, r->dconv3};
    RUN(cuda_head(dropout, count, head, r->sums, NULL));
}

/* From the gradient before conv3's bias. */
static void backward(struct replica *r, const struct masks *masks, uint32_t count)
{
    const float *w = r->weights;
    struct cuda_dense dense = {r->pool2, r->conv3, r->fc1, r->dconv3, r->dfc1, r->dlogits};
    RUN(cuda_dense_weight_gradient(dense, count, r->gradient, NULL));
    convolve_back(conv3, count, w, CONV3_W, r->dconv3, r->dpool2);
    RUN(cuda_conv_weight_gradient(DROPOUT_CONV2, masks, count, r->pool1, r->dpool2, r->origin2, r->parts2, NULL));
    RUN(cuda_conv2_input_gradient(masks, count, w, r->dpool2, r->origin2, r->dpool1, NULL));
    RUN(cuda_conv_weight_gradient(DROPOUT_CONV1, masks, count, r->images, r->dpool1, r->origin1, r->parts1, NULL));
    struct cuda_rows rows = {r->parts1, r->parts2, r->dconv3, r->dfc1, r->dlogits, r->losses};
    RUN(cuda_finish_gradient(rows, count, r->gradient, NULL, r->sums, NULL));
}

/* What the reference says of the batch at `position`. Returns the loss. */
static double reference(const struct replica *r, const struct masks *masks, uint64_t step, size_t position,
                        uint32_t count, double *gradient)
{
    static double weights[LENET5_WEIGHTS];
    struct sample_mask drawn[MOST];
    const uint8_t *records[MOST];
    widen(LENET5_WEIGHTS, r->weights, weights);
    masks_draw(masks, step, FIRST, count, drawn);
    for (uint32_t n = 0; n < count; n++) {
        records[n] = r->records + r->order[position + FIRST + n] * RECORD_BYTES;
        assert_true(reference_margin(weights, masks, records[n], &drawn[n]) > 1e-6); /* no decision is close */
    }
    memset(gradient, 0, LENET5_WEIGHTS * sizeof *gradient);
    return reference_gradient(weights, masks, count, records, drawn, gradient);
}

static void check_step(struct replica *r, const struct masks *masks, uint64_t step, size_t position, uint32_t batch,
                       void (*head)(struct replica *, struct cuda_dropout, uint32_t))
{
    static double gradient[LENET5_WEIGHTS];
    uint32_t count = batch - FIRST;
    double loss = reference(r, masks, step, position, count, gradient);
    int64_t before = r->step->loss;
    struct cuda_dropout dropout = {masks, r->step, FIRST};
    forward(r, dropout, count);
    head(r, dropout, count);
    backward(r, masks, count);
    assert_true(fabs((double)r->sums[CUDA_SUMS_LOSS] * EXACT_UNIT - loss) <= 1e-6 * loss);
    for (size_t i = 0; i < LENET5_WEIGHTS; i++) {
        double got = (double)r->sums[i] * EXACT_UNIT;
        if (!(fabs(got - gradient[i]) <= 2e-6 * (1 + fabs(gradient[i]))))
            fail_msg("step %d: gradient[%zu] is %.9g, not %.9g", (int)step, i, got, gradient[i]);
    }
    RUN(cuda_sgd(0.9f, batch, r->sums, r->velocity, r->weights, r->step, NULL));
    assert_true(r->step->step == step + 1 && r->step->position == position + batch);
    assert_true(r->step->loss == before + r->sums[CUDA_SUMS_LOSS]);
}

/* ----- the replica --------------------------------------------------------------------------------- */

static void make(float **buffer, size_t each)
{
    *buffer = guarded_floats(MOST * each);
}

static void drop(float **buffer, size_t each)
{
    (void)each;
    guarded_free(*buffer);
}

/* The activations and their gradients, with their floats a sample. */
static void visit_buffers(struct replica *r, void (*visit)(float **buffer, size_t each))
{
    struct {
        float **buffer;
        size_t each;
    } all[] = {
        {&r->images, LENET5_PIXELS},
        {&r->pool1, 1176},
        {&r->conv2, 1600},
        {&r->pool2, 400},
        {&r->conv3, 120},
        {&r->fc1, 84},
        {&r->logits, 10},
        {&r->losses, 1},
        {&r->dlogits, 10},
        {&r->dfc1, 84},
        {&r->dconv3, 120},
        {&r->dpool2, 400},
        {&r->dpool1, 1176},
        {&r->parts1, CUDA_CONV1_WIDTH},
        {&r->parts2, CUDA_CONV2_WIDTH},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        visit(all[i].buffer, all[i].each);
}

static struct replica *replica_new(void)
{
    static const uint32_t order[RECORDS] = {4, 8, 0, 7, 1, 6, 2, 5, 3};
    static const struct cuda_step step = {.step = 41, .learning_rate = 0.05f};
    struct replica *r = guarded_new(sizeof *r, 0);
    r->records = guarded_new(RECORDS * RECORD_BYTES, 0);
    for (size_t i = 0; i < RECORDS * RECORD_BYTES; i++)
        r->records[i] = (uint8_t)(philox4x32((struct philox_counter){{(uint32_t)i, 0, 0, 0}}, SEED).c[0] %
                                  (i % RECORD_BYTES ? 256 : 10));
    r->labels = guarded_new(MOST, 0);
    r->origin1 = guarded_new(MOST * 1176, 0);
    r->origin2 = guarded_new(MOST * 400, 0);
    r->order = guarded_copy(order, sizeof order);
    r->step = guarded_copy(&step, sizeof step);
    r->weights = guarded_floats(LENET5_WEIGHTS);
    lenet5_initialise(SEED, r->weights);
    r->velocity = guarded_floats(LENET5_WEIGHTS);
    memset(r->velocity, 0, LENET5_WEIGHTS * sizeof(float));
    r->gradient = guarded_floats(LENET5_WEIGHTS);
    r->sums = guarded_new(CUDA_SUMS * sizeof *r->sums, 0);
    visit_buffers(r, make);
    return r;
}

static void replica_free(struct replica *r)
{
    void *all[] = {r->records,  r->labels,  r->origin1,  r->origin2, r->order, r->step,
                   r->velocity, r->weights, r->gradient, r->sums,    r};
    visit_buffers(r, drop);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        guarded_free(all[i]);
}

/* A full batch, then the tail, whose masks are the next step's; of each net in another order of threads. */
static void check_steps(void (*head)(struct replica *, struct cuda_dropout, uint32_t))
{
    for (uint32_t n = 0; n < NETS; n++) {
        struct masks masks = masks_make(SEED, lenet5_nets[n].p_conv, lenet5_nets[n].p_fc);
        struct replica *r = replica_new();
        cuda_host.order = n;
        check_step(r, &masks, 41, 0, BATCH, head);
        check_step(r, &masks, 42, BATCH, RECORDS - BATCH, head);
        replica_free(r);
    }
}

static void steps_with_the_head_in_parts(void **state)
{
    (void)state;
    check_steps(head_in_parts);
}

static void steps_with_the_head_at_once(void **state)
{
    (void)state;
    check_steps(head_at_once);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_with_the_head_in_parts),
        cmocka_unit_test(steps_with_the_head_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
