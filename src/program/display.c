#include "display.h"

#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "clock.h"
#include "launcher.h"

enum { USUAL_WIDTH = 79, WIDTH = 200, LEAST_BAR = 20, MOST_BAR = 100 };
#define CLEAR "\r\033[K"

/* Whether the output appears on a terminal, and a descriptor of it, -1 where it may not be opened (after su, say). */
static bool find_terminal(int *descriptor)
{
    const char *path = launcher_terminal();
    *descriptor = path != NULL ? open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC) : -1;
    return path != NULL;
}

/* How long a line may be without breaking, now. */
static size_t width(const struct display *display)
{
    struct winsize size;
    if (display->terminal < 0 || ioctl(display->terminal, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
        return USUAL_WIDTH;
    return size.ws_col - 1 < WIDTH ? size.ws_col - 1 : WIDTH;
}

struct display display_open(const struct trial *trials, int count, double goal, const char *when)
{
    const char *kind = getenv("TERM");
    int terminal;
    bool draws = find_terminal(&terminal) && kind != NULL && strcmp(kind, "dumb") != 0; /* and knows CLEAR */
    return (struct display){
        .trials = trials,
        .count = count,
        .goal = goal,
        .terminal = terminal,
        .progress = strcmp(when, "auto") == 0 ? draws : strcmp(when, "always") == 0,
    };
}

void display_begin(struct display *display, const double *done)
{
    display->began = clock_seconds();
    for (int i = 0; i < display->count; i++) {
        display->last[i].epochs_done = done[i];
        display->done_at_beginning += done[i];
    }
}

/* --- the progress line ----------------------------------------------------------------------------- */

static void append(char *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(char *line, const char *format, ...)
{
    size_t used = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + used, WIDTH + 1 - used, format, arguments);
    va_end(arguments);
}

static void append_time(char *line, double seconds)
{
    long s = lround(seconds);
    if (s >= 3600)
        append(line, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        append(line, "%ld:%02ld", s / 60, s % 60);
}

/* A bar as wide as what is left of the line. */
static void append_bar(char *line, double part, size_t left)
{
    int length = left < LEAST_BAR + 2 ? LEAST_BAR : left > MOST_BAR + 2 ? MOST_BAR : (int)left - 2;
    append(line, "[");
    for (int i = 0; i < length; i++)
        append(line, i < (int)(part * length) ? "#" : "-");
    append(line, "]");
}

static void append_losses(char *line, const struct display *display)
{
    for (int n = 0; n < NETS; n++) {
        double sum = 0, trials = 0;
        for (int i = 0; i < display->count; i++)
            if (display->trials[i].net.name == lenet5_nets[n].name) {
                sum += display->last[i].loss;
                trials++;
            }
        if (trials > 0)
            append(line, "  %c %.3f", lenet5_nets[n].name, sum / trials);
    }
}

/* Of one net: epoch 12/1000 [####----------------]  loss 1.2345  25300 img/s  ETA 0:12, the bar as wide as the terminal lets it
 * of several: [####----------------] 21.3%  A 1.234  B 1.456  C 1.890  D 2.012  ETA 0:12
 * of several seeds the mean of their losses. */
static void draw(struct display *display)
{
    const struct event *last = display->last;
    double of = display->count * display->goal, done = 0;
    char line[WIDTH + 1] = "", rest[WIDTH + 1] = "";
    size_t room = width(display);
    for (int i = 0; i < display->count; i++)
        done += last[i].epochs_done;
    if (display->count == 1) {
        append(line, "epoch %.0f/%.0f ", fmin(floor(done) + 1, ceil(of)), ceil(of));
        append(rest, "  loss %.4f  %.0f img/s", last->loss, last->images_per_second);
    } else {
        append(rest, " %.1f%%", 100 * done / of);
        append_losses(rest, display);
    }
    double part = done - display->done_at_beginning, elapsed = clock_seconds() - display->began;
    append(rest, "  ETA ");
    if (part > 0 && elapsed > 1)
        append_time(rest, elapsed / part * (of - done));
    else
        append(rest, "-:--");
    size_t used = strlen(line) + strlen(rest);
    append_bar(line, done / of, room > used ? room - used : 0);
    append(line, "%s", rest);
    printf(CLEAR "%.*s", (int)room, line);
    fflush(stdout);
}

/* --- events ---------------------------------------------------------------------------------------- */

static void print_epoch(struct display *display, const struct event *event)
{
    const struct epoch_metrics *metrics = &event->metrics;
    const char *tag = display->trials[event->trial].tag;
    if (metrics->checked)
        display_line(display, "%sepoch: %llu time: %.2f loss: %.4f train: %.2f%% test: %.2f%% best: %.2f%%", tag,
                     (unsigned long long)metrics->epoch, metrics->seconds, metrics->loss, metrics->train_accuracy,
                     metrics->test_accuracy, event->best_test);
    else
        display_line(display, "%sepoch: %llu time: %.2f loss: %.4f", tag, (unsigned long long)metrics->epoch,
                     metrics->seconds, metrics->loss);
}

void display_event(struct display *display, const struct event *event)
{
    if (event->kind == EVENT_FAILURE) {
        display_line(display, "%s", event->text);
        return;
    }
    display->last[event->trial] = *event;
    if (event->kind == EVENT_EPOCH) /* of the epoch just opened there is no loss yet */
        display->last[event->trial].loss = event->metrics.loss;
    if (event->kind == EVENT_EPOCH)
        print_epoch(display, event);
    if (display->progress)
        draw(display);
}

void display_line(struct display *display, const char *format, ...)
{
    va_list arguments;
    if (display->progress)
        fputs(CLEAR, stdout);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

void display_close(struct display *display)
{
    if (display->progress)
        fputs(CLEAR, stdout);
    if (display->terminal >= 0)
        close(display->terminal);
    display->terminal = -1;
    display->progress = false;
    fflush(stdout);
}
