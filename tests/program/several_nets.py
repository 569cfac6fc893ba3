#!/usr/bin/env python3
"""Several nets and seeds in one job: each ends as it does alone, by groups of ranks or by turns."""
# needs: dtrain

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time

from dtrain import FOLDER, PROGRAM, ROOT, Run, content, metrics, preloaded, progress, run, start
from tap import check, finish, skip

NETS = "ABCD"
TRAIN = ["--data", "synthetic:335+70", "--batch-size", "64", "--lr", "0.05", "--eval-every", "2"]
SHORT = [*TRAIN, "--epochs", "3"]
ENDLESS = [*TRAIN, "--epochs", "1000000"]
DROPOUT = {"A": "none", "B": "fc", "C": "conv", "D": "conv + fc"}


def table(result):
    """The final table: {net: (dropout, best train, best test, digest)}."""
    rows = re.findall(r"^([A-D])    (.{10})  +(\S+)  +(\S+)  +\S+  ([0-9a-f]{16})$", result.out, re.MULTILINE)
    return {net: (dropout.strip(), *rest) for net, dropout, *rest in rows}


def best(directory, key):
    return f"{max(line.get(key, -1) for line in metrics(directory)):.2f}"


def as_alone(name, result, out, nets):
    """Every net of the study in directory `out` ended as it did alone, in directory alone-NET."""
    rows = table(result)
    check(list(rows) == list(nets) and len(re.findall(r"^net  dropout ", result.out, re.MULTILINE)) == 1,
          f"{name}: one table, with a row a net", result)
    for net in nets:
        whole = f"alone-{net}"
        row = (DROPOUT[net], best(whole, "train_accuracy"), best(whole, "test_accuracy"), ALONE[net].digest)
        check(rows.get(net) == row, f"{name}: net {net} has the accuracies and weights it has alone",
              f"{row}\n{result}")
        check(metrics(f"{out}/{net}") == metrics(whole), f"{name}: and the metrics",
              f"{metrics(f'{out}/{net}')}\n{metrics(whole)}")
        check(content(out, net, "model-best.safetensors") == content(whole, "model-best.safetensors"),
              f"{name}: and the best model")


@functools.cache
def late_news():
    """MPI that tells every other time a little late what has ended, as that a message has left, and sees one that came
    only when it is asked so often as by a rank that waits for nothing else."""
    return preloaded("late_news", """
        int PMPI_Iprobe(int, int, void *, int *, void *), PMPI_Test(void **, int *, void *);
        int MPI_Iprobe(int from, int tag, void *comm, int *there, void *status)
        {
            static int looks;
            int result = PMPI_Iprobe(from, tag, comm, there, status);
            if (tag == 0 && looks < 1000 && ++looks < 1000) /* the watch's messages have others */
                *there = 0;
            return result;
        }
        int MPI_Test(void **request, int *done, void *status)
        {
            static int ends;
            void *before = *request;
            int result = PMPI_Test(request, done, status);
            if (*request != before && ++ends % 2 != 0)
                *done = 0;
            return result;
        }""")


def whole_studies():
    digests = set()
    for np in 1, 2, 4, 5:
        result = run(np, *SHORT, "--net", "all", "--out", f"all-{np}")
        check(result.code == 0 and result.err == "", f"all nets on {np} ranks", result)
        as_alone(f"all nets on {np} ranks", result, f"all-{np}", NETS)
        folders = sorted(path.name for path in (FOLDER / f"all-{np}").iterdir() if path.is_dir())
        check(folders == list(NETS), f"all nets on {np} ranks: a directory each", folders)
        digests.add(result.digest)
    check(len(digests) == 1 and None not in digests, "one digest of all on any number of ranks", digests)
    check(all(result.out.count(f"net: {net} epoch: {epoch} ") == 1 for net in NETS for epoch in (1, 2, 3)),
          "one line an epoch and a net", result)
    drawn = run(2, *SHORT, "--net", "all", "--progress", "always", "--out", "drawn")
    rows = re.findall(r"^\x1b\[Kepoch: (\d) time: \S+ loss: ((?:  [A-D]  \d\.\d{4}){4})$", drawn.out, re.M)
    check([epoch for epoch, _ in rows] == ["1", "2", "3"] and len(re.findall(" test:   A .*%  D ", drawn.out)) == 2 and
          "net: " not in drawn.out and drawn.digest == result.digest, "on a terminal a block an epoch", drawn)
    if shutil.which("gnuplot"):
        sizes = {path.name: path.stat().st_size for path in (FOLDER / "all-4").iterdir() if path.is_file()}
        names = ["loss.svg", "loss.png", "accuracy.svg", "accuracy.png"]
        check(all(sizes.get(name, 0) > 1000 for name in names), "the figures are drawn", sizes)
        deaf = Run(["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", PROGRAM, *SHORT, "--net", "A,D", "--out", "deaf"],
                   {}, FOLDER).finish()
        check(deaf.code == 0 and "not drawn" not in deaf.out, "and that is known where SIGCHLD was ignored", deaf)
    else:
        skip("the figures are drawn", "gnuplot is missing")
    for nets, np in ("A,D", 3), ("D,A", 1), ("a,c,d", 2):
        result = run(np, *SHORT, "--net", nets, "--out", f"{nets}-{np}", env={"LD_PRELOAD": str(late_news())})
        rows = sorted(nets.upper().replace(",", ""))
        as_alone(f"--net {nets} on {np} ranks", result, f"{nets}-{np}", rows)
        check(all(result.out.count(f"net: {net} epoch: {epoch} ") == 1 for net in rows for epoch in (1, 2, 3)),
              f"--net {nets} on {np} ranks: news that leave late and arrive after the end are told", result)


