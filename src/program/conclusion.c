#include "conclusion.h"

#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "signals.h"

static void print_accuracy(double accuracy)
{
    if (accuracy < 0)
        printf("  %10s", "-");
    else
        printf("  %10.2f", accuracy);
}

static void print_table(const struct net *nets, const struct outcome *outcomes, int count)
{
    printf("\nnet  %-10s  %10s  %10s  %10s  weights\n", "dropout", "best train", "best test", "seconds");
    for (int i = 0; i < count; i++) {
        const struct outcome *outcome = &outcomes[i];
        printf("%c    %-10s", nets[i].name, nets[i].dropout);
        print_accuracy(outcome->progress.best_train);
        print_accuracy(outcome->progress.best_test);
        printf("  %10.1f  %016llx%s\n", outcome->progress.seconds, (unsigned long long)outcome->digest,
               outcome->status == RUN_FAILED ? "  FAILED" : "");
    }
    putchar('\n');
}

/* launch/plot lies beside the program. */
static bool find_plot(char path[PATH_MAX + 16])
{
    char program[PATH_MAX] = "";
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash = length > 0 ? strrchr(program, '/') : NULL;
    if (slash == NULL)
        return false;
    *slash = '\0';
    snprintf(path, PATH_MAX + 16, "%s/launch/plot", program);
    return access(path, X_OK) == 0;
}

/* Figures are a courtesy: where they cannot be drawn, how to draw them is said instead. */
static void draw_figures(const char *directory, struct comm *world)
{
    extern char **environ;
    char plot[PATH_MAX + 16];
    char *arguments[] = {plot, (char *)"--", (char *)directory, NULL};
    pid_t child;
    int status = -1;
    fflush(stdout);
    if (find_plot(plot) && posix_spawn(&child, plot, NULL, NULL, arguments, environ) == 0)
        while (waitpid(child, &status, WNOHANG) == 0) {
            comm_alive(world); /* the other ranks wait */
            nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        }
    if (status != 0)
        printf("The figures were not drawn; launch/plot %s draws them.\n", directory);
}

static void print_stopped(const struct net *nets, const struct outcome *outcomes, int count, const char *directory)
{
    const char *name = signals_name();
    printf("stopped by %s after step", name ? name : "a signal to another rank");
    for (int i = 0; i < count; i++)
        if (outcomes[i].status == RUN_STOPPED) {
            printf(" %llu", (unsigned long long)outcomes[i].progress.step);
            if (count > 1)
                printf(" (%c)", nets[i].name);
        }
    printf(", saved in %s: run again with --resume\n", directory);
}

/* The last line of every run: of one net its digest, of several the digest of their digests. */
static void print_digest(const struct outcome *outcomes, int count)
{
    uint64_t digests[NETS];
    for (int i = 0; i < count; i++)
        digests[i] = outcomes[i].digest;
    uint64_t digest = count == 1 ? digests[0] : XXH64(digests, (size_t)count * sizeof *digests, 0);
    printf("weights: %016llx\n", (unsigned long long)digest);
    fflush(stdout);
}

void conclusion_print(const struct net *nets, const struct outcome *outcomes, int count, const char *directory,
                      struct comm *world)
{
    bool stopped = false;
    for (int i = 0; i < count; i++)
        stopped |= outcomes[i].status == RUN_STOPPED;
    if (count > 1)
        print_table(nets, outcomes, count);
    if (count > 1 && !stopped)
        draw_figures(directory, world);
    if (stopped)
        print_stopped(nets, outcomes, count, directory);
    print_digest(outcomes, count);
}
