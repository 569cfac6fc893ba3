/* synthetic.h - a stand-in for CIFAR-10 that needs no download: `--data synthetic[:TRAIN+TEST]`.
 *
 * Drawn pictures in CIFAR-10's layout. Sample i of either set is of class i % 10: a disc, ring, square,
 * frame, triangle, cross, two bars, a T, a half disc, an hourglass. Its place, size, angle, colour,
 * background, the clutter behind it, the bars before it and the grain are chance; each class has a colour
 * that it is more often near. Every label is right.
 *
 * Calibrated to be as hard as CIFAR-10. Train / test accuracy in % of the full set (seed 1, otherwise the
 * defaults; in brackets CIFAR-10's, a JPEG copy) after
 *          10 epochs                   40 epochs                   180 epochs
 *   net A  66.2 / 62.4 (64.1 / 60.3)   84.0 / 65.3 (85.6 / 62.8)   100.0 / 64.1
 *   net D  29.3 / 28.5 (28.3 / 28.8)   37.3 / 37.4 (40.4 / 40.5)    44.5 / 43.6
 */
#ifndef DTRAIN_SYNTHETIC_H
#define DTRAIN_SYNTHETIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Reads "synthetic" (50,000 + 10,000) or "synthetic:TRAIN+TEST". Returns false and leaves *error alone
 * when the text is not about synthetic data at all; false with *error set (EXIT_USAGE) when it is and
 * the sizes are bad (TRAIN: a multiple of 5, 5..1,000,000; TEST: 1..1,000,000). A directory of that
 * name is ./synthetic. */
bool synthetic_parse(const char *text, size_t *train, size_t *test, struct error *error);

/* Makes the set once in the user's cache (dtrain/synthetic-TRAIN-TEST) and gives its directory. One that is there is
 * used if its pictures have the digest that lies beside them; damaged or incomplete it is drawn anew, and that is said.
 * Complete or absent: written aside, synced and renamed, safe when several processes make it at once; what killed ones
 * left is removed. 60,000 pictures take about two seconds. Errors (EXIT_RUNTIME: no space, no permission) leave nothing
 * behind. May block for long. */
bool synthetic_make(size_t train, size_t test, char directory[4096], struct error *error);

/* The directory that synthetic_make makes. Fails as cache_path does. */
bool synthetic_find(size_t train, size_t test, char directory[4096], struct error *error);

/* Draws record `index` of a set: 3,073 bytes as in dataset.h, a pure function of (test_set, index), the
 * same on every machine. */
void synthetic_draw(bool test_set, uint32_t index, uint8_t *record);

#endif
