/* The five layers in a row; see include/lenet5.h for the shapes. */
#include <math.h>

#include "reference.h"

static const struct reference_conv conv1 = {3, 32, 6}, conv2 = {6, 14, 16}, conv3 = {16, 5, 120};

enum { CONV1_W, CONV1_B, CONV2_W, CONV2_B, CONV3_W, CONV3_B, FC1_W, FC1_B, FC2_W, FC2_B };

/* One sample on its way: activations after ReLU and dropout, and what the pools remember. */
struct sample {
    double image[3 * 32 * 32];
    double conv1[6 * 28 * 28], pool1[6 * 14 * 14];
    double conv2[16 * 10 * 10], pool2[16 * 5 * 5];
    double conv3[120], fc1[84], logits[10];
    size_t from1[6 * 14 * 14], from2[16 * 5 * 5];
    double factor[DROPOUT_LAYERS][120]; /* of each channel or unit: 0 or 1/(1-p) */
    double margin;                      /* see reference_margin */
};

static const double *weight(const double *all, int parameter)
{
    return all + lenet5_parameters[parameter].offset;
}

static double *gradient_of(double *all, int parameter)
{
    return all + lenet5_parameters[parameter].offset;
}

/* How close the ReLU of `count` numbers comes to deciding otherwise. */
static void activation_margin(size_t count, const double *x, double *margin)
{
    for (size_t i = 0; i < count; i++)
        *margin = fmin(*margin, fabs(x[i]));
}

/* How close the losers of each pool window come to the winner. Equals do not count: they are equal in any
 * precision, when they come from equal patches or from a closed ReLU. */
static void pool_margin(size_t channels, size_t side, const double *x, const size_t *from, double *margin)
{
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < side; i++)
            for (size_t j = 0; j < side; j++) {
                double winner = x[from[(c * (side / 2) + i / 2) * (side / 2) + j / 2]];
                double behind = winner - x[(c * side + i) * side + j];
                if (behind > 0)
                    *margin = fmin(*margin, behind);
            }
}

static void forward(const double *w, const uint8_t *record, struct sample *s)
{
    s->margin = INFINITY;
    for (size_t i = 0; i < LENET5_PIXELS; i++)
        s->image[i] = record[1 + i] / 127.5 - 1;
    reference_conv_forward(conv1, s->image, weight(w, CONV1_W), weight(w, CONV1_B), s->conv1);
    activation_margin(6 * 28 * 28, s->conv1, &s->margin);
    reference_activation_forward(6, 28 * 28, s->factor[DROPOUT_CONV1], s->conv1);
    reference_pool_forward(6, 28, s->conv1, s->pool1, s->from1);
    pool_margin(6, 28, s->conv1, s->from1, &s->margin);
    reference_conv_forward(conv2, s->pool1, weight(w, CONV2_W), weight(w, CONV2_B), s->conv2);
    activation_margin(16 * 10 * 10, s->conv2, &s->margin);
    reference_activation_forward(16, 10 * 10, s->factor[DROPOUT_CONV2], s->conv2);
    reference_pool_forward(16, 10, s->conv2, s->pool2, s->from2);
    pool_margin(16, 10, s->conv2, s->from2, &s->margin);
    reference_conv_forward(conv3, s->pool2, weight(w, CONV3_W), weight(w, CONV3_B), s->conv3);
    activation_margin(120, s->conv3, &s->margin);
    reference_activation_forward(120, 1, s->factor[DROPOUT_CONV3], s->conv3);
    reference_dense_forward(120, 84, s->conv3, weight(w, FC1_W), weight(w, FC1_B), s->fc1);
    activation_margin(84, s->fc1, &s->margin);
    reference_activation_forward(84, 1, s->factor[DROPOUT_FC1], s->fc1);
    reference_dense_forward(84, 10, s->fc1, weight(w, FC2_W), weight(w, FC2_B), s->logits);
}

static void backward(const double *w, const struct sample *s, const double *dlogits, double *g)
{
    double dfc1[84], dconv3[120], dpool2[16 * 5 * 5], dconv2[16 * 10 * 10], dpool1[6 * 14 * 14], dconv1[6 * 28 * 28],
        dimage[3 * 32 * 32];

    reference_dense_backward(84, 10, s->fc1, weight(w, FC2_W), dlogits, dfc1, gradient_of(g, FC2_W),
                             gradient_of(g, FC2_B));
    reference_activation_backward(84, 1, s->factor[DROPOUT_FC1], s->fc1, dfc1);
    reference_dense_backward(120, 84, s->conv3, weight(w, FC1_W), dfc1, dconv3, gradient_of(g, FC1_W),
                             gradient_of(g, FC1_B));
    reference_activation_backward(120, 1, s->factor[DROPOUT_CONV3], s->conv3, dconv3);
    reference_conv_backward(conv3, s->pool2, weight(w, CONV3_W), dconv3, dpool2, gradient_of(g, CONV3_W),
                            gradient_of(g, CONV3_B));
    reference_pool_backward(16, 10, s->from2, dpool2, dconv2);
    reference_activation_backward(16, 10 * 10, s->factor[DROPOUT_CONV2], s->conv2, dconv2);
    reference_conv_backward(conv2, s->pool1, weight(w, CONV2_W), dconv2, dpool1, gradient_of(g, CONV2_W),
                            gradient_of(g, CONV2_B));
    reference_pool_backward(6, 28, s->from1, dpool1, dconv1);
    reference_activation_backward(6, 28 * 28, s->factor[DROPOUT_CONV1], s->conv1, dconv1);
    reference_conv_backward(conv1, s->image, weight(w, CONV1_W), dconv1, dimage, gradient_of(g, CONV1_W),
                            gradient_of(g, CONV1_B));
}

/* mask NULL: predict mode. */
static void set_factors(struct sample *s, const struct masks *masks, const struct sample_mask *mask)
{
    static const unsigned elements[DROPOUT_LAYERS] = {CONV1_ELEMENTS, CONV2_ELEMENTS, CONV3_ELEMENTS, FC1_ELEMENTS};
    for (int layer = 0; layer < DROPOUT_LAYERS; layer++)
        for (unsigned e = 0; e < elements[layer]; e++)
            s->factor[layer][e] = mask == NULL ? 1 : mask_keeps(mask, layer, e) ? (double)masks->scale[layer] : 0;
}

void reference_predict(const double *weights, const uint8_t *record, double logits[LENET5_CLASSES])
{
    struct sample sample;
    set_factors(&sample, NULL, NULL);
    forward(weights, record, &sample);
    for (int k = 0; k < LENET5_CLASSES; k++)
        logits[k] = sample.logits[k];
}

double reference_gradient(const double *weights, const struct masks *masks, size_t count, const uint8_t *const *records,
                          const struct sample_mask *drawn, double *gradient)
{
    double loss = 0;
    for (size_t i = 0; i < count; i++) {
        struct sample sample;
        double dlogits[LENET5_CLASSES];
        set_factors(&sample, masks, &drawn[i]);
        forward(weights, records[i], &sample);
        loss += reference_softmax_loss(LENET5_CLASSES, sample.logits, records[i][0], dlogits);
        if (gradient != NULL)
            backward(weights, &sample, dlogits, gradient);
    }
    return loss;
}

double reference_margin(const double *weights, const struct masks *masks, const uint8_t *record,
                        const struct sample_mask *drawn)
{
    struct sample sample;
    set_factors(&sample, masks, drawn);
    forward(weights, record, &sample);
    return sample.margin;
}
