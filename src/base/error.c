#include "error.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Makes one line of the text: names of files may have line ends in them. */
static void clean(char *text)
{
    for (char *c = text; *c != '\0'; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
}

/* One line whatever stands in the names it quotes; one that is too long is cut in the middle, as its beginning
 * says what is wrong and its end what would be right. */
bool error_set(struct error *error, enum exit_code code, const char *format, ...)
{
    enum { HALF = sizeof error->text / 2 - 4 };
    char text[10000];
    if (error->code != EXIT_DONE)
        return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    clean(text);
    size_t length = strlen(text);
    if (length < sizeof error->text)
        strcpy(error->text, text);
    else
        snprintf(error->text, sizeof error->text, "%.*s ... %s", HALF, text, text + length - HALF);
    error->code = code;
    return false;
}

void error_print_line(const char *format, va_list arguments)
{
    char text[10000];
    vsnprintf(text, sizeof text, format, arguments);
    clean(text);
    fputs(text, stdout);
}

void error_note(const char *format, ...)
{
    char text[10000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    clean(text);
    fprintf(stderr, "dtrain: note: %s\n", text);
}
