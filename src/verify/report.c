#include "report.h"

#include <stdio.h>
#include <xxhash.h>

/* --- engines without known answers ------------------------------------------------------------------------ */

/* Whether a rank tells what those of this kind should have had after a step: not one with a finding, nor one that did
 * not come so far. */
static bool has_say(const struct testimony *one, uint64_t kind, size_t at)
{
    return one->kind == kind && one->finding.times == 0 && one->digests[at] != 0;
}

/* How many of those with a say have what this rank has. */
static int count_alike(const struct testimony *all, int count, int rank, size_t at)
{
    int alike = 0;
    for (int i = 0; i < count; i++)
        alike += has_say(&all[i], all[rank].kind, at) && all[i].digests[at] == all[rank].digests[at];
    return alike;
}

static bool are_all_alike(const struct testimony *all, int count, int rank, size_t at)
{
    for (int i = 0; i < count; i++)
        if (has_say(&all[i], all[rank].kind, at) && all[i].digests[at] != all[rank].digests[at])
            return false;
    return true;
}

/* The first of the most that are alike. */
static int find_leader(const struct testimony *all, int count, int rank, size_t at)
{
    int leader = rank;
    for (int i = count - 1; i >= 0; i--)
        if (has_say(&all[i], all[rank].kind, at) &&
            count_alike(all, count, i, at) >= count_alike(all, count, leader, at))
            leader = i;
    return leader;
}

static void compare_step(struct testimony *all, int count, int lesson, unsigned step)
{
    size_t at = lesson_offset(lesson) + step;
    for (int i = 0; i < count; i++) {
        if (!has_say(&all[i], all[i].kind, at) || are_all_alike(all, count, i, at))
            continue;
        uint64_t got = all[i].digests[at], wanted = all[find_leader(all, count, i, at)].digests[at];
        if (got != wanted)
            all[i].finding = (struct finding){.times = 1,
                                              .blame = {.fault = FAULT_UNLIKE_OTHERS, .parameter = -1},
                                              .lesson = lesson,
                                              .core = -1,
                                              .step = step,
                                              .got = got,
                                              .wanted = wanted};
    }
}

void report_compare(struct testimony *all, int count)
{
    for (int lesson = 0; lesson < LESSONS; lesson++)
        for (unsigned step = 0; step < lessons[lesson].steps; step++)
            compare_step(all, count, lesson, step);
}

/* --- lines ------------------------------------------------------------------------------------------------ */

/* "round 2, alone, net D in batches of 40, step 17, core 1: backward pass: ..." */
static void write_finding(const struct finding *finding, char *text, size_t bytes)
{
    const struct lesson *lesson = &lessons[finding->lesson];
    char what[200], core[20] = "";
    blame_print(&finding->blame, what, sizeof what);
    if (finding->core >= 0)
        snprintf(core, sizeof core, ", core %d", finding->core);
    snprintf(text, bytes, "round %d, %s, net %c in batches of %zu, step %u%s: %s", finding->round + 1,
             finding->together ? "together" : "alone", lesson->net, lesson->batch, finding->step + 1, core, what);
}

static uint64_t digest_of(const uint64_t digests[LESSON_STEPS])
{
    return XXH64(digests, LESSON_STEPS * sizeof *digests, 0);
}

static int count_equal(const struct testimony *all, int count, int rank)
{
    int equal = 0;
    for (int i = 0; i < count; i++)
        equal += all[i].kind == all[rank].kind && digest_of(all[i].digests) == digest_of(all[rank].digests);
    return equal;
}

static int count_kind(const struct testimony *all, int count, int rank)
{
    int kind = 0;
    for (int i = 0; i < count; i++)
        kind += all[i].kind == all[rank].kind;
    return kind;
}

static void print_verdict(const struct testimony *all, int count, int rank, const struct verify *verify)
{
    bool is_defined = verify->ops->is_defined;
    int rounds = verify->round;
    const struct finding *finding = &all[rank].finding;
    int others = count_equal(all, count, rank) - 1;
    if (finding->times > 0) {
        char text[400];
        write_finding(finding, text, sizeof text);
        printf("digest %016llx, not %016llx  WRONG %d time%s; first in %s\n", (unsigned long long)finding->got,
               (unsigned long long)finding->wanted, finding->times, finding->times == 1 ? "" : "s", text);
    } else if (rounds == 0) {
        printf("%s in the first round%s\n", verify->is_cut ? "the time was over" : "stopped",
               is_defined ? ", right until then" : "");
    } else if (is_defined) {
        printf("digest %016llx  right\n", (unsigned long long)digest_of(all[rank].digests));
    } else {
        printf("digest %016llx  no known answer; the same %d time%s, and on %d other%s of %d of its kind\n",
               (unsigned long long)digest_of(all[rank].digests), rounds, rounds == 1 ? "" : "s", others,
               others == 1 ? "" : "s", count_kind(all, count, rank) - 1);
    }
}

int report_print(const struct testimony *all, int count, const struct pass *together, const struct verify *verify)
{
    int wrong = 0;
    for (int i = 0; i < count; i++) {
        printf("%s  %llu steps  ", all[i].device, (unsigned long long)all[i].steps);
        print_verdict(all, count, i, verify);
        wrong += all[i].finding.times > 0;
    }
    if (together != NULL && wrong == 0 && verify->round > 0)
        printf("all together  %llu steps  digest %016llx  %s\n", (unsigned long long)together->steps,
               (unsigned long long)digest_of(together->digests), verify->ops->is_defined ? "right" : "the same on all");
    return wrong;
}
