/* safetensors: what is written is read back, what others write is read, and damage is always found. */
#include <sys/stat.h>

#include <xxhash.h>

#include "scratch.h"
#include "src/files/safetensors.h"

static const char PATH[] = "it's a \"file\".safetensors";

/* --- files of our own ------------------------------------------------------------------------------- */

static float weight[2][3] = {{1.5f, -2, 3e-42f}, {4, 1e38f, -0.0f}}, bias[1] = {7};
static const struct tensor tensors[] = {
    {"weight", 2, {2, 3}, 6, weight[0]},
    {"bi\"as\\ \xc3\xa9", 1, {1}, 1, bias},
    {"none", 1, {0}, 0, bias},
};
static const struct metadata metadata[] = {{"format", "pt"}, {"a \"key\"\n", "\xe2\x82\xac\\ \t"}};

static void write_sample(void)
{
    struct error error = {0};
    safetensors_write(&here, PATH, NULL, tensors, 3, metadata, 2, &error);
    assert_no_error(&error);
}

static void test_written_is_read_back(void **state)
{
    (void)state;
    struct error error = {0};
    write_sample();
    struct safetensors *file = safetensors_open(PATH, &error);
    assert_no_error(&error);
    for (size_t i = 0; i < 3; i++) {
        float values[6] = {0};
        struct tensor want = tensors[i];
        want.data = values;
        assert_true(safetensors_read(file, &want, &error));
        assert_memory_equal(values, tensors[i].data, tensors[i].count * sizeof(float));
    }
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(safetensors_metadata(file, metadata[i].key), metadata[i].value);
    assert_null(safetensors_metadata(file, "Format"));
    assert_non_null(safetensors_metadata(file, "checksum"));
    safetensors_close(file);
}

static void test_data_starts_at_a_multiple_of_8(void **state)
{
    (void)state;
    struct error error = {0};
    char value[9] = "";
    for (size_t n = 0; n < 8; n++) { /* headers of every length modulo 8 */
        struct metadata entry = {"x", value};
        size_t bytes;
        uint64_t header;
        assert_true(safetensors_write(&here, PATH, NULL, tensors, 3, &entry, 1, &error));
        char *file = scratch_read(PATH, &bytes);
        memcpy(&header, file, 8);
        assert_int_equal(header % 8, 0);
        assert_int_equal(bytes, 8 + header + 28);
        assert_memory_equal(file + 8 + header, weight, sizeof weight);
        for (char *pad = strrchr(file + 8, '}') + 1; pad < file + 8 + header; pad++)
            assert_int_equal(*pad, ' ');
        free(file);
        value[n] = 'v';
    }
}

static void test_checksum_is_as_documented(void **state)
{
    (void)state;
    static const char start[] = "{\"__metadata__\":{\"checksum\":\"";
    size_t bytes;
    char digits[17];
    write_sample();
    char *file = scratch_read(PATH, &bytes), *field = file + 8 + strlen(start);
    assert_memory_equal(file + 8, start, strlen(start));
    memcpy(digits, field, 16);
    digits[16] = '\0';
    memset(field, '0', 16);
    assert_int_equal(strtoull(digits, NULL, 16), XXH64(file, bytes, 0));
    free(file);
}

/* --- damage ----------------------------------------------------------------------------------------- */

static void test_every_flipped_bit_is_found(void **state)
{
    (void)state;
    size_t bytes;
    write_sample();
    char *file = scratch_read(PATH, &bytes);
    FILE *stream = fopen(PATH, "r+b");
    setbuf(stream, NULL);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        struct error error = {0};
        fseek(stream, (long)(bit / 8), SEEK_SET);
        putc(file[bit / 8] ^ 1 << bit % 8, stream);
        struct safetensors *opened = safetensors_open(PATH, &error);
        if (opened) /* the flip hit the word "checksum": at least it does not claim to be verified */
            assert_null(safetensors_metadata(opened, "checksum"));
        else
            assert_error(&error, EXIT_INPUT, PATH);
        safetensors_close(opened);
        fseek(stream, (long)(bit / 8), SEEK_SET);
        putc(file[bit / 8], stream);
    }
    fclose(stream);
    free(file);
}

/* --- files of others -------------------------------------------------------------------------------- */

/* A file of this header and `data_bytes` bytes of data 0, 1, 2, ... */
static void craft(const char *header, size_t data_bytes)
{
    uint64_t length = strlen(header);
    FILE *file = fopen(PATH, "wb");
    assert_non_null(file);
    fwrite(&length, 8, 1, file);
    fputs(header, file);
    for (size_t i = 0; i < data_bytes; i++)
        putc((int)i, file);
    assert_int_equal(fclose(file), 0);
}

