/* synthetic.h - a stand-in for CIFAR-10 that needs no download: `--data synthetic[:TRAIN+TEST]`.
 *
 * Ten classes of procedurally drawn, jittered, noisy pictures in CIFAR-10's layout; each picture is a
 * pure function of (set, index), so every machine makes the same bytes. Hard enough that net A fits
 * the training set and overfits visibly and net D learns more slowly.
 */
#ifndef DTRAIN_SYNTHETIC_H
#define DTRAIN_SYNTHETIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Reads "synthetic" (50,000 + 10,000) or "synthetic:TRAIN+TEST". Returns false and leaves *error alone
 * when the text is not about synthetic data at all; false with *error set (EXIT_USAGE) when it is and
 * the sizes are bad (TRAIN: a multiple of 5, 5..1,000,000; TEST: 1..1,000,000). */
bool synthetic_parse(const char *text, size_t *train, size_t *test, struct error *error);

/* Makes the set once in the user's cache (dtrain/synthetic-TRAIN-TEST) and gives its directory; a set
 * already there is used. Complete or absent: written aside and renamed, safe when several processes
 * make it at once. */
bool synthetic_make(size_t train, size_t test, char directory[4096], struct error *error);

/* Draws record `index` of a set: 3,073 bytes as in dataset.h. */
void synthetic_draw(bool test_set, uint32_t index, uint8_t *record);

#endif
