#include "dropout.h"

#include <math.h>
#include <string.h>

#include "philox.h"

enum { CHUNK = 4096 }; /* elements whose mask is held at a time; a multiple of Philox's four */

/* ----- the descriptor -------------------------------------------------------------------------------- */

bool dropout_make(double p, bool feature, bool alpha, size_t dimensions, const size_t *shape, struct dropout *dropout,
                  struct error *error)
{
    if (!(p >= 0 && p <= 1))
        return error_set(error, EXIT_USAGE, "dropout: p is %g, but a probability is from 0 to 1", p);
    if (dropout == NULL || (shape == NULL && dimensions > 0))
        return error_set(error, EXIT_USAGE, "dropout: the %s is a null pointer, but must be given",
                         dropout == NULL ? "descriptor" : "shape");
    if (feature && dimensions < 2)
        return error_set(error, EXIT_USAGE,
                         "dropout: feature dropout needs at least 2 dimensions (samples, channels, ...), "
                         "but the input has %zu",
                         dimensions);

    size_t sizes[3] = {1, 1, 1}, count = sizeof(float); /* samples, channels, inner */
    bool overflow = false;
    for (size_t d = 0; d < dimensions; d++) {
        size_t place = dimensions == 1 ? 1 : d < 2 ? d : 2;
        overflow |= __builtin_mul_overflow(sizes[place], shape[d], &sizes[place]);
        overflow |= __builtin_mul_overflow(count, shape[d], &count);
    }
    if (overflow)
        return error_set(error, EXIT_USAGE, "dropout: the shape has more numbers than memory can hold");
    size_t elements = feature ? sizes[1] : sizes[1] * sizes[2];
    if (elements > (size_t)4 << 32)
        return error_set(error, EXIT_USAGE,
                         "dropout: a sample of %zu elements, but a random stream has 2^34: give the tensor a "
                         "larger first dimension",
                         elements);
    *dropout = (struct dropout){p, feature, alpha, sizes[0], sizes[1], sizes[2]};
    return true;
}

static size_t sample_elements(const struct dropout *dropout)
{
    return dropout->feature ? dropout->channels : dropout->channels * dropout->inner;
}

size_t dropout_elements(const struct dropout *dropout)
{
    return dropout->samples * sample_elements(dropout);
}

struct dropout_numbers dropout_numbers(const struct dropout *dropout)
{
    static const double s = 1.7580993408473766; /* SELU(-infinity), negated: its scale * its alpha */
    double p = dropout->p;
    if (p == 1)
        return (struct dropout_numbers){.threshold = philox_threshold(1)};
    if (!dropout->alpha) /* x + -0 is x for both zeros */
        return (struct dropout_numbers){philox_threshold(p), (float)(1 / (1 - p)), -0.0f, 0.0f};
    double a = 1 / sqrt((1 - p) * (1 + p * s * s));
    return (struct dropout_numbers){philox_threshold(p), (float)a, (float)(a * s * p), (float)(a * s * (p - 1))};
}

/* ----- masks ----------------------------------------------------------------------------------------- */

/* keep[count] of elements first.. of the sample at stream.position; first is a multiple of four. Whole
 * blocks apart from the last one's rest: compilers vectorise a loop without conditions. */
static void draw(uint64_t threshold, struct dropout_stream stream, size_t first, size_t count, uint8_t *keep)
{
    struct philox_counter at = philox_counter(PHILOX_DROPOUT, stream.layer, stream.step, stream.position,
                                              (uint32_t)(first / 4));
    size_t e = 0;
    for (; e + 4 <= count; e += 4, at.c[0]++) {
        struct philox_counter r = philox4x32(at, stream.seed);
        for (int i = 0; i < 4; i++)
            keep[e + (size_t)i] = r.c[i] >= threshold;
    }
    if (e < count) {
        struct philox_counter r = philox4x32(at, stream.seed);
        for (int i = 0; e < count; e++, i++)
            keep[e] = r.c[i] >= threshold;
    }
}

void dropout_draw(const struct dropout *dropout, struct dropout_stream stream, uint8_t *keep)
{
    uint64_t threshold = dropout_numbers(dropout).threshold;
    size_t elements = sample_elements(dropout);
    for (size_t n = 0; n < dropout->samples; n++, stream.position++)
        draw(threshold, stream, 0, elements, keep + n * elements);
}

/* ----- arithmetic ------------------------------------------------------------------------------------ */

/* Up to CHUNK elements of one number. Results go through memory of our own: y may be x, and compilers do
 * not vectorise what they cannot prove to be apart. */
