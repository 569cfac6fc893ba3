/* In place of cuda_host.cpp where the tests' kernels run on a GPU: there is no choosing, and a test that asks
 * for several orders of blocks and threads checks that the same launch gives the same bits. */
#include "cuda_host.h"

#include "tests/support/together/together.h"

struct cuda_host cuda_host;
struct together together = {.is_device = 1};
