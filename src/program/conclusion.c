#include "conclusion.h"

#include <limits.h>
#include <math.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "beside.h"
#include "launcher.h"
#include "signals.h"

static void print_accuracy(double accuracy)
{
    if (accuracy < 0)
        printf("  %10s", "-");
    else
        printf("  %10.2f", accuracy);
}

static void print_table(const struct trial *trials, const struct outcome *outcomes, int count)
{
    unsigned long long last = trials[count - 1].options.seed; /* and the longest */
    bool seeds = trials[0].options.seed != last;
    int width = snprintf(NULL, 0, "%llu", last);
    width = width < 6 ? 6 : width;
    printf("\nnet  ");
    if (seeds)
        printf("%-*s  ", width, "seed");
    printf("%-10s  %10s  %10s  %10s  weights\n", "dropout", "best train", "best test", "seconds");
    for (int i = 0; i < count; i++) {
        const struct outcome *outcome = &outcomes[i];
        printf("%c    ", trials[i].net.name);
        if (seeds)
            printf("%-*llu  ", width, (unsigned long long)trials[i].options.seed);
        printf("%-10s", trials[i].net.dropout);
        print_accuracy(outcome->progress.best_train);
        print_accuracy(outcome->progress.best_test);
        printf("  %10.1f  %016llx%s\n", outcome->progress.seconds, (unsigned long long)outcome->digest,
               outcome->status == RUN_FAILED ? "  FAILED" : "");
    }
    putchar('\n');
}

/* Of the seeds of each net whose best check is known; a failed one's is not counted. */
static void print_spread(const struct trial *trials, const struct outcome *outcomes, int count)
{
    printf("net  %-10s  %5s  best test: mean       least        most\n", "dropout", "seeds");
    for (int n = 0; n < NETS; n++) {
        double sum = 0, least = 100, most = 0;
        int seeds = 0;
        for (int i = 0; i < count; i++) {
            double best = outcomes[i].progress.best_test;
            if (trials[i].net.name != lenet5_nets[n].name || outcomes[i].status == RUN_FAILED || best < 0)
                continue;
            seeds++;
            sum += best;
            least = fmin(least, best);
            most = fmax(most, best);
        }
        if (seeds > 0)
            printf("%c    %-10s  %5d  %15.2f  %10.2f  %10.2f\n", lenet5_nets[n].name, lenet5_nets[n].dropout, seeds,
                   sum / seeds, least, most);
    }
    putchar('\n');
}

/* A line, or the rest of one that has been begun, whatever stands in the names it quotes. */
static void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    error_print_line(format, arguments);
    va_end(arguments);
    putchar('\n');
}

/* Figures are optional: where they cannot be drawn, the command that draws them is printed. */
static void draw_figures(const char *directory, struct comm *world)
{
    char plot[PATH_MAX];
    char *arguments[] = {plot, (char *)"--", (char *)directory, NULL};
    pid_t child;
    int status = -1;
    fflush(stdout);
    if (beside_find("launch/plot", plot) && posix_spawn(&child, plot, NULL, NULL, arguments, environ) == 0)
        while (waitpid(child, &status, WNOHANG) == 0) {
            comm_alive(world); /* the other ranks wait */
            nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        }
    if (status != 0)
        print("The figures were not drawn; %splot %s draws them.", beside_launch(), directory);
}

static void print_stopped(const struct trial *trials, const struct outcome *outcomes, int count, const char *directory)
{
    const char *name = signals_name();
    if (name != NULL && strcmp(name, "SIGUSR1") == 0 && launcher_renames_signals())
        name = "a signal"; /* whichever the user sent */
    printf("stopped by %s after step", name != NULL ? name : "a signal to another rank");
    for (int i = 0; i < count; i++)
        if (outcomes[i].status == RUN_STOPPED) {
            printf(" %llu", (unsigned long long)outcomes[i].progress.step);
            if (count > 1)
                printf(" (%s)", trials[i].path + 1);
        }
    print(", saved in %s: run again with --resume", directory);
}

/* The last line of every study: of one trial its digest, of several the digest of their digests. */
static void print_digest(const struct outcome *outcomes, int count)
{
    uint64_t digests[MOST_TRIALS];
    for (int i = 0; i < count; i++)
        digests[i] = outcomes[i].digest;
    uint64_t digest = count == 1 ? digests[0] : XXH64(digests, (size_t)count * sizeof *digests, 0);
    printf("weights: %016llx\n", (unsigned long long)digest);
    fflush(stdout);
}

void conclusion_print(const struct trial *trials, const struct outcome *outcomes, int count, const char *directory,
                      struct comm *world)
{
    bool stopped = false, all_failed = true; /* of those the directory may no longer be theirs */
    bool checked = false, closed = false;
    for (int i = 0; i < count; i++) {
        bool failed = outcomes[i].status == RUN_FAILED;
        stopped |= outcomes[i].status == RUN_STOPPED;
        all_failed &= failed;
        checked |= !failed && outcomes[i].progress.best_test >= 0;
        closed |= outcomes[i].progress.epoch > 0;
    }
    if (count > 1)
        print_table(trials, outcomes, count);
    if (checked && trials[0].options.seed != trials[count - 1].options.seed)
        print_spread(trials, outcomes, count);
    if (count > 1 && closed && !stopped && !all_failed)
        draw_figures(directory, world);
    if (stopped)
        print_stopped(trials, outcomes, count, directory);
    print_digest(outcomes, count);
}