#define ENTRY(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *complaint;
} bad_headers[] = {
    {"", 0, "no JSON object (byte 8)"},
    {"[1, 2]", 0, "no JSON object"},
    {" {}", 0, "no JSON object"},
    {"{} x", 0, "no JSON object (byte 11)"},
    {"{\"a\":" ENTRY("F32", "1", "0,4"), 4, "no JSON object"},
    {"{\"a\":3}", 0, "'a' lacks a dtype, a shape or data_offsets"},
    {"{\"a\":null}", 0, "'a' lacks"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "'a' lacks"},
    {"{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "'a' lacks"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "'a' lacks"},
    {"{\"a\":" ENTRY("F32", "1", "0") "}", 4, "'a' lacks"},
    {"{\"a\":" ENTRY("F32", "1", "0,2,4") "}", 4, "'a' lacks"},
    {"{\"a\":" ENTRY("F32", "1", "0,4") ",\"a\":" ENTRY("F32", "1", "0,4") "}", 4, "names 'a' twice"},
    {"{\"a\":" ENTRY("F32", "1", "-4,0") "}", 4, "data_offsets of 'a' do not lie within the 4 bytes"},
    {"{\"a\":" ENTRY("F32", "1", "4,0") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "2", "0,8") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "1", "0.5,4.5") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "1", "\"0\",4") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "1", "18446744073709551612,4") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "1", "0,1e999") "}", 4, "data_offsets of 'a'"},
    {"{\"a\":" ENTRY("F32", "2", "0,4") "}", 4, "'a' needs 8 bytes for its shape and has 4"},
    {"{\"a\":" ENTRY("F32", "-1", "0,4") "}", 4, "'a' has an impossible shape"},
    {"{\"a\":" ENTRY("F32", "0.25,4", "0,4") "}", 4, "'a' has an impossible shape"},
    {"{\"a\":" ENTRY("F32", "[1]", "0,4") "}", 4, "'a' has an impossible shape"},
    {"{\"a\":" ENTRY("F32", "4294967296,4294967296,4294967297", "0,4") "}", 4, "impossible shape"},
    {"{\"a\":" ENTRY("F32", "4611686018427387905", "0,4") "}", 4, "impossible shape"},
    {"{\"a\":" ENTRY("F32", "2", "0,8") ",\"b\":" ENTRY("F32", "1", "4,8") "}", 8,
     "'b' begins at byte 4 of the data, where 8 would follow"},
    {"{\"a\":" ENTRY("F32", "1", "0,4") ",\"b\":" ENTRY("F32", "1", "0,4") "}", 4, "begins at byte 0"},
    {"{\"a\":" ENTRY("F32", "1", "0,4") ",\"b\":" ENTRY("F32", "1", "8,12") "}", 12, "'b' begins at byte 8"},
    {"{\"a\":" ENTRY("F32", "1", "4,8") "}", 8, "'a' begins at byte 4"},
    {"{\"a\":" ENTRY("F32", "1", "0,4") "}", 8, "has 8 bytes of data, but tensors for 4"},
    {"{}", 1, "has 1 bytes of data, but tensors for 0"},
    {"{\"a\":" ENTRY("F16", "2", "0,4") ",\"b\":" ENTRY("F16", "2", "2,6") "}", 6, "'b' begins at byte 2"},
    {"{\"__metadata__\":\"text\"}", 0, "__metadata__ is no object of strings"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is no object of strings"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "names 'a' twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "names '__metadata__' twice"},
    {"{\"__metadata__\":{\"a\":\"1\",\"checksum\":\"0000000000000000\"}}", 0, "cannot be verified"},
    {"{\"__metadata__\":{\"checksum\":\"0000000000000000\"}}", 0, "damaged: its bytes have checksum"},
    {"{\"__metadata__\":{\"checksum\":\"\"}}", 0, "cannot be verified"},
};

/* Of the file at PATH. */
static void truncate_to_nothing(void)
{
    size_t bytes;
    free(scratch_read(PATH, &bytes));
    while (bytes-- > 0) {
        struct error error = {0};
        assert_int_equal(truncate(PATH, (off_t)bytes), 0);
        assert_null(safetensors_open(PATH, &error));
        assert_error(&error, EXIT_INPUT, PATH);
    }
}

static void test_every_truncation_is_found(void **state)
{
    (void)state;
    write_sample();
    truncate_to_nothing();
    craft("{\"a\":" ENTRY("F32", "2", "0,8") "}", 8); /* without a checksum */
    truncate_to_nothing();
}