def several_seeds():
    """Each seed of each net ends as it does alone, and the table of the spread says what their metrics say."""
    for np, nets in (2, "AD"), (5, "AD"), (3, "C"):
        out = f"seeds-{nets}-{np}"
        result = run(np, *SHORT, "--net", ",".join(nets), "--seeds", "2", "--seed", "1", "--out", out)
        check(result.code == 0 and result.err == "", f"--net {nets} --seeds 2 on {np} ranks", result)
        best_of = {net: [] for net in nets}
        for seed in 1, 2:
            for net in nets:
                place = f"{out}/seed{seed}" + (f"/{net}" if len(nets) > 1 else "")
                alone = ALONE[net] if seed == 1 else run(1, *SHORT, "--net", net, "--seed", "2", "--out",
                                                         f"{out}-{net}")
                row = rf"^{net} +{seed} .* {alone.digest}$"
                check(re.search(row, result.out, re.MULTILINE), f"net {net}, seed {seed} as alone", f"{alone}{result}")
                check(json.loads(content(place, "run.json"))["options"]["seed"] == seed, "and run.json has its seed")
                best_of[net].append(max(line.get("test_accuracy", -1) for line in metrics(place)))
        for net, best_test in best_of.items():
            numbers = sum(best_test) / 2, min(best_test), max(best_test)
            row = rf"^{net} +{re.escape(DROPOUT[net])} +2 +" + " +".join(f"{number:.2f}" for number in numbers) + "$"
            check(re.search(row, result.out, re.MULTILINE),
                  f"net {net}: mean, least and most of its seeds", f"{row}\n{result}")
    # A job that lost a rank once more goes on if one of these has changed.
    seen = subprocess.run(["bash", "-c", f"source {ROOT}/slurm/job.sh; out=seeds-AD-2; checkpoints"], cwd=FOLDER,
                          env=os.environ | {"SLURM_SUBMIT_DIR": str(FOLDER), "SLURM_JOB_NUM_NODES": "1",
                                            "SLURM_JOB_ID": "1"},
                          capture_output=True, text=True, check=False)
    check([line.split()[0] for line in seen.stdout.splitlines()] ==
          [f"seeds-AD-2/seed{seed}/{net}/checkpoint.safetensors" for seed in (1, 2) for net in "AD"],
          "slurm/job.sh sees every checkpoint of a study", seen)
    if shutil.which("gnuplot"):
        check(b"fill-opacity" in content("seeds-C-3", "loss.svg"), "the figure has the band of the seeds")


def go_on(np, out):
    """An endless study in which every net has made steps: its first epoch may have been stopped at its last step."""
    running = start(np, *ENDLESS, "--net", "all", "--out", out, "--resume", "--checkpoint-every", "1000000")
    for net in NETS:
        running.wait_for(f"net: {net} epoch: ", times=2)
    return running


