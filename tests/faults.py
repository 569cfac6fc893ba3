#!/usr/bin/env python3
"""What goes wrong is told in one line, ends the job soon, and costs no more than the last checkpoint."""

import os
import shutil
import signal
import socket
import subprocess
import time

from dtrain import FOLDER, content, metrics, progress, run, start, start_unlike
from tap import check, finish, skip

TRAIN = ["--net", "D", "--data", "synthetic:335+70", "--batch-size", "64", "--lr", "0.05", "--eval-every", "2"]
ENDLESS = [*TRAIN, "--epochs", "1000000"]
HOST = socket.gethostname()
TIMEOUT = 3


def go_on(np, out, *options):
    """An endless run, begun and surely past its first checkpoint."""
    running = start(np, *ENDLESS, "--out", out, *options)
    running.wait_for("epoch: 2 ")
    return running


def unharmed(name, out, result):
    """What the fault left in directory `out` goes on, on 3 ranks, to the weights of an undisturbed run."""
    end = str(int(progress(out)["step"]) + 9)
    resumed = run(3, *ENDLESS, "--out", out, "--resume", "--max-steps", end)
    whole = run(1, *ENDLESS, "--out", f"{out}-undisturbed", "--max-steps", end)
    check(resumed.digest and resumed.digest == whole.digest and metrics(out) == metrics(f"{out}-undisturbed"),
          f"{name}: --resume goes on as if nothing had been", f"{result}{resumed}{whole}")


# --- ranks that stall and die -------------------------------------------------------------------------


def stalls():
    running = go_on(3, "pause")
    running.signal(signal.SIGSTOP, 1)
    time.sleep(1.5)
    before = running.out.read_text().count("epoch: ")
    time.sleep(0.3)
    check(running.out.read_text().count("epoch: ") == before, "all wait for a rank that pauses")
    running.signal(signal.SIGCONT, 1)
    time.sleep(0.5)
    check(running.out.read_text().count("epoch: ") > before, "and go on with it")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    check(result.code == 75, "to a normal end", result)
    unharmed("a pause", "pause", result)


def lost(name, running, rank):
    """Stops the rank for ever."""
    running.signal(signal.SIGSTOP, rank)
    began = time.monotonic()
    result = running.finish(30)
    took = time.monotonic() - began
    named = [other for other in range(8) if f"rank {other} on host {HOST}" in "".join(result.messages)]
    check(result.code == 4 and took < 2 * TIMEOUT + 2, f"{name}: exit 4 after {TIMEOUT} s or little more",
          f"{took:.1f} s\n{result}")
    check(len(result.messages) == 1 and named == [rank], f"{name}: one message names rank {rank} and its host", result)
    return result


def gone():
    for rank in 0, 2:
        running = go_on(3, f"gone-{rank}", "--timeout", TIMEOUT)
        result = lost(f"rank {rank} of 3 hangs", running, rank)
    unharmed("a rank that hung", "gone-2", result)
    for rank in 0, 1:  # nearly all of the time goes into evaluating 20,000 pictures
        running = go_on(3, f"evaluating-{rank}", "--timeout", TIMEOUT, "--data", "synthetic:320+20000",
                        "--eval-every", "1")
        lost(f"rank {rank} hangs while rank 0 evaluates and rank 2 waits", running, rank)


def killed():
    running = go_on(3, "killed")
    began = time.monotonic()
    running.signal(signal.SIGKILL, 2)
    result = running.finish(30)
    check(result.code not in (0, None) and time.monotonic() - began < 10, "a rank killed ends the job at once", result)
    unharmed("a rank killed", "killed", result)
    running = go_on(3, "all-killed")
    running.kill()
    unharmed("every process killed at once", "all-killed", running.finish())


def impatient():
    """A second signal ends a run that the first one cannot."""
    running = go_on(2, "impatient")
    running.signal(signal.SIGSTOP, 1)
    running.signal(signal.SIGTERM, 0)
    time.sleep(0.8)
    still = running.process.poll() is None
    running.signal(signal.SIGTERM, 0)
    began = time.monotonic()
    result = running.finish(30)
    check(still and result.code == 128 + signal.SIGTERM and time.monotonic() - began < 10,
          "a second signal ends a rank at once, whatever it waits for", result)


# --- numbers ------------------------------------------------------------------------------------------


