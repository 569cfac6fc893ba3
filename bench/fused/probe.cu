/* probe VERSION(o|x) CLUSTER(0|1) NET WORK...   VERSION o: the sketch (mended), x: digest's fused.diff.
 * WORK  check:GROUPS:STEPS     weights and momentum after STEPS against the host's
 *       time:GROUPS:BATCH:STEPS:NETS    us a step
 *       stamps:GROUPS:BATCH:STEPS       clocks by phase
 * GROUPS 0: as many as fit, at most 16. */
#include "fused.h"
#include "variant.h"
#include "include/exact_sum.h"
#include "include/philox.h"
extern "C" {
#include "include/masks.h"
#include "include/lenet5.h"
}
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <string>
#include "data.h"
extern "C" void cpu_steps(const uint8_t *, const uint32_t *, float *, float *, const masks *, uint64_t, unsigned,
                          unsigned, float, float, int64_t *);
#define EACH_VARIANT(X) VARIANTS
#define X(n) extern const variant info_##n;
EACH_VARIANT(X)
#undef X
static const variant *find(const std::string &name)
{
#define X(n) if (name == #n) return &info_##n;
    EACH_VARIANT(X)
#undef X
    printf("no variant %s\n", name.c_str()), exit(2);
    return nullptr;
}
#ifndef VARIANTS
#define VARIANTS
#endif
static unsigned *trouble; /* pinned [128][4] */
static double now() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void show_trouble()
{
    if (!trouble) return;
    int n = 0;
    for (int b = 0; b < 128; b++) {
        volatile unsigned *t = trouble + b * 4;
        if (t[0] && n++ < 12) printf("  block %d waited in vain for %u, found %u\n", b, t[1], t[2]);
    }
    printf("  %d blocks waited in vain\n", n);
}
#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        cudaError_t e_ = (x);                                                                                          \
        if (e_) {                                                                                                      \
            printf("FAULT %s: %s\n", #x, cudaGetErrorString(e_));                                                      \
            show_trouble();                                                                                            \
            fflush(stdout);                                                                                            \
            _exit(3);                                                                                                  \
        }                                                                                                              \
    } while (0)
template <typename T> static T *make(size_t n)
{
    T *p;
    CHECK(cudaMalloc((void **)&p, n * sizeof(T)));
    CHECK(cudaMemset(p, 0, n * sizeof(T)));
    return p;
}
template <typename T> static void put(T *to, const T *from, size_t n)
{
    CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyHostToDevice));
}
template <typename T> static void get(T *to, const T *from, size_t n)
{
    CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}

static std::string here;
static std::vector<uint32_t> order;
static uint32_t *dorder; static uint8_t *drecords; static long long *stamps;
static data D; static masks M; static char name; static char version; static int cluster, fit, sms;
static const variant *plain_, *stamped;

