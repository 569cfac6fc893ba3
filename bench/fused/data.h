/* What host and device are given: the same pictures, order, weights, seeds. */
#include <stdint.h>
#include <vector>
enum { RECORDS = 4096 };
static uint64_t data_rng = 88172645463325252ull;
static uint64_t data_next()
{
    data_rng ^= data_rng << 13, data_rng ^= data_rng >> 7, data_rng ^= data_rng << 17;
    return data_rng;
}
struct data { std::vector<uint8_t> records; std::vector<float> w, v; };
static data data_make()
{
    data d;
    d.records.resize((size_t)RECORDS * 3073);
    for (auto &x : d.records) x = (uint8_t)data_next();
    for (int i = 0; i < RECORDS; i++) d.records[(size_t)i * 3073] = data_next() % 10;
    d.w.resize(LENET5_WEIGHTS), d.v.assign(LENET5_WEIGHTS, 0.f);
    lenet5_initialise(5, d.w.data());
    return d;
}
static std::vector<uint32_t> data_order(size_t n)
{
    std::vector<uint32_t> o(n);
    for (size_t i = 0; i < n; i++) o[i] = (uint32_t)(i * 1 % RECORDS);
    return o;
}
enum { SEED = 7, STEP0 = 12345, BATCH = 256 };
static const float LR = 0.01f, KEEP = 0.9f;
