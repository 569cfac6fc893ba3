#include <string.h>

#include "reference.h"

enum { K = 5 };

void reference_conv_forward(struct reference_conv shape, const double *x, const double *w, const double *b, double *y)
{
    size_t side = shape.side, out = side - K + 1;
    for (size_t k = 0; k < shape.out_channels; k++)
        for (size_t i = 0; i < out; i++)
            for (size_t j = 0; j < out; j++) {
                double sum = b[k];
                for (size_t c = 0; c < shape.in_channels; c++)
                    for (size_t u = 0; u < K; u++)
                        for (size_t v = 0; v < K; v++)
                            sum += w[((k * shape.in_channels + c) * K + u) * K + v] *
                                   x[(c * side + i + u) * side + j + v];
                y[(k * out + i) * out + j] = sum;
            }
}

void reference_conv_backward(struct reference_conv shape, const double *x, const double *w, const double *dy,
                             double *dx, double *dw, double *db)
{
    size_t side = shape.side, out = side - K + 1;
    memset(dx, 0, shape.in_channels * side * side * sizeof *dx);
    for (size_t k = 0; k < shape.out_channels; k++)
        for (size_t i = 0; i < out; i++)
            for (size_t j = 0; j < out; j++) {
                double d = dy[(k * out + i) * out + j];
                db[k] += d;
                for (size_t c = 0; c < shape.in_channels; c++)
                    for (size_t u = 0; u < K; u++)
                        for (size_t v = 0; v < K; v++) {
                            size_t tap = ((k * shape.in_channels + c) * K + u) * K + v;
                            size_t pixel = (c * side + i + u) * side + j + v;
                            dw[tap] += d * x[pixel];
                            dx[pixel] += d * w[tap];
                        }
            }
}
