/* The dropout family's CUDA kernels on tensors far larger than memory: some blocks of each launch, on the
 * host (tests/support/shim), in address space of which only what they touch is there. */
#include "dropout_cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "cuda_host.h"
#include "philox.h"

static const struct dropout_stream some_stream = {.seed = 9, .step = 7, .layer = 1, .position = 5};

static struct dropout describe(bool feature, size_t dimensions, const size_t *shape)
{
    struct dropout dropout;
    struct error error = {0};
    if (!dropout_make(0.5, feature, false, dimensions, shape, &dropout, &error))
        fail_msg("%s", error.text);
    return dropout;
}

/* Address space without memory behind it, but for what is touched. */
static float *reserve(size_t count)
{
    void *space = mmap(NULL, count * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    assert_true(space != MAP_FAILED);
    return space;
}

static bool kept(const struct dropout *dropout, size_t i)
{
    size_t each = dropout->feature ? dropout->inner : 1, sample = dropout->channels * dropout->inner;
    size_t element = i % sample / each;
    struct philox_counter at = philox_counter(PHILOX_DROPOUT, some_stream.layer, some_stream.step,
                                              some_stream.position + (uint32_t)(i / sample), (uint32_t)(element / 4));
    return philox4x32(at, some_stream.seed).c[element % 4] >= dropout_numbers(dropout).threshold;
}

/* Runs blocks [first, last) of every launch in place on numbers 1, of which only [begin, end) are in memory.
 */
static void check_part(const struct dropout *dropout, uint32_t first, uint32_t last, size_t begin, size_t end)
{
    size_t count = dropout->samples * dropout->channels * dropout->inner;
    float *x = reserve(count), scale = dropout_numbers(dropout).scale;
    for (size_t i = begin; i < end; i++)
        x[i] = 1;
    cuda_host = (struct cuda_host){.first_block = first, .last_block = last};
    struct error error = {0};
    if (!dropout_cuda_forward(dropout, some_stream, x, x, NULL, &error))
        fail_msg("%s", error.text);
    for (size_t i = begin; i < end; i++)
        assert_true(x[i] == (kept(dropout, i) ? scale : 0));
    munmap(x, count * sizeof *x);
}

/* A block of elements_kernel is 4,096 numbers. */
static void the_last_of_more_than_2_to_the_32(void **state)
{
    (void)state;
    const size_t count = ((size_t)1 << 33) + 5 * 4096 + 7;
    struct dropout line = describe(false, 1, &count);
    check_part(&line, (uint32_t)(count / 4096 - 1), (uint32_t)(count / 4096 + 1), count / 4096 * 4096 - 4096, count);

    struct dropout rows = describe(false, 2, (size_t[]){3, (size_t)1 << 31});
    check_part(&rows, (3u << 19) - 2, 3u << 19, ((size_t)3 << 31) - 8192, (size_t)3 << 31);

    /* 16 channels of 2^16 numbers: a team's part of a run is 512. */
    struct dropout planes = describe(true, 3, (size_t[]){8192, 16, 1 << 16});
    check_part(&planes, (1u << 21) - 256, 1u << 21, ((size_t)1 << 33) - (1 << 20), (size_t)1 << 33);
}

static void channels_of_2_to_the_31(void **state)
{
    (void)state;
    struct dropout dropout = describe(true, 3, (size_t[]){1, 4, (size_t)1 << 31});
    for (uint32_t channel = 0; channel < 4; channel++) {
        uint32_t first = channel << 19;
        size_t begin = (size_t)channel << 31;
        check_part(&dropout, first, first + 2, begin, begin + 8192);
    }
}

/* Far into samples of 2,427 quads, where dividing by an inverse a little too small would first be seen. */
static void quads_find_their_sample(void **state)
{
    (void)state;
    struct dropout dropout = describe(false, 2, (size_t[]){40000, 9708});
    uint32_t blocks = (uint32_t)(40000u * 9708u / 4096);
    check_part(&dropout, blocks - 8, blocks, (size_t)(blocks - 8) * 4096, (size_t)blocks * 4096);
}

/* A launch numbers at most 2^32 quads: five samples of 2^31 quads take three. */
static void every_launch_begins_where_the_last_ended(void **state)
{
    (void)state;
    struct dropout dropout = describe(false, 2, (size_t[]){5, (size_t)1 << 33});
    for (size_t sample = 0; sample < 5; sample += 2)
        check_part(&dropout, 0, 1, sample << 33, (sample << 33) + 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_of_more_than_2_to_the_32),
        cmocka_unit_test(channels_of_2_to_the_31),
        cmocka_unit_test(quads_find_their_sample),
        cmocka_unit_test(every_launch_begins_where_the_last_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
