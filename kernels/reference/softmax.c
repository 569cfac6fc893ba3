#include <math.h>

#include "reference.h"

double reference_softmax_loss(size_t classes, const double *z, size_t label, double *dz)
{
    double largest = z[0], sum = 0; /* subtracted, so that exp cannot overflow */
    for (size_t k = 1; k < classes; k++)
        largest = z[k] > largest ? z[k] : largest;
    for (size_t k = 0; k < classes; k++)
        sum += exp(z[k] - largest);
    for (size_t k = 0; k < classes; k++)
        dz[k] = exp(z[k] - largest) / sum - (k == label);
    // cppcheck-suppress invalidFunctionArg ; there is a class, so the sum is 1 or more
    return log(sum) + largest - z[label];
}