def not_finite():
    options = ["--net", "D", "--data", "synthetic:20+5", "--batch-size", "20", "--lr", "1e5"]  # a step an epoch
    said = []
    for np in 1, 2:
        result = run(np, *options, "--epochs", "9", "--out", f"infinite{np}")
        check(result.code == 1 and len(result.messages) == 1 and all(words in result.messages[0] for words in
              ("net D", "step ", "not finite", "--lr", "checkpoint", f"infinite{np}")),
              f"on {np} ranks a loss that is not finite ends the run, and the message has the step", result)
        said += [line.replace(f"infinite{np}", "") for line in result.messages]
    check(said[0] == said[-1], "the same step on any number of ranks", said)
    step = progress("infinite2")["step"]
    kept = run(1, *options, "--max-steps", step, "--out", "infinite2", "--resume")
    good = run(1, *options, "--max-steps", step, "--out", "finite")
    check(f"of step {step}," in said[0] and kept.code == 0 and kept.digest == good.digest and int(step) > 0,
          "the checkpoint named is of the last good step, and loads", f"{kept}{good}")
    result = run(1, *options, "--batch-size", "5", "--epochs", "9", "--out", "at-once")
    check(result.code == 1 and "no checkpoint was written yet" in result.err, "within the first epoch there is none", result)


# --- files --------------------------------------------------------------------------------------------


def unwritable():
    (FOLDER / "file").write_text("not a directory")
    for out in FOLDER / "file" / "below", "/proc/none", FOLDER / "file":
        result = run(2, *TRAIN, "--epochs", "1", "--out", out)
        check(result.code == 1 and len(result.messages) == 1 and str(out) in result.messages[0] and
              "--out" in result.messages[0] and result.out == "", f"--out {out} is refused before any work", result)
    long = "x" * 5000
    result = run(1, *TRAIN, "--epochs", "1", "--out", long)
    check(result.code == 2 and len(result.messages) == 1 and "--out" in result.messages[0], "so is a path too long", result)


def disk_full():
    small = FOLDER / "small"
    small.mkdir()
    mount = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1300k", "dtrain-test", small], stderr=subprocess.PIPE, text=True)
    if not mount or mount.returncode != 0:
        skip("a disk that is full", f"no small file system can be mounted: {mount and mount.stderr.strip()}")
        return
    try:
        result = run(2, *TRAIN, "--epochs", "9", "--out", small / "run")
        check(result.code == 1 and len(result.messages) == 1 and str(small / "run") in result.messages[0] and
              "No space left" in result.messages[0], "a full disk: exit 1 and the message names the file", result)
        left = {file.name for file in (small / "run").iterdir()}
        check(not any("tmp" in name for name in left), "nothing half-written stays", left)
        shutil.copytree(small / "run", FOLDER / "saved")
    finally:
        subprocess.run(["umount", small], check=True)
    unharmed("moved to another disk", "saved", result)


def shared():
    first = go_on(2, "shared")
    second = run(3, *ENDLESS, "--out", "shared", "--resume")
    pid = first.ranks()[0]
    check(second.code == 2 and len(second.messages) == 1 and
          all(words in second.messages[0] for words in ("shared", "in use", f"process {pid} on {HOST}")),
          "a second run on one directory is refused, and the first named", second)
    second = run(2, *ENDLESS, "--out", "shared")
    check(second.code == 2 and len(second.messages) == 1 and "in use" in second.messages[0],
          "without --resume too", second)
    first.signal(signal.SIGUSR1)
    result = first.finish()
    check(result.code == 75, "the first is not disturbed", result)
    unharmed("the first", "shared", result)


# --- ranks that are not alike -------------------------------------------------------------------------


def unlike():
    for ours, theirs, words in (
        (["--seed", "1"], ["--seed", "2"], ["--seed", "1", "2"]),
        (["--lr", "0.01"], ["--lr", "0.02"], ["--lr", "0.01", "0.02"]),
        (["--epochs", "5"], [], ["--epochs", "5", "1000"]),
        (["--data", "synthetic:40+10"], ["--data", "synthetic:45+10"], ["--data", "synthetic:40+10", "synthetic:45+10"]),
        (["--resume"], [], ["--resume", "true", "false"]),
        (["--doctor"], [], None),
        (["--help"], [], None),
    ):
        base = ["--data", "synthetic:335+70", "--out", "unlike", "--timeout", TIMEOUT]
        result = start_unlike([*base, *ours], [*base, *ours], [*base, *theirs]).finish(30)
        if words is None:
            check(result.code is not None, f"{ours[0]} on some ranks only ends as well", result)
        else:
            check(result.code == 2 and len(result.messages) == 1 and
                  all(word in result.messages[0] for word in ["rank 2", HOST, *words]),
                  f"a rank with {' '.join(theirs) or 'no ' + ours[0]} instead of {' '.join(ours)} is refused", result)
    data = FOLDER / "cache" / "dtrain" / "synthetic-335-70"
    result = start_unlike(["--data", data, "--out", "unlike", "--timeout", TIMEOUT],
                          ["--data", "synthetic:335+70", "--out", "unlike", "--timeout", TIMEOUT]).finish(30)
    check(result.code == 2 and len(result.messages) == 1 and "--data" in result.messages[0],
          "so is a rank with drawn data where others have files", result)
    check(not os.path.exists(FOLDER / "unlike"), "and no run began")


not_finite()
unwritable()
disk_full()
unlike()
shared()
killed()
impatient()
stalls()
gone()
finish()
