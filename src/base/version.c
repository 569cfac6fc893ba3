#include "version.h"

const char version_number[] = "0.9.0"; /* CHANGELOG.md */
const char version_revision[] = DTRAIN_REVISION;
const char version_build[] = DTRAIN_BUILD;
