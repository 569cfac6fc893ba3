/* Any words, one a line, as a command line: options within their bounds, or one line. */
#include "fuzz.h"

#include <string.h>

#include "options.h"
#include "synthetic.h"
#include "trials.h"

enum { MAX_WORDS = 40, MAX_BYTES = 2000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[MAX_BYTES + 1], *rest = text, *words[MAX_WORDS + 2] = {(char *)"dtrain"};
    int count = 1;
    size = size < MAX_BYTES ? size : MAX_BYTES;
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *word; count <= MAX_WORDS && (word = strsep(&rest, "\n")) != NULL;)
        words[count++] = word;
    struct options options;
    struct error error = {0};
    bool good = options_parse(count, words, &options, &error);
    fuzz_check_verdict(good, &error);
    if (!good || options.help || options.version)
        return 0;
    struct trial trials[MOST_TRIALS];
    size_t train, test;
    if (trials_list(&options, trials) < 1 || options.batch_size < 1 || !(options.timeout_seconds >= 1))
        abort();
    cJSON_Delete(options_json(&options));
    if (options.data != NULL)
        synthetic_parse(options.data, &train, &test, &error);
    return 0;
}
