/* --verify's known answers are the definition's: the first epoch of every lesson, computed anew. The CPU engine
 * computes all of them in tests/program/verify.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sampler.h"
#include "src/verify/cores.h"
#include "src/verify/lesson.h"
#include "src/verify/report.h"

#ifdef __SANITIZE_ADDRESS__ /* ten times as slow: not the lesson of large batches */
enum { DEFINED = LESSONS - 1, MOST_STEPS = 2 };
#else
enum { DEFINED = LESSONS, MOST_STEPS = 100 };
#endif

static void nothing(void *context)
{
    (void)context;
}

static void answers_are_the_definitions(void **test)
{
    (void)test;
    struct lesson_pictures *pictures = malloc(sizeof *pictures);
    struct lesson_state *state = malloc(sizeof *state);
    struct definition_sums *sums = malloc(2 * sizeof *sums);
    lesson_draw(pictures);
    for (int i = 0; i < DEFINED; i++) {
        struct dataset data;
        uint32_t order[sizeof pictures->train / RECORD_BYTES];
        lesson_data(&lessons[i], pictures, &data);
        sampler_shuffle(LESSON_SEED, 0, data.train.count, order);
        lesson_begin(state);
        struct lesson_batch batch = {0};
        for (unsigned step = 0; !batch.ends_epoch && step < MOST_STEPS; step++) {
            batch = lesson_batch(&lessons[i], step);
            lesson_define(&lessons[i], &data, order, &batch, TILE, 2 * TILE, state, sums, nothing, NULL);
            assert_int_equal(sums[1].refused, 0);
            assert_int_equal(lesson_digest(state), known_digests[lesson_offset(i) + step]);
        }
        assert_int_equal(batch.epoch, 0);
    }
    free(sums);
    free(state);
    free(pictures);
}

static void lessons_fill_the_table(void **test)
{
    (void)test;
    assert_int_equal(lesson_offset(LESSONS), LESSON_STEPS);
    for (int i = 0; i < LESSONS; i++) {
        assert_true(lessons[i].pictures <= sizeof((struct lesson_pictures *)0)->train / RECORD_BYTES);
        assert_true(lesson_batch(&lessons[i], lessons[i].steps - 1).epoch > 0); /* more than one order */
    }
}

