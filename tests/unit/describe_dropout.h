/* describe_dropout.h - what the tests of dropout share. */
#ifndef DTRAIN_TEST_DESCRIBE_DROPOUT_H
#define DTRAIN_TEST_DESCRIBE_DROPOUT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "dropout.h"

/* A dropout that can be made. */
static inline struct dropout describe(double p, bool feature, bool alpha, size_t dimensions, const size_t *shape)
{
    struct dropout dropout;
    struct error error = {0};
    if (!dropout_make(p, feature, alpha, dimensions, shape, &dropout, &error))
        fail_msg("%s", error.text);
    return dropout;
}

#endif
