/* Where in a rank's memory bench/flips finds what it flips bits of, and what --verify has noticed: a line each, name,
 * offset in its struct, bytes. Built with the flags of the program, whose structs it names. */
#include <stdio.h>

#include "src/engine/cpu.h"
#include "src/verify/pass.h"

#define PLACE(type, member)                                                                                            \
    printf(#type "." #member " %zu %zu\n", offsetof(struct type, member), sizeof((struct type *)0)->member)

int main(void)
{
    static uint32_t index[LENET5_WEIGHTS];
    PLACE(cpu, weights);
    PLACE(cpu, velocity);
    PLACE(cpu, tile.conv1);
    PLACE(cpu, tile.conv2);
    PLACE(cpu, tile.conv2_windows);
    PLACE(cpu, tile.pixels);
    PLACE(cpu, tile.features);
    PLACE(cpu, tile.dense);
    PLACE(cpu, tile.dpool1);
    PLACE(cpu, input.masks);
    PLACE(cpu, index);
    PLACE(cpu, base.sums);
    PLACE(cpu, base.setup.data);
    PLACE(comm_sums, terms);
    PLACE(verify, data[0]);
    PLACE(verify, engine);
    PLACE(verify, lesson);
    PLACE(verify, step);
    PLACE(verify, steps);
    PLACE(verify, wrong);
    PLACE(verify, wrong_at);
    PLACE(verify, finding.times);
    PLACE(verify, finding.blame.fault);
    PLACE(verify, finding.blame.parameter);
    PLACE(verify, finding.blame.index);
    PLACE(verify, finding.together);
    for (int p = 0; p < LENET5_PARAMETERS; p++)
        printf("%s %zu %zu\n", lenet5_parameters[p].name, lenet5_parameters[p].offset, lenet5_parameters[p].count);
    layout_index(index);
    printf("index");
    for (int i = 0; i < LENET5_WEIGHTS; i++)
        printf(" %u", index[i]);
    putchar('\n');
    return 0;
}