static void test_hostile_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_headers / sizeof *bad_headers; i++) {
        struct error error = {0};
        craft(bad_headers[i].header, bad_headers[i].data_bytes);
        if (safetensors_open(PATH, &error))
            fail_msg("accepted: %s", bad_headers[i].header);
        assert_error(&error, EXIT_INPUT, bad_headers[i].complaint);
    }
}

static void test_deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { DEPTH = 300000 };
    struct error error = {0};
    char *header = calloc(1, DEPTH + 6);
    memcpy(header, "{\"a\":", 5);
    memset(header + 5, '[', DEPTH);
    craft(header, 0);
    assert_null(safetensors_open(PATH, &error));
    assert_error(&error, EXIT_INPUT, "no JSON object");
    free(header);
}

static void test_header_lengths_beyond_the_file_are_refused(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {3, 1 << 20, (1 << 20) + 1, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct error error = {0};
        char file[10] = "????????{}";
        memcpy(file, &lengths[i], 8);
        scratch_write(PATH, file, sizeof file);
        assert_null(safetensors_open(PATH, &error));
        assert_error(&error, EXIT_INPUT, "announces a header of");
    }
}

static void test_files_that_are_too_large(void **state)
{
    (void)state;
    struct error error = {0};
    uint64_t length = 100000001;
    scratch_write(PATH, &length, 8);
    assert_int_equal(truncate(PATH, 100000100), 0); /* sparse */
    assert_null(safetensors_open(PATH, &error));
    assert_error(&error, EXIT_INPUT, "has a header of 100000001 bytes, and none over 1048576 is read");
    assert_int_equal(truncate(PATH, (1l << 30) + 1), 0);
    assert_null(safetensors_open(PATH, &error));
    assert_error(&error, EXIT_INPUT, "no file over 1073741824 is read");
}

static void test_what_is_no_file(void **state)
{
    (void)state;
    struct error error = {0};
    assert_null(safetensors_open("absent", &error));
    assert_error(&error, EXIT_INPUT, "absent: cannot be read: No such file or directory");
    assert_null(safetensors_open(".", &error));
    assert_error(&error, EXIT_INPUT, ".: not a regular file");
    assert_int_equal(mkfifo("pipe", 0600), 0);
    assert_null(safetensors_open("pipe", &error));
    assert_error(&error, EXIT_INPUT, "pipe: not a regular file");
}

static void test_any_order_without_gaps_is_read(void **state)
{
    (void)state;
    struct error error = {0};
    static const char header[] = "{\"b\" : " ENTRY("F32", "2,1", "4, 12") ", \"half\":" ENTRY(
        "F16", "3", "12,18") ",\n\"a\":" ENTRY("F32", "", "0,4") ",\"empty\":" ENTRY("F32", "7,0", "4,4") "}   ";
    craft(header, 18);
    struct safetensors *file = safetensors_open(PATH, &error);
    assert_no_error(&error);
    float a, b[2];
    assert_true(safetensors_read(file, &(struct tensor){"a", 0, {0}, 1, &a}, &error));
    assert_true(safetensors_read(file, &(struct tensor){"b", 2, {2, 1}, 2, b}, &error));
    assert_memory_equal(&a, "\0\1\2\3", 4);
    assert_memory_equal(b, "\4\5\6\7\10\11\12\13", 8);

    assert_false(safetensors_read(file, &(struct tensor){"c", 1, {1}, 1, b}, &error));
    assert_error(&error, EXIT_INPUT, "has no tensor 'c'");
    assert_false(safetensors_read(file, &(struct tensor){"half", 1, {3}, 3, b}, &error));
    assert_error(&error, EXIT_INPUT, "tensor 'half' is F16, but only F32 is read");
    assert_false(safetensors_read(file, &(struct tensor){"b", 1, {2}, 2, b}, &error));
    assert_error(&error, EXIT_INPUT, "tensor 'b' has shape [2,1], but [2] is needed");
    assert_false(safetensors_read(file, &(struct tensor){"b", 4, {1, 2, 1, 1}, 2, b}, &error));
    assert_error(&error, EXIT_INPUT, "tensor 'b' has shape [2,1], but [1,2,1,1] is needed");
    safetensors_close(file);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)
    const struct CMUnitTest tests[] = {
        TEST(test_written_is_read_back),           TEST(test_data_starts_at_a_multiple_of_8),
        TEST(test_checksum_is_as_documented),      TEST(test_every_flipped_bit_is_found),
        TEST(test_every_truncation_is_found),      TEST(test_hostile_headers_are_refused),
        TEST(test_deep_nesting_is_refused),        TEST(test_header_lengths_beyond_the_file_are_refused),
        TEST(test_files_that_are_too_large),       TEST(test_what_is_no_file),
        TEST(test_any_order_without_gaps_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
