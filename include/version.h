/* version.h - what was built from what. */
#ifndef DTRAIN_VERSION_H
#define DTRAIN_VERSION_H

extern const char version_number[];   /* "0.9.0" */
extern const char version_revision[]; /* git describe --always --dirty, or "unknown" */
extern const char version_build[];    /* compiler and target: "gcc -march=native" */

#endif
