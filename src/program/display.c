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
#include "error.h"
#include "launcher.h"
#include "rows.h"

enum { USUAL_WIDTH = 79, WIDTH = 200, LEAST_BAR = 4, MOST_BAR = 100 };
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

/* Epochs of all trials that count: one that is resumed may have more than it is to have. */
static double epochs_done(const struct display *display)
{
    double done = 0;
    for (int i = 0; i < display->count; i++)
        done += fmin(display->last[i].epochs_done, display->goal);
    return done;
}

void display_begin(struct display *display, const uint64_t *closed, const double *done)
{
    display->began = display->row_began = clock_seconds();
    if (display->progress && display->count > 1)
        display->rows = rows_open(display->trials, display->count, closed);
    for (int i = 0; i < display->count; i++)
        display->last[i].epochs_done = done[i];
    display->done_at_beginning = epochs_done(display);
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

/* A bar as wide as what is left of the line, if that is enough to see something. */
static void append_bar(char *line, double part, size_t left)
{
    int length = left > MOST_BAR + 2 ? MOST_BAR : (int)left - 2;
    if (length < LEAST_BAR)
        return;
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

/* Of one net: epoch 12/1000 [####----------------]  loss 1.2345  25300 samples/s  ETA 0:12, the bar as wide
 * as the terminal lets it
 * of several: [####----------------] 21.3%  A 1.234  B 1.456  C 1.890  D 2.012  ETA 0:12
 * of several seeds the mean of their losses. */
static void draw(struct display *display)
{
    const struct event *last = display->last;
    double of = display->count * display->goal, done = epochs_done(display);
    char line[WIDTH + 1] = "", rest[WIDTH + 1] = "";
    size_t room = width(display);
    if (display->count == 1) {
        append(line, "epoch %.0f/%.0f ", fmin(floor(done) + 1, ceil(of)), ceil(of));
        append(rest, "  loss %.4f  %.0f samples/s", last->loss, last->images_per_second);
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

enum { LOSS, TRAIN, TEST, BEST, LINES };

/* A net's share of a line, as wide as every other: its mean over the seeds, blank where it has none. */
static void append_cell(char *text, char net, const struct cell *cell, int line)
{
    double sums[LINES] = {cell->loss, cell->train, cell->test, cell->best};
    int count = line == LOSS ? cell->closed : cell->checked;
    if (count == 0)
        append(text, "  %c %7s", net, "-");
    else if (line == LOSS)
        append(text, "  %c %7.4f", net, sums[line] / count);
    else
        append(text, "  %c %6.2f%%", net, sums[line] / count);
}

static bool is_trained(const struct display *display, int net)
{
    for (int i = 0; i < display->count; i++)
        if (display->trials[i].net.name == lenet5_nets[net].name)
            return true;
    return false;
}

/* epoch: 12 time: 1.42 loss:   A  1.2345  B  1.3456, and after a check the same of its accuracies. The time is what has
 * passed since the row before, checks too. */
static void print_row(struct display *display, const struct row *row)
{
    static const char *const names[LINES] = {"loss:", "train:", "test:", "best:"};
    char head[WIDTH + 1] = "";
    double now = clock_seconds();
    bool checked = false;
    append(head, "epoch: %llu time: %.2f ", (unsigned long long)row->epoch, now - display->row_began);
    display->row_began = now;
    for (int net = 0; net < NETS; net++)
        checked |= row->nets[net].checked > 0;
    for (int line = LOSS; line < (checked ? LINES : TRAIN); line++) {
        char text[WIDTH + 1] = "";
        append(text, "%*s%-6s", (int)strlen(head), line == LOSS ? head : "", names[line]);
        for (int net = 0; net < NETS; net++)
            if (is_trained(display, net))
                append_cell(text, lenet5_nets[net].name, &row->nets[net], line);
        display_line(display, "%s", text);
    }
}

static void print_rows(struct display *display, const struct event *event)
{
    struct row *row;
    rows_add(display->rows, event);
    while ((row = rows_take(display->rows)) != NULL) {
        print_row(display, row);
        free(row);
    }
}

void display_event(struct display *display, const struct event *event)
{
    if (event->kind == EVENT_FAILURE)
        display_line(display, "%s", event->text);
    if (display->rows != NULL)
        print_rows(display, event);
    if (event->kind == EVENT_FAILURE)
        return;
    struct event *last = &display->last[event->trial], before = *last;
    *last = *event;
    if (event->kind == EVENT_EPOCH) /* of the epoch just opened there is no loss yet */
        last->loss = event->metrics.loss;
    else
        last->metrics = before.metrics;
    if (event->kind == EVENT_EPOCH && display->rows == NULL)
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
    error_print_line(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

void display_close(struct display *display)
{
    if (display->progress)
        fputs(CLEAR, stdout);
    for (int i = 0; i < display->count && display->rows != NULL; i++)
        if (display->last[i].metrics.epoch > rows_taken(display->rows))
            print_epoch(display, &display->last[i]);
    rows_close(display->rows);
    display->rows = NULL;
    if (display->terminal >= 0)
        close(display->terminal);
    display->terminal = -1;
    display->progress = false;
    fflush(stdout);
}
