#include "version.h"

const char version_revision[] = DTRAIN_REVISION;
const char version_build[] = DTRAIN_BUILD;
