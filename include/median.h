/* median.h - median and quantiles of many measurements. They sort the array they are given. */
#ifndef DTRAIN_MEDIAN_H
#define DTRAIN_MEDIAN_H

#include <stddef.h>
#include <stdlib.h>

static inline int median_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest value that a share of the values, 0 to 1, does not exceed. */
static inline double quantile(double *values, size_t count, double share)
{
    qsort(values, count, sizeof *values, median_compare);
    size_t place = (size_t)(share * (double)count);
    return values[place < count ? place : count - 1];
}

static inline double median(double *values, size_t count)
{
    return quantile(values, count, 0.5);
}

#endif
