/* rows.cuh - what a seat's samples send to the others for conv3's way back and the dense layers' weights: y3, d3 and dz
 * to all seats, of y1 and d1 a slice to each. 24 KB of lines come in.
 */
#ifndef DTRAIN_FUSED_ROWS_CUH
#define DTRAIN_FUSED_ROWS_CUH

#include "exchange.cuh"

/* Where in mailbox.rows each of them begins, in lines of three numbers; a sample's lines are consecutive. */
constexpr unsigned LINES_Y3 = 0, LINES_Y1 = LINES_Y3 + SAMPLES * 40, LINES_D1 = LINES_Y1 + SAMPLES * SLICE / 3,
                   LINES_DZ = LINES_D1 + SAMPLES * SLICE / 3, LINES_D3 = LINES_DZ + SAMPLES * 4,
                   LINES = LINES_D3 + SAMPLES * 40;
constexpr unsigned SLICE_LINES = SLICE / 3;

/* Sends what all seats need, COUNT lines of each of the seat's samples: thread i < ALL_THREADS<COUNT> sends a line of
 * three numbers to every fourth seat. */
constexpr unsigned TEAMS = 4;
template <unsigned COUNT> constexpr unsigned ALL_THREADS = TEAMS * EACH * COUNT;
template <unsigned LINES_BEFORE, unsigned COUNT>
DEVICE void send_to_all(const memory &m, unsigned i, const float *row, unsigned pitch, unsigned round)
{
    unsigned team = i / (EACH * COUNT), e = i / COUNT % EACH, q = i % COUNT, sample = sample_of(m, e);
    const float *from = row + e * pitch + 3 * q;
    float a = from[0], b = from[1], c = from[2];
#pragma unroll
    for (unsigned seat = 0; seat < SEATS; seat += TEAMS)
        send_line(&mail_of(m, team + seat).rows[LINES_BEFORE + sample * COUNT + q], a, b, c, round);
}

/* Sends what only one seat needs, the one with this slice of fc1: thread i < SLICE_THREADS sends a line. */
constexpr unsigned SLICE_THREADS = EACH * SEATS * SLICE_LINES;
template <unsigned LINES_BEFORE>
DEVICE void send_slice(const memory &m, unsigned i, const float *row, unsigned round)
{
    unsigned e = i / (SEATS * SLICE_LINES), q = i % (SEATS * SLICE_LINES);
    unsigned line = LINES_BEFORE + sample_of(m, e) * SLICE_LINES + q % SLICE_LINES;
    const float *from = row + e * SEATS * SLICE + 3 * q;
    send_line(&mail_of(m, q / SLICE_LINES).rows[line], from[0], from[1], from[2], round);
}

/* y3 and y1, by the threads from `first` on. */
DEVICE void send_outputs(const memory &m, unsigned first, unsigned round)
{
    unsigned i = tid() - first;
    if (i < ALL_THREADS<40>)
        send_to_all<LINES_Y3, 40>(m, i, m.y3[0], 120, round);
    else if (i < ALL_THREADS<40> + SLICE_THREADS)
        send_slice<LINES_Y1>(m, i - ALL_THREADS<40>, m.y1[0], round);
}

/* d3, dz and d1. */
DEVICE void send_gradients(const memory &m, unsigned round)
{
    unsigned i = tid();
    if (i < ALL_THREADS<40>)
        send_to_all<LINES_D3, 40>(m, i, m.d3[0], 120, round);
    else if (i < ALL_THREADS<40> + ALL_THREADS<4>)
        send_to_all<LINES_DZ, 4>(m, i - ALL_THREADS<40>, m.dz[0], 12, round);
    else if (i < ALL_THREADS<40> + ALL_THREADS<4> + SLICE_THREADS)
        send_slice<LINES_D1>(m, i - ALL_THREADS<40> - ALL_THREADS<4>, m.d1[0], round);
}
static_assert(ALL_THREADS<40> + ALL_THREADS<4> + SLICE_THREADS <= THREADS - 2 * LANES, "a thread has one line");

/* Where a line goes: all but d3 lie in m.rows as they do in the mail. */
DEVICE float *place_of_line(memory &m, unsigned line)
{
    if (line < LINES_D3)
        return m.rows.y3[0] + 3 * line;
    unsigned i = line - LINES_D3, chunk = i / 5; /* over all samples */
    return m.rows.d3[chunk / CONV3_CHUNKS] + chunk % CONV3_CHUNKS * CONV3_CHUNK_PITCH + i % 5 * 3;
}

static __device__ void receive_rows(memory &m, unsigned round)
{
    constexpr unsigned TURNS = (LINES + THREADS - 1) / THREADS;
    unsigned t = tid();
    ulonglong2 lines[TURNS];
    const ulonglong2 *from[TURNS], *rows = mail_of(m, seat_of()).rows;
    float *to[TURNS]; /* found while the lines are on their way */
#pragma unroll
    for (unsigned k = 0; k < TURNS; k++) {
        unsigned i = t + k * THREADS < LINES ? t + k * THREADS : t;
        from[k] = rows + i, to[k] = place_of_line(m, i);
    }
    receive_lines<TURNS>(from, round, lines);
#pragma unroll
    for (unsigned k = 0; k < TURNS; k++) {
        if (t + k * THREADS < LINES)
            to[k][0] = low_of(lines[k].x), to[k][1] = high_of(lines[k].x), to[k][2] = low_of(lines[k].y);
    }
    __syncthreads();
}
static_assert(LINES * sizeof(ulonglong2) == sizeof(mailbox::rows) &&
                  LINES_D3 * 3 * sizeof(float) == offsetof(struct rows, d3),
              "lines and numbers lie alike");

#endif