static bool config(const variant &v, unsigned blocks, bool cooperative, cudaLaunchConfig_t &c, cudaLaunchAttribute *at)
{
    c = {};
    c.gridDim = dim3(blocks), c.blockDim = dim3(THREADS), c.dynamicSmemBytes = v.shared, c.attrs = at, c.numAttrs = 0;
    if (v.cluster)
        at[c.numAttrs].id = cudaLaunchAttributeClusterDimension, at[c.numAttrs].val.clusterDim.x = RANKS,
        at[c.numAttrs].val.clusterDim.y = at[c.numAttrs].val.clusterDim.z = 1, c.numAttrs++;
    if (cooperative)
        at[c.numAttrs].id = cudaLaunchAttributeCooperative, at[c.numAttrs].val.cooperative = 1, c.numAttrs++;
    return true;
}
static float launch(const variant &v, const fused_nets &nets)
{
    for (unsigned i = 0; i < nets.count; i++) {
        CHECK(cudaMemset(nets.net[i].arrived, 0, (1 + nets.net[i].groups) * 32 * 4));
        CHECK(cudaMemset(nets.net[i].sums, 0, 3 * SUMS_COUNT * 8));
        CHECK(cudaMemset(nets.net[i].state, 0, sizeof(fused_state)));
        CHECK(cudaMemset(nets.net[i].mail, 0, v.exchange * nets.net[i].groups * RANKS));
    }
    CHECK(cudaMemset(stamps, 0, (128 + 64) * 32 * 8));
    static cudaEvent_t a, b;
    if (!a) { CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b)); }
    cudaLaunchConfig_t c; cudaLaunchAttribute at[2];
    unsigned blocks = nets.count * nets.net[0].groups * RANKS;
    void *args[] = {(void *)&nets};
    static int alone; /* cooperative launch refused once */
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventRecord(a));
    config(v, blocks, !alone, c, at);
    cudaError_t e = cudaLaunchKernelExC(&c, v.kernel, args);
    if (e && !alone) {
        printf("cooperative launch of %u blocks refused (%s); without the attribute\n", blocks, cudaGetErrorString(e));
        cudaGetLastError(), alone = 1;
        config(v, blocks, false, c, at);
        CHECK(cudaEventRecord(a));
        e = cudaLaunchKernelExC(&c, v.kernel, args);
    }
    CHECK(e);
    CHECK(cudaEventRecord(b));
    for (double end = now() + 5;;) {
        e = cudaEventQuery(b);
        if (e == cudaSuccess) break;
        if (e != cudaErrorNotReady) CHECK(e);
        if (now() > end) { printf("FAULT: a launch hangs for 5 s\n"); show_trouble(); fflush(stdout); _exit(4); }
        usleep(50);
    }
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    return ms;
}
struct run { fused_nets nets; };
static run prepare_run(const variant &v, unsigned groups, unsigned batch, unsigned steps, unsigned count)
{
    static run r; static unsigned have_groups, have_count; static size_t have_exchange;
    size_t n = (size_t)steps * batch;
    if (order.size() < n) {
        order = data_order(n);
        if (dorder) CHECK(cudaFree(dorder));
        dorder = make<uint32_t>(n);
        put(dorder, order.data(), n);
    }
    bool anew = have_groups < groups || have_count < count || have_exchange < v.exchange;
    if (anew) {
        have_groups = groups, have_count = count, have_exchange = v.exchange;
        for (unsigned i = 0; i < count; i++) { /* what was there before is left */
            fused &f = r.nets.net[i];
            f = {};
            f.weights = make<float>(LENET5_WEIGHTS), f.velocity = make<float>(LENET5_WEIGHTS),
            f.sums = make<int64_t>(3 * SUMS_COUNT);
            f.state = make<fused_state>(1), f.small = make<float>(groups * SMALL),
            f.mail = (struct exchange *)make<char>(v.exchange * groups * RANKS),
            f.arrived = make<unsigned>((1 + groups) * 32);
        }
    }
    r.nets.count = count;
    for (unsigned i = 0; i < count; i++) {
        fused &f = r.nets.net[i];
        f.records = drecords, f.order = dorder, f.stop = nullptr, f.trouble = trouble;
        f.seed = SEED + i, f.step = STEP0, f.momentum = KEEP, f.learning_rate = LR, f.position = 0,
        f.last = steps * batch, f.batch = batch, f.groups = groups, f.first_block = i * groups * RANKS;
        for (int l = 0; l < 4; l++) f.threshold[l] = philox_threshold(M.p[l]), f.scale[l] = M.scale[l];
        f.stamps = i == 0 ? stamps : nullptr;
        put(f.weights, D.w.data(), D.w.size()), put(f.velocity, D.v.data(), D.v.size());
    }
    return r;
}
static void compare(const char *what, const float *a, const float *b, unsigned steps)
{
    int first = -1; size_t all = 0;
    for (int p = 0; p < LENET5_PARAMETERS; p++) {
        const parameter &q = lenet5_parameters[p];
        size_t n = 0, at = 0; double most = 0, d2 = 0, b2 = 0, top = 0;
        for (size_t i = q.offset; i < q.offset + q.count; i++) {
            double d = fabs((double)a[i] - b[i]);
            if (memcmp(a + i, b + i, 4)) { if (!n++) at = i - q.offset; }
            if (!(d <= most)) most = d;
            if (fabs(b[i]) > top) top = fabs(b[i]);
            d2 += d * d, b2 += (double)b[i] * b[i];
        }
        all += n;
        if (n && first < 0) first = p;
        if (n)
            printf("    %s %-13s %5zu of %5zu differ, first at %5zu (%.9g, host %.9g); off by at most %.2e, by norm "
                   "%.2e relative, largest host number %.2e\n",
                   what, q.name, n, q.count, at, a[q.offset + at], b[q.offset + at], most, sqrt(d2 / b2), top);
    }
    if (first >= 0)
        printf("    %s after %u steps: %zu differ, first tensor %s\n", what, steps, all, lenet5_parameters[first].name);
}
static std::string expected(char v, char net, unsigned steps)
{
    char line[200], key[40]; std::string r;
    snprintf(key, sizeof key, "%c %c %u ", v, net, steps);
    FILE *f = fopen((here + "expected.txt").c_str(), "r");
    if (f) {
        while (fgets(line, sizeof line, f))
            if (!strncmp(line, key, strlen(key))) r = std::string(line + strlen(key), 16);
        fclose(f);
    }
    return r;
}
static void check(unsigned groups, unsigned steps)
{
    const variant &v = *plain_;
    run r = prepare_run(v, groups, BATCH, steps, 1);
    launch(v, r.nets);
    std::vector<float> w(LENET5_WEIGHTS), s(LENET5_WEIGHTS), hw(D.w), hv(D.v);
    get(w.data(), r.nets.net[0].weights, w.size()), get(s.data(), r.nets.net[0].velocity, s.size());
    fused_state st; get(&st, r.nets.net[0].state, 1);
    bool have = false; const char *whom = "stored host weights";
    if (version != 'o') {
        int64_t loss; whom = "CPU engine, run here";
        cpu_steps(D.records.data(), order.data(), hw.data(), hv.data(), &M, STEP0, steps * BATCH, BATCH, LR, KEEP,
                  &loss),
            have = true;
    } else {
        char path[64]; snprintf(path, sizeof path, "o-%c-%u.f32", name, steps);
        FILE *f = fopen((here + path).c_str(), "rb");
        if (f) {
            have = fread(hw.data(), 4, hw.size(), f) == hw.size() && fread(hv.data(), 4, hv.size(), f) == hv.size();
            fclose(f);
        }
    }
    char got[20], host[20];
    snprintf(got, sizeof got, "%016llx", (unsigned long long)lenet5_digest(w.data()));
    snprintf(host, sizeof host, "%016llx", (unsigned long long)lenet5_digest(hw.data()));
    std::string want = expected(version == 'o' ? 'o' : 'x', name, steps);
    printf(
        "CHECK %c%d net %c, %u groups, %u steps: applied %u, not finite %u, mean loss %.5f; digest %s, expected %s: %s",
        version, cluster, name, groups, steps, st.applied, st.not_finite,
        st.loss * EXACT_UNIT / (st.applied ? st.applied * BATCH : 1), got, want.empty() ? "-" : want.c_str(),
        want.empty()  ? "nothing stored"
        : want == got ? "EQUAL"
                      : "DIFFERENT");
    if (have)
        printf("; %s %s: %s, momentum %s", whom, host, hw == w ? "EQUAL" : "DIFFERENT",
               hv == s ? "EQUAL" : "DIFFERENT");
    printf("\n");
    if (have) compare("weights ", w.data(), hw.data(), steps), compare("momentum", s.data(), hv.data(), steps);
}
static void measure(unsigned groups, unsigned batch, unsigned steps, unsigned count)
{
    std::string us; unsigned long long first = 0, last = 0; float least = 1e30f;
    for (int i = 0; i < 4; i++) {
        run r = prepare_run(*plain_, groups, batch, i ? steps : 64, count);
        float ms = launch(*plain_, r.nets) * 1e3f / (i ? steps : 64);
        if (!i) continue;
        char t[32]; snprintf(t, sizeof t, " %.3f", ms); us += t;
        if (ms < least) least = ms;
        std::vector<float> w(LENET5_WEIGHTS); get(w.data(), r.nets.net[0].weights, w.size());
        last = lenet5_digest(w.data());
        if (i == 1) first = last;
        else if (first != last) us += " (OTHER DIGEST)";
    }
    printf("TIME %c%d net %c, %2u groups, batch %3u, %u steps, %2u nets:%s us a step; %.3f a step and net, %.2f ns a "
           "sample; digest %016llx\n",
           version, cluster, name, groups, batch, steps, count, us.c_str(), least / count, least * 1e3 / batch / count,
           last);
}
static void phases(unsigned groups, unsigned batch, unsigned steps)
{
    static const char *const what[] = {"arrive; masks, pictures",
                                       "grid barrier (wait)",
                                       "update",
                                       "zero sums",
                                       "conv1",
                                       "conv2",
                                       "barrier, receive",
                                       "conv3",
                                       "barrier, receive",
                                       "head",
                                       "barrier, receive",
                                       "conv3 input",
                                       "dense weights",
                                       "barrier, receive, winners",
                                       "conv2 weights",
                                       "conv2 input, gather",
                                       "conv1 weights, sum"};
    run r = prepare_run(*stamped, groups, batch, steps, 1);
    float ms = 0;
    for (int i = 0; i < 2; i++) r = prepare_run(*stamped, groups, batch, steps, 1), ms = launch(*stamped, r.nets);
    static long long s[(128 + 64) * 32]; get(s, stamps, sizeof s / 8);
    unsigned blocks = groups * RANKS;
    double all = 0, all_most = 0;
    printf("STAMPS %c%d net %c, %u groups, batch %u: %.3f us a step with stamps\n  %-28s %9s %14s %20s\n", version,
           cluster, name, groups, batch, ms * 1e3 / steps, "clocks a step", "mean", "slowest block",
           "slowest, one step");
    for (int k = 0; k <= 16; k++) {
        double sum = 0, most = 0, one = 0;
        for (unsigned b = 0; b < blocks; b++) {
            double t = (double)s[b * 32 + k] / steps;
            sum += t, most = t > most ? t : most;
        }
        for (int i = 0; i < 64; i++) one += (double)s[128 * 32 + i * 32 + k] / 64;
        printf("  %-28s %9.0f %14.0f %20.0f\n", what[k], sum / blocks, most, one);
        all += sum / blocks, all_most += one;
    }
    printf("  %-28s %9.0f %14s %20.0f   => %.0f MHz\n", "sum", all, "", all_most, all * steps / (ms * 1e3));
}
int main(int argc, char **argv)
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    here = argv[0], here = here.substr(0, here.rfind('/') + 1);
    if (argc < 4) return 2;
    version = argv[1][0], cluster = argv[2][0] == '1', name = argv[3][0];
    int devices = 0; cudaError_t e = cudaGetDeviceCount(&devices);
    if (e || !devices) { printf("no device (%s)\n", e ? cudaGetErrorString(e) : "none"); return 0; }
    double began = now();
    cudaDeviceProp p; CHECK(cudaGetDeviceProperties(&p, 0));
    sms = p.multiProcessorCount;
    std::string which = std::string(1, version) + argv[2][0];
    plain_ = find(which), stamped = find(which + "s");
    CHECK(cudaHostAlloc((void **)&trouble, 128 * 16, cudaHostAllocMapped)); memset(trouble, 0, 128 * 16);
    for (const variant *v : {plain_, stamped}) {
        cudaFuncAttributes fa; CHECK(cudaFuncGetAttributes(&fa, v->kernel));
        CHECK(cudaFuncSetAttribute(v->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)v->shared));
        if (v == plain_)
            printf("# %c%d: %d registers, %zu B local, %zu + %zu B shared; start %.2f s\n", version, cluster,
                   fa.numRegs, fa.localSizeBytes, v->shared, fa.sharedSizeBytes, now() - began);
    }
    if (cluster) {
        cudaLaunchConfig_t c; cudaLaunchAttribute at[2]; config(*plain_, 128, false, c, at);
        CHECK(cudaOccupancyMaxActiveClusters(&fit, plain_->kernel, &c));
    } else {
        int a; CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&a, plain_->kernel, THREADS, plain_->shared));
        fit = a * sms / RANKS;
    }
    printf("# %s, %d SMs: %d groups of 8 at once\n", p.name, sms, fit);
    D = data_make();
    const net *net = &lenet5_nets[(name - 'A') & 3];
    M = masks_make(SEED, net->p_conv, net->p_fc);
    drecords = make<uint8_t>(D.records.size()); put(drecords, D.records.data(), D.records.size());
    stamps = make<long long>((128 + 64) * 32);
    for (int i = 4; i < argc; i++) {
        unsigned a[4] = {0, 256, 2000, 1};
        const char *q = argv[i];
        for (int k = 0; k < 4 && (q = strchr(q, ':')); k++) a[k] = (unsigned)atoi(++q);
        bool automatic = a[0] == 0;
        if (automatic) a[0] = fit < 16 ? fit : 16;
        if (a[0] * a[3] > (unsigned)fit && argv[i][0] != 'c') { printf("# %s: does not fit\n", argv[i]); continue; }
        if (argv[i][0] == 'c') check(a[0], a[1]);
        else {
            if (a[1] == 0) a[1] = a[0] * 16; /* a tile a group */
            if (argv[i][0] == 't') measure(a[0], a[1], a[2], a[3]);
            else phases(a[0], a[1], a[2]);
        }
    }
    printf("# done, %.2f s\n", now() - began);
    fflush(stdout);
    _exit(0);
}
