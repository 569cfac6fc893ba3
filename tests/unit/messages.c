/* messages - scenarios for tests/unit/messages.py, run under mpirun: messages SCENARIO. Ends with 0 when all went as it
 * must, else says what did not. */
#include "comm.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "src/training/evaluate.h"

static int rank, size, faults;

static void expect(bool good, const char *what)
{
    if (!good)
        printf("rank %d: %s\n", rank, what);
    faults += !good;
}

static bool begins_a_page(const int64_t *numbers)
{
    return (uintptr_t)numbers % (uintptr_t)sysconf(_SC_PAGESIZE) == 0;
}

/* Rounds follow each other at once: a rank writes its next terms while others still read the totals. */
static void sum(struct comm *world)
{
    static const size_t counts[] = {1, 3, 1000, 62009};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        struct comm_sums *sums = comm_sums_open(world, counts[c]);
        bool good = sums->count == counts[c];
        for (size_t i = 0; i < counts[c]; i++)
            good &= sums->terms[i] == 0;
        expect(good, "terms do not begin as 0");
        expect(begins_a_page(sums->terms) && begins_a_page(sums->totals), "sums do not begin a page");
        for (int64_t round = 1; round <= 50; round++) {
            for (size_t i = 0; i < counts[c]; i++)
                sums->terms[i] = ((int64_t)i << 40) * (rank + 1) - round * rank;
            comm_sum(sums);
            for (size_t i = 0; i < counts[c]; i++)
                good &= sums->totals[i] == ((int64_t)i << 40) * size * (size + 1) / 2 - round * size * (size - 1) / 2;
        }
        expect(good, "a sum is wrong");
        comm_sums_close(sums);
    }
}

/* Two nets of a study that take turns: each has sums of its own. */
static void turns(struct comm *world)
{
    enum { COUNT = 100 };
    struct comm_sums *nets[] = {comm_sums_open(world, COUNT), comm_sums_open(world, COUNT)};
    for (int64_t round = 0; round < 20; round++)
        for (int64_t net = 0; net < 2; net++) {
            for (int i = 0; i < COUNT; i++)
                nets[net]->terms[i] = round * (net + 1) + i;
            comm_sum(nets[net]);
            bool good = true;
            for (int i = 0; i < COUNT; i++)
                good &= nets[net]->totals[i] == size * (round * (net + 1) + i);
            expect(good, "sums that take turns are mixed up");
        }
    comm_sums_close(nets[0]);
    comm_sums_close(nets[1]);
}

static void agree(struct comm *world)
{
    struct error none = {0}, error = {0};
    expect(comm_agree(world, &none) && none.code == EXIT_DONE, "no error, yet they disagree");
    if (rank >= 1)
        error_set(&error, rank == 1 ? EXIT_INPUT : EXIT_USAGE, "from rank %d", rank);
    expect(!comm_agree(world, &error), "an error went unseen");
    expect(error.code == EXIT_INPUT && strcmp(error.text, "from rank 1") == 0, "not the lowest rank's error");
}

static void same(struct comm *world)
{
    int odd;
    expect(comm_same(world, 7, &odd), "equal numbers differ");
    for (int who = 0; who < size; who++)
        expect(!comm_same(world, rank == who ? 1 : 2, &odd) && odd == who, "the odd rank is not found");
}

static void split(struct comm *world)
{
    struct error error = {0};
    struct comm *half = comm_split(world, rank % 2, "auto", COMM_FOR_CPU, &error);
    expect(half != NULL && comm_size(half) == (size + 1 - rank % 2) / 2, "a part has the wrong size");
    struct comm_sums *sums = comm_sums_open(half, 1);
    *sums->terms = rank;
    comm_sum(sums);
    int64_t right = 0;
    for (int i = rank % 2; i < size; i += 2)
        right += i;
    expect(*sums->totals == right, "a part sums wrongly");
    comm_sums_close(sums);
    expect(comm_host_rank(world) == rank && comm_host_count(world) == 1, "hosts are counted wrongly");
    comm_close(half);
    expect(comm_split(world, 0, "pigeon", COMM_FOR_CPU, &error) == NULL && error.code == EXIT_USAGE,
           "an unknown transport");
}

static void messages(struct comm *world)
{
    int got = 0, message = 0;
    if (rank > 0)
        comm_send(world, 0, &rank, sizeof rank);
    while (rank == 0 && got < size - 1)
        if (comm_receive(world, &message, sizeof message))
            got++, expect(message >= 1 && message < size, "a message is not what was sent");
    comm_barrier(world);
    expect(!comm_receive(world, &message, sizeof message), "a message out of nowhere");
}