static void apply_elements(const struct dropout_numbers *f, const uint8_t *keep, size_t count, const float *x, float *y)
{
    float scale = f->scale, shift = f->shift, dropped = f->dropped, results[CHUNK];
    for (size_t i = 0; i < count; i++)
        results[i] = keep[i] ? scale * x[i] + shift : dropped;
    memcpy(y, results, count * sizeof *y);
}

/* Up to CHUNK channels of `each` numbers. */
static void apply_channels(const struct dropout_numbers *f, const uint8_t *keep, size_t count, size_t each,
                           const float *x, float *y)
{
    float scale = f->scale, shift = f->shift, dropped = f->dropped;
    for (size_t e = 0; e < count; e++, x += each, y += each)
        for (size_t i = 0; i < each; i++)
            y[i] = keep[e] ? scale * x[i] + shift : dropped;
}

/* The whole tensor, a chunk at a time: under the mask `keep`, or where that is NULL one drawn as it goes. */
static void apply(const struct dropout *dropout, const struct dropout_numbers *f, const uint8_t *keep,
                  struct dropout_stream stream, const float *x, float *y)
{
    uint8_t drawn[CHUNK];
    size_t elements = sample_elements(dropout), each = dropout->feature ? dropout->inner : 1;
    for (size_t n = 0; n < dropout->samples; n++, stream.position++)
        for (size_t first = 0; first < elements; first += CHUNK) {
            size_t count = elements - first < CHUNK ? elements - first : CHUNK;
            size_t at = n * elements + first;
            if (keep == NULL)
                draw(f->threshold, stream, first, count, drawn);
            const uint8_t *mask = keep != NULL ? keep + at : drawn;
            if (each == 1)
                apply_elements(f, mask, count, x + at, y + at);
            else
                apply_channels(f, mask, count, each, x + at * each, y + at * each);
        }
}

struct dropout_numbers dropout_backward_numbers(const struct dropout *dropout)
{
    struct dropout_numbers f = dropout_numbers(dropout);
    return (struct dropout_numbers){f.threshold, f.scale, -0.0f, 0.0f};
}

void dropout_forward_masked(const struct dropout *dropout, const uint8_t *keep, const float *x, float *y)
{
    struct dropout_numbers f = dropout_numbers(dropout);
    apply(dropout, &f, keep, (struct dropout_stream){0}, x, y);
}

void dropout_backward_masked(const struct dropout *dropout, const uint8_t *keep, const float *dy, float *dx)
{
    struct dropout_numbers f = dropout_backward_numbers(dropout);
    apply(dropout, &f, keep, (struct dropout_stream){0}, dy, dx);
}

/* ----- forward and backward -------------------------------------------------------------------------- */

bool dropout_check(const struct dropout *dropout, struct dropout_stream stream, const void *from, const void *to,
                   size_t *count, struct error *error)
{
    *count = dropout != NULL ? dropout->samples * dropout->channels * dropout->inner : 1;
    if (*count == 0)
        return true;
    if (dropout == NULL || from == NULL || to == NULL)
        return error_set(error, EXIT_USAGE, "dropout: the %s is a null pointer, but must be given",
                         dropout == NULL ? "descriptor"
                         : from == NULL  ? "input"
                                         : "output");
    if (stream.step >> 48 || stream.layer > 255 || dropout->samples - 1 > UINT32_MAX - stream.position)
        return error_set(error, EXIT_USAGE,
                         "dropout: step %llu, layer %u or positions %u + %zu samples are out of range: steps "
                         "are below 2^48, layers below 256, positions below 2^32",
                         (unsigned long long)stream.step, stream.layer, stream.position, dropout->samples);
    return true;
}

static bool run(const struct dropout *dropout, bool backward, struct dropout_stream stream, const float *from,
                float *to, struct error *error)
{
    size_t count;
    if (!dropout_check(dropout, stream, from, to, &count, error))
        return false;
    if (count > 0 && dropout->p == 0) {
        memmove(to, from, count * sizeof *to);
    } else if (count > 0) {
        struct dropout_numbers f = backward ? dropout_backward_numbers(dropout) : dropout_numbers(dropout);
        apply(dropout, &f, NULL, stream, from, to);
    }
    return true;
}

bool dropout_forward(const struct dropout *dropout, struct dropout_stream stream, const float *x, float *y,
                     struct error *error)
{
    return run(dropout, false, stream, x, y, error);
}

bool dropout_backward(const struct dropout *dropout, struct dropout_stream stream, const float *dy, float *dx,
                      struct error *error)
{
    return run(dropout, true, stream, dy, dx, error);
}
