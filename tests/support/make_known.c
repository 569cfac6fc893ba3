/* Writes src/verify/known.c: what kernels/definition leaves after every step of --verify's lessons. `make
 * known` runs it. */
#include <stdio.h>
#include <stdlib.h>

#include "sampler.h"
#include "src/verify/lesson.h"

static void nothing(void *context)
{
    (void)context;
}

int main(void)
{
    struct lesson_pictures *pictures = malloc(sizeof *pictures);
    struct lesson_state *state = malloc(sizeof *state);
    struct definition_sums *sums = malloc(2 * sizeof *sums);
    uint32_t *order = malloc(sizeof pictures->train / RECORD_BYTES * sizeof *order);
    lesson_draw(pictures);
    printf("/* Made by `make known`, from kernels/definition. */\n#include \"lesson.h\"\n\n"
           "const uint64_t known_digests[LESSON_STEPS] = {\n");
    for (int i = 0; i < LESSONS; i++) {
        struct dataset data;
        lesson_data(&lessons[i], pictures, &data);
        lesson_begin(state);
        printf("    /* net %c, batches of %zu */\n", lessons[i].net, lessons[i].batch);
        for (unsigned step = 0; step < lessons[i].steps; step++) {
            const struct lesson_batch batch = lesson_batch(&lessons[i], step);
            sampler_shuffle(LESSON_SEED, batch.epoch, data.train.count, order);
            lesson_define(&lessons[i], &data, order, &batch, 0, 0, state, sums, nothing, NULL);
            printf("%s0x%016llx,%s", step % 5 == 0 ? "    " : " ", (unsigned long long)lesson_digest(state),
                   step % 5 == 4 || step == lessons[i].steps - 1 ? "\n" : "");
        }
    }
    printf("};\n");
    free(order);
    free(sums);
    free(state);
    free(pictures);
    return fflush(stdout) == 0 ? 0 : 1;
}
