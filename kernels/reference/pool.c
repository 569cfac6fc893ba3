#include <string.h>

#include "reference.h"

void reference_activation_forward(size_t channels, size_t each, const double *factor, double *y)
{
    for (size_t c = 0; c < channels; c++)
        for (size_t i = c * each; i < (c + 1) * each; i++)
            y[i] = (y[i] > 0 ? y[i] : 0) * factor[c];
}

void reference_activation_backward(size_t channels, size_t each, const double *factor, const double *y, double *dy)
{
    for (size_t c = 0; c < channels; c++)
        for (size_t i = c * each; i < (c + 1) * each; i++)
            dy[i] = y[i] > 0 ? dy[i] * factor[c] : 0;
}

void reference_pool_forward(size_t channels, size_t side, const double *x, double *y, size_t *from)
{
    size_t half = side / 2;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < half; i++)
            for (size_t j = 0; j < half; j++) {
                size_t first = (c * side + 2 * i) * side + 2 * j, best = first;
                for (size_t k = 1; k < 4; k++) {
                    size_t here = first + k / 2 * side + k % 2;
                    if (x[here] > x[best])
                        best = here;
                }
                y[(c * half + i) * half + j] = x[best];
                from[(c * half + i) * half + j] = best;
            }
}

void reference_pool_backward(size_t channels, size_t side, const size_t *from, const double *dy, double *dx)
{
    memset(dx, 0, channels * side * side * sizeof *dx);
    for (size_t i = 0; i < channels * (side / 2) * (side / 2); i++)
        dx[from[i]] += dy[i];
}
