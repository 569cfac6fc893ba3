/* median.h - the median of measurements. */
#ifndef DTRAIN_MEDIAN_H
#define DTRAIN_MEDIAN_H

#include <stdlib.h>

static inline int median_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
static inline double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, median_compare);
    return values[count / 2];
}

#endif
