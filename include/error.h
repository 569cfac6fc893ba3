/* error.h - exit codes, and the one way bad input is reported.
 *
 * Two kinds of failure exist. Bad input (an option, a file) is a value: the function that finds it
 * fills a struct error and returns false, its callers pass both up, and the ranks agree on it
 * (comm_agree) before any of them leaves. Broken machinery (MPI, CUDA) ends the job on the spot
 * through the check macro of its library.
 */
#ifndef DTRAIN_ERROR_H
#define DTRAIN_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

enum exit_code {
    EXIT_DONE = 0,
    EXIT_RUNTIME = 1,    /* the machine or the numbers failed: disk full, loss not finite */
    EXIT_USAGE = 2,      /* an option, or options that contradict each other */
    EXIT_INPUT = 3,      /* a data file or a checkpoint */
    EXIT_PEER_LOST = 4,  /* another rank died or stalled */
    EXIT_DIVERGED = 5,   /* replicas no longer hold the same weights and velocity, or --verify found a wrong answer */
    EXIT_UNVERIFIED = 6, /* --verify: its time was over before everything had been compared once */
    EXIT_STOPPED = 75,   /* stopped by a signal, everything saved: run again with --resume */
};

/* An error to report: one line that names what is wrong and what would be right.
 * code is EXIT_DONE while there is none. Zero-initialise before use. */
struct error {
    enum exit_code code;
    char text[1000];
};

/* Fills *error (the first one stays: a later call does not overwrite it) and returns false, so that
 * `return error_set(error, EXIT_INPUT, "%s: ...", path);` reports and leaves in one line. */
bool error_set(struct error *error, enum exit_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* "dtrain: note: ..." on standard error, one line whatever stands in the names it quotes: for what went otherwise than
 * asked, but goes on. Called by one rank. */
void error_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* vprintf of text of one line, without its end, whatever stands in the names it quotes. */
void error_print_line(const char *format, va_list arguments) __attribute__((format(printf, 1, 0)));

#endif
