/* Which rank gets which GPU, when NCCL can work, and what is said of bindings that go wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "devices.h"

enum { MOST = 16 };

/* A rank on `host` that sees `visible` of the host's `present` GPUs and uses number `gpu` of the host. */
static struct device rank_on(const char *host, int gpu, int index, int visible, int present)
{
    struct device device = {.visible = visible, .present = present, .index = index, .name = "NVIDIA H200"};
    snprintf(device.host, sizeof device.host, "%s", host);
    snprintf(device.uuid, sizeof device.uuid, "GPU-%s-%d", host, gpu);
    snprintf(device.bus, sizeof device.bus, "0000:%02x:00.0", gpu);
    return device;
}

/* Ranks that see all of a host's GPUs. */
static int fill_host(struct device *all, const char *host, int ranks, int gpus)
{
    for (int slot = 0; slot < ranks; slot++) {
        int index = devices_index(slot, gpus);
        all[slot] = rank_on(host, index, index, gpus, gpus);
    }
    return ranks;
}

static void expect_apart(const struct device *all, int count, bool expected, const char *words)
{
    char why[300];
    assert_int_equal(devices_are_apart(all, count, why, sizeof why), expected);
    if (strstr(why, words) == NULL)
        fail_msg("\"%s\" lacks \"%s\"", why, words);
}

static void expect_advice(const struct device *all, int count, const char *words)
{
    char text[400];
    devices_advice(all, count, text, sizeof text);
    if (words == NULL)
        assert_string_equal(text, "");
    else if (strstr(text, words) == NULL)
        fail_msg("\"%s\" lacks \"%s\"", text, words);
}

static void test_slots_go_round_the_gpus(void **state)
{
    (void)state;
    static const int expected[] = {0, 1, 2, 0, 1, 2, 0};
    for (int slot = 0; slot < 7; slot++)
        assert_int_equal(devices_index(slot, 3), expected[slot]);
    assert_int_equal(devices_index(5, 1), 0);
    assert_int_equal(devices_index(0, 0), -1);
}

static void test_a_gpu_each_suits_nccl(void **state)
{
    (void)state;
    struct device all[MOST];
    int count = fill_host(all, "a", 4, 4);
    expect_apart(all, count, true, "a GPU of its own");
    expect_advice(all, count, NULL);
    count += fill_host(all + count, "b", 4, 4); /* the same numbers on another host are other GPUs */
    expect_apart(all, count, true, "a GPU of its own");
    expect_advice(all, count, NULL);
}

static void test_a_shared_gpu_is_named(void **state)
{
    (void)state;
    struct device all[MOST];
    int count = fill_host(all, "a", 2, 2);
    count += fill_host(all + count, "b", 3, 2);
    expect_apart(all, count, false, "ranks 2 and 4 share one GPU of host b (0000:00:00.0)");
    expect_apart(all, count, false, "start no more ranks than GPUs");
    expect_apart(all, count, false, "--comm mpi");
    expect_advice(all, count, "3 ranks of host b share 2 GPUs: start no more ranks than GPUs there");
}

static void test_a_rank_without_gpu_is_named(void **state)
{
    (void)state;
    struct device all[MOST];
    int count = fill_host(all, "a", 2, 2);
    all[count] = rank_on("b", 0, -1, 0, 0);
    snprintf(all[count].why, sizeof all[count].why, "no NVIDIA driver");
    expect_apart(all, count + 1, false, "rank 2 on host b has no GPU (no NVIDIA driver)");
    char line[300];
    devices_line(all, 2, line, sizeof line);
    assert_string_equal(line, "rank 2  b  no GPU: no NVIDIA driver");
}

/* Bound one to one by the launcher, every rank sees its GPU as number 0. */
static void test_one_gpu_seen_by_each(void **state)
{
    (void)state;
    struct device all[MOST];
    for (int i = 0; i < 4; i++)
        all[i] = rank_on("a", i, 0, 1, 4);
    expect_apart(all, 4, true, "a GPU of its own");
    expect_advice(all, 4, NULL);
    char line[300];
    devices_line(all, 3, line, sizeof line);
    assert_string_equal(line, "rank 3  a  GPU 0 of 1  NVIDIA H200  GPU-a-3");
}

/* Bound wrongly, all see the same one. */
static void test_the_same_gpu_seen_by_all(void **state)
{
    (void)state;
    struct device all[MOST];
    int count = fill_host(all, "a", 4, 4);
    for (int i = 0; i < 4; i++)
        all[count + i] = rank_on("b", 0, 0, 1, 4);
    count += 4;
    expect_apart(all, count, false, "ranks 4 and 5 share");
    expect_advice(all, count, "all 4 ranks of host b see the same single GPU of its 4: ask SLURM for --gpus-per-node");
    for (int i = 4; i < count; i++)
        snprintf(all[i].visible_list, sizeof all[i].visible_list, "0");
    expect_advice(all, count, "by CUDA_VISIBLE_DEVICES=0: unset it");
}

static void test_some_gpus_left_out(void **state)
{
    (void)state;
    struct device all[MOST];
    for (int i = 0; i < 4; i++)
        all[i] = rank_on("a", i % 2, i % 2, 2, 8);
    expect_advice(all, 4, "4 ranks of host a share 2 of its 8 GPUs: ask the launcher for 4 GPUs");
    for (int i = 0; i < 4; i++)
        all[i].present = 0; /* unknown */
    expect_advice(all, 4, "4 ranks of host a share 2 GPUs: start no more");
}

/* One process posing as several hosts, as tests of NCCL on one GPU do. */
static void test_hosts_are_told_apart_as_nccl_does(void **state)
{
    (void)state;
    struct device all[2] = {rank_on("pose-0", 0, 0, 1, 1), rank_on("pose-1", 0, 0, 1, 1)};
    snprintf(all[0].uuid, sizeof all[0].uuid, "GPU-same");
    snprintf(all[1].uuid, sizeof all[1].uuid, "GPU-same");
    expect_apart(all, 2, true, "a GPU of its own");
}

/* By MIG: each has a UUID of its own, but the card has one address. */
static void test_slices_of_a_card_are_one_gpu(void **state)
{
    (void)state;
    struct device all[2] = {rank_on("a", 0, 0, 2, 1), rank_on("a", 0, 1, 2, 1)};
    snprintf(all[1].uuid, sizeof all[1].uuid, "GPU-a-another");
    expect_apart(all, 2, false, "ranks 0 and 1 share one GPU of host a (0000:00:00.0)");
}

static void test_long_texts_are_cut(void **state)
{
    (void)state;
    struct device all[MOST];
    char text[20];
    int count = fill_host(all, "a-host-with-a-long-name", 3, 2);
    assert_false(devices_are_apart(all, count, text, sizeof text));
    assert_int_equal(strlen(text), sizeof text - 1);
    devices_line(all, 0, text, sizeof text);
    assert_int_equal(strlen(text), sizeof text - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_go_round_the_gpus),      cmocka_unit_test(test_a_gpu_each_suits_nccl),
        cmocka_unit_test(test_a_shared_gpu_is_named),        cmocka_unit_test(test_a_rank_without_gpu_is_named),
        cmocka_unit_test(test_one_gpu_seen_by_each),         cmocka_unit_test(test_the_same_gpu_seen_by_all),
        cmocka_unit_test(test_some_gpus_left_out),           cmocka_unit_test(test_hosts_are_told_apart_as_nccl_does),
        cmocka_unit_test(test_slices_of_a_card_are_one_gpu), cmocka_unit_test(test_long_texts_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
