#include <stddef.h>
struct variant { const void *kernel; size_t shared, exchange; int cluster, stamps; };