/* Rank 0 works for three timeouts; the others wait, and are told that it lives. */
static void busy(struct comm *world)
{
    for (int i = 0; i < 60 && rank == 0; i++) {
        usleep(50000);
        comm_alive(world);
    }
    comm_barrier(world);
}

static bool has_come(void *time)
{
    return clock_seconds() > *(const double *)time;
}

/* For no other rank, but it answers them. */
static void wait_seconds(struct comm *world, double seconds)
{
    double end = clock_seconds() + seconds;
    comm_wait(world, has_come, &end, "a moment");
}

/* Nobody gets on from one round of probes to the next, twice, as where the network is slow. Then one does, and nobody
 * twice more. */
static void patient(struct comm *world)
{
    comm_barrier(world);
    if (rank == 0) {
        wait_seconds(world, 1.8);
        wait_seconds(world, 1.2);
    }
    comm_barrier(world);
}

/* Rank 0 asks, half a second on, and waits for something else by the time the others answer. */
static void late(struct comm *world)
{
    comm_barrier(world);
    if (rank == 0) {
        wait_seconds(world, 0.7);
    } else {
        usleep(800000);
        for (int i = 0; i < 30; i++) {
            usleep(10000);
            comm_alive(world);
        }
        usleep(300000); /* by now it has asked again */
    }
    comm_barrier(world);
}

/* What rank 1 sends is held back. */
static bool is_delayed;

/* In place of MPI's, which does the same. A probe, of which rank 0 tells, has tag 1. */
int MPI_Send(const void *data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm)
{
    static char answer[100];
    if (is_delayed && rank == 0 && tag == 1)
        printf("rank 0 asks\n"), fflush(stdout);
    if (!is_delayed || rank == 0 || (size_t)count > sizeof answer)
        return PMPI_Send(data, count, type, to, tag, comm);
    bool is_first = answer[0] == 0;
    if (is_first)
        memcpy(answer, data, (size_t)count);
    return is_first ? MPI_SUCCESS : PMPI_Send(answer, count, type, to, tag, comm);
}

/* Rank 1's answer to a probe comes only when rank 0 has sent the next, which it never answers. */
static void delayed(struct comm *world)
{
    comm_barrier(world);
    is_delayed = true;
    if (rank == 0)
        wait_seconds(world, 0.7); /* asks once */
    for (int i = 0; i < 300 && rank == 1; i++) {
        usleep(10000);
        comm_alive(world);
    }
    comm_barrier(world);
    faults++;
}

static void evaluate_slowly(struct engine *engine, const struct split *split, size_t first, size_t end,
                            struct evaluation *sum)
{
    (void)engine, (void)split;
    usleep((unsigned)(end - first) * 100);
    sum->correct += (int64_t)(end - first);
}

/* Rank 0 evaluates for one and a half timeouts; the others wait, and are told that it lives. */
static void evaluation(struct comm *world)
{
    static const struct engine_ops ops = {.evaluate = evaluate_slowly};
    static const struct dataset data = {.train.count = 10000, .test.count = 5000};
    static const volatile sig_atomic_t stop;
    struct engine engine = {.ops = &ops, .setup = {.comm = world, .data = &data}};
    struct accuracy accuracy;
    expect(evaluate(&engine, false, &stop, &accuracy) == EVALUATE_DONE && accuracy.train == 100 && accuracy.test == 100,
           "an evaluation counts wrongly");
}

/* Rank 0 waits for a broadcast from rank 1 that never comes: all others wait for rank 0. */
static void stuck(struct comm *world)
{
    if (rank == 0)
        comm_broadcast(world, &faults, sizeof faults, 1);
    else
        comm_barrier(world);
    faults++;
}

static const struct {
    const char *name;
    void (*run)(struct comm *world);
} scenarios[] = {{"sum", sum},     {"turns", turns},           {"agree", agree},     {"same", same},
                 {"split", split}, {"messages", messages},     {"busy", busy},       {"patient", patient},
                 {"late", late},   {"evaluation", evaluation}, {"delayed", delayed}, {"stuck", stuck}};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

int main(int argc, char **argv)
{
    struct comm *world = comm_open_world(1);
    rank = comm_rank(world);
    size = comm_size(world);
    size_t scenario = 0;
    while (scenario < SCENARIOS && (argc != 2 || strcmp(argv[1], scenarios[scenario].name) != 0))
        scenario++;
    expect(scenario < SCENARIOS, "no such scenario");
    if (scenario < SCENARIOS)
        scenarios[scenario].run(world);
    comm_close(world);
    return faults > 0;
}