/* Engines without known answers: equal devices are compared, the most that agree are right. */
static void odd_devices_are_found(void **test)
{
    (void)test;
    static const uint64_t kinds[] = {7, 8, 7, 7, 8, 9};
    enum { RANKS = sizeof kinds / sizeof *kinds, ODD = 2, STEP = 60 + 17 };
    struct testimony *all = calloc(RANKS, sizeof *all);
    for (int i = 0; i < RANKS; i++) {
        all[i].kind = kinds[i];
        for (size_t step = 0; step < LESSON_STEPS; step++)
            all[i].digests[step] = kinds[i] + step;
    }
    report_compare(all, RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(all[i].finding.times, 0);
    memset(&all[ODD].digests[STEP], 0xff, sizeof all->digests - STEP * sizeof *all->digests);
    report_compare(all, RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(all[i].finding.times, i == ODD);
    assert_int_equal(all[ODD].finding.blame.fault, FAULT_UNLIKE_OTHERS);
    assert_int_equal(all[ODD].finding.lesson, 1);
    assert_int_equal(all[ODD].finding.step, 17);
    assert_int_equal(all[ODD].finding.wanted, all[0].digests[STEP]);
    free(all);
}

/* Where the first round was cut, each rank came to another step: they are compared as far as they came. Those that were
 * found wrong before are no measure. */
static void unequal_ends_are_no_difference(void **test)
{
    (void)test;
    enum { RANKS = 5, SHORT = 100, ODD = 3, STEP = 60 + 17 };
    struct testimony *all = calloc(RANKS, sizeof *all);
    for (size_t i = 0; i < RANKS; i++)
        for (size_t step = 0; step < SHORT + 10 * i; step++)
            all[i].digests[step] = step + 1;
    report_compare(all, RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(all[i].finding.times, 0);
    all[ODD].digests[STEP] = 7;
    report_compare(all, RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(all[i].finding.times, i == ODD);
    assert_int_equal(all[ODD].finding.got, 7);
    assert_int_equal(all[ODD].finding.wanted, STEP + 1);

    all[ODD].finding.times = 0;
    all[0].finding.times = 1; /* and left its lesson at once */
    memset(all[0].digests, 0, 60 * sizeof *all->digests);
    all[0].digests[STEP] = 7;
    report_compare(all, 2);
    assert_int_equal(all[1].finding.times, 0); /* not held to rank 0, the lower of two */
    all[1].digests[STEP] = 7;                  /* as ODD: three of the four with a say */
    all[4].digests[STEP] = 7;
    report_compare(all, RANKS);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(all[i].finding.times, i == 0 || i == 2);
    free(all);
}

/* A host with 1,500 processors, in place of this one where a test says so. */
static bool is_huge;
static const int huge_cores[] = {3, 1100, 1499};
static int now_on, now_on_count; /* the first that the thread was told to run on; how many */

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    memset(set, 0, size);
    if (!is_huge)
        return syscall(SYS_sched_getaffinity, pid, size, set) < 0 ? -1 : 0;
    if (size * 8 < 1500) {
        errno = EINVAL;
        return -1;
    }
    for (size_t i = 0; i < sizeof huge_cores / sizeof *huge_cores; i++)
        CPU_SET_S((size_t)huge_cores[i], size, set);
    return 0;
}

int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set)
{
    if (!is_huge)
        return (int)syscall(SYS_sched_setaffinity, pid, size, set);
    now_on_count = CPU_COUNT_S(size, set);
    for (now_on = 0; !CPU_ISSET_S((size_t)now_on, size, set);)
        now_on++;
    return 0;
}

static void all_cores_of_a_huge_host_are_taken(void **test)
{
    (void)test;
    struct cores cores;
    int first;
    is_huge = true;
    cores_open(&cores);
    assert_int_equal(cores.count, 3);
    assert_int_equal(cores_taken(&cores, &first), 0);
    for (int i = 4; i > 0; i--) { /* 1100, 3, 1499 and 1100 again */
        assert_int_equal(cores_take(&cores, i), huge_cores[i % 3]);
        assert_int_equal(now_on, huge_cores[i % 3]);
        assert_int_equal(now_on_count, 1);
        assert_int_equal(cores_taken(&cores, &first), i == 4 ? 1 : i == 3 ? 2 : 3);
        assert_int_equal(first, i == 4 ? 1100 : 3);
    }
    cores_release(&cores);
    assert_int_equal(now_on_count, 3);
    is_huge = false;
}

/* The CPU engine, as if nobody knew its answers: held to its own first round. */
static void a_device_is_held_to_itself(void **test)
{
    (void)test;
#ifdef __SANITIZE_ADDRESS__
    print_message("# sanitized it takes a quarter of a minute\n");
    skip();
#endif
    static const volatile sig_atomic_t stop = 0;
    enum { LESSON = 2, STEP = 30 };
    struct engine_ops blind = engine_cpu;
    blind.is_defined = false;
    struct verify *verify = calloc(1, sizeof *verify);
    struct pass *pass = calloc(1, sizeof *pass);
    struct error error = {0};
    struct comm *comm = comm_open_world(60);
    lesson_draw(&verify->pictures);
    for (int i = 0; i < LESSONS; i++)
        lesson_data(&lessons[i], &verify->pictures, &verify->data[i]);
    verify->ops = &blind;
    verify->stop = &stop;
    verify->end = HUGE_VAL;
    assert_true(pass_open(pass, verify, comm, NULL, &error));
    verify->terms = calloc(pass->engines[0]->sums->count, sizeof *verify->terms);

    pass_run(pass);
    assert_int_equal(verify->finding.times, 0);
    assert_int_equal(verify->steps, LESSON_STEPS);
    assert_memory_equal(pass->digests, known_digests, sizeof known_digests);

    pass->digests[lesson_offset(LESSON) + STEP] ^= 1; /* as if the first round had been wrong there */
    pass_run(pass);
    assert_int_equal(verify->finding.times, 1);
    assert_int_equal(verify->finding.blame.fault, FAULT_UNLIKE_ITSELF);
    assert_int_equal(verify->finding.lesson, LESSON);
    assert_int_equal(verify->finding.step, STEP);
    assert_int_equal(verify->steps,
                     2 * LESSON_STEPS - (lessons[LESSON].steps - STEP - 1)); /* the lesson was left there */
    pass_close(pass);
    comm_close(comm);
    free(verify->terms);
    free(pass);
    free(verify);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_the_definitions),
        cmocka_unit_test(lessons_fill_the_table),
        cmocka_unit_test(odd_devices_are_found),
        cmocka_unit_test(unequal_ends_are_no_difference),
        cmocka_unit_test(all_cores_of_a_huge_host_are_taken),
        cmocka_unit_test(a_device_is_held_to_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
