/* signals.h - SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 ask the run to save and stop (exit 75); so does SIGPIPE: who
 * read standard output has gone. */
#ifndef DTRAIN_SIGNALS_H
#define DTRAIN_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* From now on the first such signal raises the flag, also where the starter has blocked it; another, half a second
 * later or more, ends the process at once (signals come in pairs when a launcher forwards what the terminal has sent
 * already). SIGPIPE, which comes with every line, counts as neither. */
void signals_install(void);

/* Not 0 once this rank is asked to stop. */
const volatile sig_atomic_t *signals_stop_flag(void);

/* Whether it was SIGTERM, which may be a launcher's notice that it is about to kill. */
bool signals_terminated(void);

/* Raises the flag without a signal: another group of ranks was asked to stop. */
void signals_request_stop(void);

/* The name of the signal that came, "SIGUSR1", or NULL. */
const char *signals_name(void);

/* From now on SIGBUS at an address for which explain(context, address) has a line prints that, in the handler, and ends
 * this process with `code`: a mapped file was cut short or cannot be read. The context is borrowed for ever. Where the
 * host's memory is broken that is said (EXIT_RUNTIME). Any other SIGBUS, of which explain says NULL, has its default
 * action. */
void signals_explain_bus_error(const char *(*explain)(const void *context, const void *address), const void *context,
                               int code);

#endif