def interrupted():
    steps = {}
    for np, rank in (4, None), (5, 2), (8, 1), (8, 5), (2, 1), (1, None), (4, 0):
        running = go_on(np, "stopped")
        running.signal(signal.SIGUSR1, rank)
        result = running.finish()
        whom = "mpirun" if rank is None else f"rank {rank}"
        check(result.code == 75 and result.messages == [] and "--resume" in result.out and result.digest,
              f"SIGUSR1 to {whom} of {np} stops all nets, exit 75", result)
        before, steps = steps, {net: int(progress(f"stopped/{net}")["step"]) for net in NETS}
        check(all(steps[net] > before.get(net, 0) for net in NETS), "and every net is saved", (before, steps))
    end = str(max(steps.values()) + 3)
    result = run(2, *ENDLESS, "--net", "all", "--out", "stopped", "--resume", "--max-steps", end)
    rows = table(result)
    check(result.code == 0, "resumed they come to the end", result)
    for net in NETS:
        whole = run(2, *ENDLESS, "--net", net, "--out", f"whole-{net}", "--max-steps", end)
        check(whole.digest and rows.get(net, [None])[-1] == whole.digest and
              metrics(f"stopped/{net}") == metrics(f"whole-{net}"),
              f"net {net} as if it had not been stopped", f"{result}{whole}")


def stopped_in_the_last_check():
    """A net that has all steps of an epoch but has not closed it: on a terminal that epoch is yet to be shown."""
    options = ["--data", "synthetic:65+8000", "--eval-every", "1", "--net", "A,B", "--out", "checking", "--resume"]
    for _ in range(9):
        running = start(1, *options, "--epochs", "1000000")
        running.wait_for("net: A epoch: ", times=2)
        running.signal(signal.SIGUSR1)
        running.finish()
        first, second = (progress(f"checking/{net}") for net in "AB")
        if first["step"] == second["step"] and int(first["epoch"]) == int(second["epoch"]) + 1:
            break
    result = run(1, *options, "--epochs", str(int(first["epoch"]) + 1), "--progress", "always", seconds=60)
    check(result.code == 0 and f"epoch: {first['epoch']} time" in result.out,
          "stopped in the check of the last net: its epoch is shown", (first, second, str(result)))


def failing():
    """What goes wrong with one net is told, and the others come to their ends."""
    whole = run(4, *SHORT, "--net", "all", "--out", "broken", "--max-steps", "6")
    checkpoint = FOLDER / "broken" / "C" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    result = run(4, *SHORT, "--net", "all", "--out", "broken", "--resume")
    check(whole.code == 0 and result.says(3, "broken/C/checkpoint"),
          "a damaged checkpoint of one net is found before any net starts", result)
    check(len(metrics("broken/A")) == 1, "so the others have not gone on", metrics("broken/A"))
    running = start(4, *TRAIN, "--net", "all", "--out", "hangs", "--epochs", "40", "--timeout", "3")
    running.wait_for("net: C epoch: 2 ")
    running.signal(signal.SIGSTOP, 2)
    result = running.finish()
    check(result.says(4, "rank 2 on host"),
          "a rank that hangs is named once the other nets are done", result)
    for np in 2, 5:
        result = run(np, *SHORT, "--net", "all", "--out", f"again-{np}")
        result = run(np, *SHORT, "--net", "all", "--out", f"again-{np}")
        check(result.says(2, "--resume"),
              f"without --resume a study is not overwritten, on {np} ranks", result)


def within_an_epoch():
    """Of no epoch there is nothing to compare or to draw: the table stands alone."""
    result = run(2, *SHORT, "--net", "A,D", "--seeds", "2", "--max-steps", "2", "--out", "within")
    check(result.code == 0 and result.err == "" and len(re.findall("^net ", result.out, re.MULTILINE)) == 2 and
          "igures" not in result.out, "within the first epoch: no spread, no figures", result)
    result = run(1, *SHORT, "--net", "A", "--seeds", "2", "--seed", "123456789", "--epochs", "0", "--out", "long")
    rows = re.findall(r"^(?:net  seed|A  ).*$", result.out, re.MULTILINE)
    check(result.code == 0 and len(rows) == 3 and len({row.rindex(" ") for row in rows}) == 1,
          "long seeds have a column as wide", result)


