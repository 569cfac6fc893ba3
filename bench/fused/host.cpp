/* The fused step on the host, all blocks at once, against the double-precision reference.
 *   ./test [net A..D] [groups] [batch] [steps] [order of threads] */
#include "fused.cuh"
extern "C" {
#include "kernels/reference/reference.h"
#include "include/masks.h"
#include "include/lenet5.h"
}
extern "C" void cpu_steps(const uint8_t *, const uint32_t *, float *, float *, const masks *, uint64_t, unsigned,
                          unsigned, float, float, int64_t *);
#include <vector>
struct job { fused_nets nets; };
static void thread(void *j) { fused_train(((job *)j)->nets); }
static uint64_t rng = 88172645463325252ull;
static uint64_t next() { rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17; return rng; }
int main(int argc, char **argv)
{
    char name = argc > 1 ? argv[1][0] : 'D';
    unsigned groups = argc > 2 ? atoi(argv[2]) : 2, batch = argc > 3 ? atoi(argv[3]) : 32,
             steps = argc > 4 ? atoi(argv[4]) : 1, order_kind = argc > 5 ? atoi(argv[5]) : 0,
             tail = argc > 6 ? atoi(argv[6]) : 0;
    const net *net = nullptr;
    for (int i = 0; i < NETS; i++)
        if (lenet5_nets[i].name == name)
            net = &lenet5_nets[i];
    unsigned last = steps * batch + tail, all_steps = steps + (tail > 0), step0 = 12345;
    masks masks = masks_make(7, net->p_conv, net->p_fc);
    std::vector<float> w(LENET5_WEIGHTS), v(LENET5_WEIGHTS);
    lenet5_initialise(5, w.data());
    for (auto &x : v) x = 0.01f * ((float)(next() >> 40) * 0x1p-24f - 0.5f);
    std::vector<float> cw(w), cv;
    cv = v;
    std::vector<double> rw(w.begin(), w.end()), rv(v.begin(), v.end());
    std::vector<uint8_t> records((size_t)last * RECORD);
    std::vector<uint32_t> order(last);
    for (unsigned i = 0; i < last; i++) order[i] = (i * 7 + 3) % last;
    /* smooth pictures, so that nothing hangs on a hair; samples too near a decision are drawn anew */
    unsigned redrawn = 0;
    for (unsigned i = 0; i < last; i++)
        for (;;) {
            unsigned place = 0;
            for (unsigned p = 0; p < last; p++) if (order[p] == i) place = p;
            uint8_t *r = &records[(size_t)i * RECORD];
            r[0] = next() % 10;
            for (int p = 0; p < 3072; p++) r[1 + p] = (uint8_t)next();
            sample_mask mask;
            unsigned step = place / batch;
            masks_draw(&masks, step0 + step, place % batch, 1, &mask);
            if (reference_margin(rw.data(), &masks, r, &mask) > 2e-6) break; /* under the first weights only */
            redrawn++;
        }
    std::vector<int64_t> sums(3 * SUMS_COUNT, 0);
    fused_state state = {};
    std::vector<float> small(groups * SMALL);
    exchange *mail = (struct exchange *)calloc(groups * RANKS, sizeof(mailbox));
    std::vector<unsigned> arrived((1 + groups) * PAD);
    job j = {};
    fused &f = j.nets.net[0];
    j.nets.count = 1;
    f.records = records.data(), f.order = order.data(), f.weights = w.data(), f.velocity = v.data(),
    f.sums = sums.data(), f.state = &state;
    f.small = small.data(), f.mail = mail, f.arrived = arrived.data(), f.seed = 7, f.step = step0;
    for (int l = 0; l < 4; l++) f.threshold[l] = philox_threshold(masks.p[l]), f.scale[l] = masks.scale[l];
    f.momentum = 0.9f, f.learning_rate = 0.01f, f.position = 0, f.last = last, f.batch = batch, f.groups = groups;
    int32_t wish = getenv("STOP") != nullptr;
    f.stop = &wish;
    if (getenv("NAN_AT"))
        w[atoi(getenv("NAN_AT"))] = NAN;
    unsigned others = argc > 7 ? atoi(argv[7]) : 0, seed = argc > 8 ? atoi(argv[8]) : 7;
    f.seed = seed;
    std::vector<std::vector<float>> ow(others, w), ov(others, v), osmall(others, small);
    std::vector<std::vector<int64_t>> osums(others, sums);
    std::vector<std::vector<unsigned>> oarrived(others, arrived);
    std::vector<fused_state> ostate(others);
    for (unsigned i = 0; i < others; i++) {
        fused &g = j.nets.net[1 + i];
        g = f, g.seed = seed + 1 + i, g.weights = ow[i].data(), g.velocity = ov[i].data(), g.small = osmall[i].data(),
        g.sums = osums[i].data();
        g.arrived = oarrived[i].data(), g.state = &ostate[i], g.first_block = (1 + i) * groups * RANKS,
        g.mail = (struct exchange *)calloc(groups * RANKS, sizeof(mailbox));
    }
    j.nets.count = 1 + others;
    shim_run((1 + others) * groups * RANKS, THREADS, sizeof(memory), order_kind, thread, &j);

    printf("applied %u of %u, stopped %u, not finite %u, mean loss %.4f\n", state.applied, all_steps, state.stopped,
           state.not_finite, state.loss * EXACT_UNIT / (state.applied ? state.applied * batch : 1));
    double rloss = 0, worst = 0;
    std::vector<double> g(LENET5_WEIGHTS);
    for (unsigned s = 0; s < all_steps; s++) {
        unsigned first = s * batch, n = last - first < batch ? last - first : batch;
        std::vector<const uint8_t *> rec(n);
        std::vector<sample_mask> ms(n);
        for (unsigned i = 0; i < n; i++) rec[i] = &records[(size_t)order[first + i] * RECORD];
        masks_draw(&masks, step0 + s, 0, n, ms.data());
        std::fill(g.begin(), g.end(), 0.0);
        rloss = reference_gradient(rw.data(), &masks, n, rec.data(), ms.data(), g.data());
        for (int i = 0; i < LENET5_WEIGHTS; i++) rv[i] = 0.9f * rv[i] + g[i] / n, rw[i] -= 0.01f * rv[i];
    }
    /* the last step's gradient, by tensor */
    const int64_t *last_sums = &sums[(all_steps - 1) % 3 * SUMS_COUNT];
    std::vector<double> got(LENET5_WEIGHTS);
    for (unsigned r = 0; r < RANKS; r++)
        for (unsigned e = 0; e < SLICE3; e++) got[canonical3(r, e)] = last_sums[r * SLICE3 + e] * EXACT_UNIT;
    for (unsigned k = 0; k < SMALL; k++)
        if (canonical_small(k) >= 0) got[canonical_small(k)] = last_sums[SUMS_SMALL + k] * EXACT_UNIT;
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        const parameter &q = lenet5_parameters[p];
        double d = 0, n = 0, dw = 0, nw = 0, dv = 0, nv = 0;
        for (size_t i = q.offset; i < q.offset + q.count; i++) {
            d += (got[i] - g[i]) * (got[i] - g[i]), n += g[i] * g[i];
            dw += (w[i] - rw[i]) * (w[i] - rw[i]), nw += rw[i] * rw[i];
            dv += (v[i] - rv[i]) * (v[i] - rv[i]), nv += rv[i] * rv[i];
        }
        double e = sqrt(d / n);
        worst = !(e <= worst) ? e : worst;
        printf("%-14s |g| %9.3e  gradient %8.2e  weights %8.2e  velocity %8.2e\n", q.name, sqrt(n), e, sqrt(dw / nw),
               sqrt(dv / nv));
    }
    if (state.applied != all_steps || state.not_finite || state.stopped) {
        printf("applied %u\n", state.applied);
        return 1;
    }
    printf("net %c, %u groups, batch %u, %u steps + tail %u, order %u, %u redrawn: loss %.7f reference %.7f, refused "
           "%lld, digest %016llx, worst %.2e\n",
           name, groups, batch, steps, tail, order_kind, redrawn, last_sums[SUMS_LOSS] * EXACT_UNIT, rloss,
           (long long)last_sums[SUMS_REFUSED], (unsigned long long)lenet5_digest(w.data()), worst);
    int64_t closs;
    cpu_steps(records.data(), order.data(), cw.data(), cv.data(), &masks, step0, last, batch, 0.01f, 0.9f, &closs);
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        const parameter &q = lenet5_parameters[p];
        size_t dw = 0, dv = 0;
        for (size_t i = q.offset; i < q.offset + q.count; i++)
            dw += memcmp(&w[i], &cw[i], 4) != 0, dv += memcmp(&v[i], &cv[i], 4) != 0;
        printf("CPU engine, %-14s of %5zu: weights that differ %5zu, momentum %5zu\n", q.name, q.count, dw, dv);
    }
    printf("CPU engine: digest %016llx, fused %016llx, %s; momentum %s; loss sums of the last step %lld %lld\n",
           (unsigned long long)lenet5_digest(cw.data()), (unsigned long long)lenet5_digest(w.data()),
           cw == w ? "EQUAL" : "different", cv == v ? "EQUAL" : "different", (long long)closs,
           (long long)last_sums[SUMS_LOSS]);
    for (unsigned i = 0; i < others; i++)
        printf("beside it, seed %u: digest %016llx\n", seed + 1 + i, (unsigned long long)lenet5_digest(ow[i].data()));
    return !(worst < 1e-4);
}
