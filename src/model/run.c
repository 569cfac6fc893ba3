#include "run.h"

#include <stdio.h>
#include <stdlib.h>

#include "abort.h"

void run_print_number(double number, char text[VALUE_BYTES])
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, VALUE_BYTES, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            return;
    }
}

struct term *run_add_term(struct terms *terms, const char *key, const char *option)
{
    if (terms->count == MOST_TERMS)
        abort_job(MPI_COMM_WORLD, EXIT_RUNTIME, "%s is one term of a run too many: raise MOST_TERMS (%d, run.h)", key,
                  MOST_TERMS);
    struct term *term = &terms->list[terms->count++];
    *term = (struct term){.key = key, .option = option};
    return term;
}
