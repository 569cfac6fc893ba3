#include <string.h>

#include "reference.h"

void reference_dense_forward(size_t in, size_t out, const double *x, const double *w, const double *b, double *y)
{
    for (size_t o = 0; o < out; o++) {
        y[o] = b[o];
        for (size_t i = 0; i < in; i++)
            y[o] += w[o * in + i] * x[i];
    }
}

void reference_dense_backward(size_t in, size_t out, const double *x, const double *w, const double *dy, double *dx,
                              double *dw, double *db)
{
    memset(dx, 0, in * sizeof *dx);
    for (size_t o = 0; o < out; o++) {
        db[o] += dy[o];
        for (size_t i = 0; i < in; i++) {
            dw[o * in + i] += dy[o] * x[i];
            dx[i] += dy[o] * w[o * in + i];
        }
    }
}
