/* keep_plugins.c - in place of the C library's dlclose, in DEBUG builds: Open MPI unloads its plugins at the
 * end, and a leak whose code is gone cannot be told from one of ours. */
#include <dlfcn.h>

int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
