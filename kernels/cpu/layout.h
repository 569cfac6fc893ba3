/* layout.h - the weights as the CPU kernels like them.
 *
 * Weights, velocity and gradient sums of the CPU engine live in this layout all the time; SGD is
 * elementwise, so it never has to be undone. Rows are padded to whole vectors. Padding is always 0: it
 * starts as 0 and its gradient is 0. layout_index maps the canonical layout (lenet5.h) into it.
 */
#ifndef DTRAIN_CPU_LAYOUT_H
#define DTRAIN_CPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum { CONV2_ROW = 32 };

struct layout {
    _Alignas(64) float conv1[6][5][16]; /* [out][ky][kx * 3 + in], 15 used */
    float conv1_bias[16];               /* 6 used */
    float conv2[16][5][CONV2_ROW];      /* [out][ky][kx * 6 + in], 30 used */
    float conv2_bias[16];
    float conv3[120][400]; /* [out][(y * 5 + x) * 16 + in] */
    float conv3_bias[128]; /* 120 used */
    float fc1[84][128];    /* [out][in], 120 used */
    float fc1_bias[96];    /* 84 used */
    float fc2[10][96];     /* [out][in], 84 used */
    float fc2_bias[16];    /* 10 used */
};

enum { LAYOUT_COUNT = sizeof(struct layout) / sizeof(float) };

/* Where a tensor starts among the LAYOUT_COUNT numbers. */
#define LAYOUT_OF(tensor) (offsetof(struct layout, tensor) / sizeof(float))

/* index[i] = place of canonical number i, for the LENET5_WEIGHTS of them. */
void layout_index(uint32_t *index);

#endif
