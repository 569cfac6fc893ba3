/* safetensors_format.h - what the writer and the reader of safetensors share. */
#ifndef DTRAIN_FILES_SAFETENSORS_FORMAT_H
#define DTRAIN_FILES_SAFETENSORS_FORMAT_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format's numbers are copied as they lie");

#define METADATA_NAME "__metadata__"

/* How a checksummed header starts: the field is found without a parser, whatever is damaged. */
#define CHECKSUM_START "{\"" METADATA_NAME "\":{\"checksum\":\""
enum {
    LENGTH_BYTES = 8, /* of the number in front of the header: its length */
    ALIGNMENT = 8,
    CHECKSUM_START_BYTES = sizeof CHECKSUM_START - 1,
    CHECKSUM_PLACE = LENGTH_BYTES + CHECKSUM_START_BYTES,
    CHECKSUM_DIGITS = 16,
};

/* xxh64 of a whole checksummed file, its checksum field taken as zeros. */
static inline void checksum_compute(unsigned char *bytes, size_t size, char digits[CHECKSUM_DIGITS + 1])
{
    unsigned char field[CHECKSUM_DIGITS];
    memcpy(field, bytes + CHECKSUM_PLACE, CHECKSUM_DIGITS);
    memset(bytes + CHECKSUM_PLACE, '0', CHECKSUM_DIGITS);
    snprintf(digits, CHECKSUM_DIGITS + 1, "%016" PRIx64, (uint64_t)XXH64(bytes, size, 0));
    memcpy(bytes + CHECKSUM_PLACE, field, CHECKSUM_DIGITS);
}

#endif