def mixed():
    """A run and a study do not share a directory, whichever was there first, also while it is in use."""
    tiny = [*TRAIN, "--epochs", "1"]
    several = (["--net", "B,C"], ["--net", "B", "--seeds", "2"], ["--net", "all", "--resume"])
    for out, (first, *others) in {"of-a-run": (["--net", "A"], *several),
                                  "of-nets": (several[0], ["--net", "A"], ["--net", "B", "--resume"], several[1]),
                                  "of-seeds": (["--net", "B,C", "--seeds", "2"], ["--net", "A"], several[0],
                                               several[1]),
                                  "of-one-net": (several[1], several[0], ["--net", "B,C", "--seeds", "2"])}.items():
        made = run(2, *tiny, *first, "--out", out)
        there = sorted((FOLDER / out).rglob("*"))
        for options in others:
            result = run(2, *tiny, *options, "--out", out)
            check(made.code == 0 and result.says(2, out, " holds a ", "another --out") and
                  there == sorted((FOLDER / out).rglob("*")),
                  f"{' '.join(first)} was trained there: {' '.join(options)} is refused", result)
    running = start(1, *ENDLESS, "--net", "A", "--out", "of-one")
    running.wait_for("epoch: ")
    result = run(1, *tiny, "--net", "A,B", "--out", "of-one")
    check(result.says(2, "of-one holds a run of its own"), "a study is refused where a run is at work", result)
    running.signal(signal.SIGUSR1)
    check(running.finish().code == 75, "which goes on")


def one_has_more():
    """A net that is resumed has more epochs than it is to have: the progress line counts those that it is to have."""
    run(1, *TRAIN, "--net", "A", "--epochs", "9", "--out", "more/A")
    result = run(1, *TRAIN, "--net", "A,D", "--epochs", "2", "--out", "more", "--resume", "--progress", "always")
    parts = [float(part) for part in re.findall(r"([0-9.]+)%  A", result.out)]
    check(result.code == 0 and parts and min(parts) >= 50 and max(parts) == 100,
          "a net that has more than its epochs: from 50 to 100 %", f"{parts}{result}")


def failed_and_stopped():
    """A net whose loss is no longer finite does not keep the others from being gone on with."""
    options = ["--data", "synthetic:3200+70", "--batch-size", "64", "--lr", "0.05", "--net", "A,C", "--p-conv", "0.999",
               "--out", "one-fails", "--eval-every", "1000000", "--resume"]
    running = start(2, *options, "--epochs", "1000000")
    running.wait_for("not finite")
    running.wait_for("net: A epoch: ")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    check(result.says(75, "net C", "not finite") and "saved in one-fails" in result.out,
          "a net fails, and another is stopped: the former is told, exit 75", result)
    result = run(2, *options, "--max-steps", str(int(progress("one-fails/A")["step"]) + 3))
    check(result.says(1, "net C", "not finite"), "resumed, the other comes to its end, exit 1", result)


def unsaved():
    """Nets that cannot be saved as another is stopped: each is told, and the other can be gone on with."""
    options = ["--data", "synthetic:20000+70", "--lr", "0.05", "--net", "A,B,C", "--out", "unsaved"]
    running = start(1, *options, "--epochs", "9", "--checkpoint-every", "9")
    running.wait_for("net: C epoch: 1 ")
    time.sleep(0.1)
    for net in "BC":
        (FOLDER / "unsaved" / net).rename(FOLDER / "unsaved" / f"moved-{net}")
    running.signal(signal.SIGUSR1)
    result = running.finish(60)
    told = re.findall(r"^unsaved/(.) was removed, moved or replaced", result.out, re.MULTILINE)
    check(result.code == 75 and told == ["B", "C"] and "(A), saved in unsaved" in result.out,
          "two nets cannot be saved as the first is stopped: both are told", result)


def stopped_where_a_net_has_ended():
    """A signal to a rank whose net has ended, while others train on."""
    for rank in 1, 2:  # the leader of its group, and another
        out = f"one-ends-{rank}"
        running = start(3, *ENDLESS, "--net", "A,D", "--out", out)
        running.wait_for("net: D epoch: 2 ")
        (FOLDER / out / "D").rename(FOLDER / out / "moved")
        running.wait_for("was removed, moved or replaced")
        seen = running.out.read_text().count("net: A epoch: ")
        running.wait_for("net: A epoch: ", times=seen + 2)
        running.signal(signal.SIGUSR1, rank)
        result = running.finish(30)
        check(result.says(75, f"{out}/D was removed, moved or replaced") and f"saved in {out}" in result.out,
              f"SIGUSR1 to rank {rank}, whose net has ended, stops the other net", result)


ALONE = {net: run(2, *SHORT, "--net", net, "--out", f"alone-{net}") for net in NETS}
whole_studies()
several_seeds()
interrupted()
stopped_in_the_last_check()
failing()
within_an_epoch()
mixed()
one_has_more()
failed_and_stopped()
stopped_where_a_net_has_ended()
unsaved()
finish()
