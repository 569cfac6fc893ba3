#!/usr/bin/env python3
"""What goes wrong is told in one line, ends the job soon, and costs no more than the last checkpoint."""

import shutil
import signal
import socket
import subprocess
import time

from dtrain import FOLDER, content, metrics, progress, run, run_all, start, start_unlike
from safetensors_reader import read
from tap import check, finish, skip

TRAIN = ["--data", "synthetic:335+70", "--batch-size", "64", "--lr", "0.05", "--eval-every", "2"]
ENDLESS = [*TRAIN, "--epochs", "1000000"]
HOST = socket.gethostname()
TIMEOUT = 3


def go_on(np, out, *options):
    """An endless run, begun and surely past its first checkpoint."""
    running = start(np, *ENDLESS, "--out", out, *options)
    running.wait_for("epoch: 2 ")
    return running


def unharmed(name, out):
    """What the fault left in directory `out` goes on, on 3 ranks, to the weights of an undisturbed run."""
    end = str(int(progress(out)["step"]) + 9)
    resumed = run(3, *ENDLESS, "--out", out, "--resume", "--max-steps", end)
    whole = run(1, *ENDLESS, "--out", f"{out}-undisturbed", "--max-steps", end)
    check(resumed.digest and resumed.digest == whole.digest and metrics(out) == metrics(f"{out}-undisturbed"),
          f"{name}: --resume goes on as if nothing had been", f"{resumed}{whole}")


# --- ranks that stall and die -------------------------------------------------------------------------


def stalls():
    running = go_on(3, "pause", "--timeout", TIMEOUT)
    running.signal(signal.SIGSTOP, 1)
    time.sleep(0.7 * TIMEOUT)  # after half the timeout the others ask; a slow answer is an answer
    last = running.out.read_text().count("epoch: ")
    time.sleep(0.2)
    check(not running.wait_for(f"epoch: {last + 1} ", 0), "all wait for a rank that pauses")
    running.signal(signal.SIGCONT, 1)
    check(running.wait_for(f"epoch: {last + 1} ", 20), "and go on with it")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    check(result.code == 75, "to a normal end", result)
    unharmed("a pause", "pause")


def lost(runs):
    """Stops a rank of each run for ever. runs: a list of (name, run, rank)."""
    for _, running, rank in runs:
        running.signal(signal.SIGSTOP, rank)
    began = time.monotonic()
    for name, running, rank in runs:
        result = running.finish(30)
        took = time.monotonic() - began
        named = [other for other in range(3) if result.says(4, f"rank {other} on host {HOST}")]
        check(took < 2 * TIMEOUT + 2, f"{name}: the end comes after {TIMEOUT} s or little more", took)
        check(named == [rank], f"{name}: exit 4, and one message names rank {rank} and its host", result)


def gone():
    lost([(f"rank {rank} of 3 hangs", go_on(3, f"gone{rank}", "--timeout", TIMEOUT), rank)
          for rank in (0, 2)])
    unharmed("a rank that hung", "gone2")
    # Here nearly all of the time goes into evaluating 20,000 pictures.
    evaluating = ["--timeout", TIMEOUT, "--data", "synthetic:320+20000", "--eval-every", "1"]
    run(0, *TRAIN, *evaluating, "--epochs", "0", "--out", "drawn")  # the drawing may take longer than that
    lost([(f"rank {rank} hangs while rank 0 evaluates", go_on(3, f"evaluating{rank}", *evaluating), rank)
          for rank in (0, 1)])


def killed():
    running = go_on(3, "killed")
    began = time.monotonic()
    running.signal(signal.SIGKILL, 2)
    result = running.finish(30)
    took = time.monotonic() - began
    check(result.code not in (0, None) and took < 10, "a rank killed ends the job", result)
    unharmed("a rank killed", "killed")
    running = go_on(3, "all-killed")
    running.kill()
    running.finish()
    unharmed("every process killed at once", "all-killed")


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
    options = ["--data", "synthetic:20+5", "--batch-size", "20", "--lr", "1e5"]  # a step an epoch
    said = []
    for np in 1, 2:
        result = run(np, *options, "--epochs", "9", "--out", f"infinite{np}")
        check(result.says(1, "net D", "step ", "not finite", "--lr", "checkpoint", f"infinite{np}"),
              f"on {np} ranks a loss that is not finite ends the run, and the message has the step", result)
        said += [line.replace(f"infinite{np}", "") for line in result.messages]
    check(said[0] == said[-1], "the same step on any number of ranks", said)
    step = progress("infinite2")["step"]
    kept = run(1, *options, "--max-steps", step, "--out", "infinite2", "--resume")
    good = run(1, *options, "--max-steps", step, "--out", "finite")
    check(f"of step {step}:" in said[0] and kept.code == 0 and kept.digest == good.digest and int(step) > 0,
          "the checkpoint named is of the last good step, and loads", f"{kept}{good}")
    result = run(1, *options, "--batch-size", "5", "--epochs", "9", "--out", "at-once")
    check(result.says(1, "no checkpoint yet"), "within the first epoch there is none", result)


def flip_weights(pid, weights):
    """In a process that stands still: another sign bit wherever these bytes lie in its own memory."""
    found = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            words = line.split()
            first, last = (int(address, 16) for address in words[0].split("-"))
            if words[1] != "rw-p" or last - first > 1 << 26:
                continue
            memory.seek(first)
            at = (block := memory.read(last - first)).find(weights)
            while at >= 0:
                memory.seek(first + at + 3)
                memory.write(bytes([block[at + 3] ^ 0x80]))
                found += 1
                at = block.find(weights, at + 1)
    return found


def diverged():
    """At a learning rate of 0 the weights stand still, so they are found in memory by their values."""
    options = ["--lr", "0", "--eval-every", "1000000"]
    for rank in 1, 0:
        out = f"diverged{rank}"
        running = go_on(3, out, *options)
        weights = read(FOLDER / out / "checkpoint.safetensors")[0]["conv1.bias"][1].tobytes()
        running.signal(signal.SIGSTOP, rank)
        found = flip_weights(running.ranks()[rank], weights)
        running.signal(signal.SIGCONT, rank)
        result = running.finish(30)
        check(found > 0 and result.says(5, f"rank {rank} (host {HOST})", "differ"),
              f"a flipped bit in the weights of rank {rank}: exit 5, and the rank is named", f"{found}{result}")
        kept = read(FOLDER / out / "checkpoint.safetensors")[0]["conv1.bias"][1].tobytes()
        check(kept == weights, "and is not saved")
        resumed = run(2, *ENDLESS, *options, "--out", out, "--resume", "--max-steps",
                      str(int(progress(out)["step"]) + 9))
        check(resumed.code == 0, "--resume goes on", resumed)


# --- files --------------------------------------------------------------------------------------------


def unwritable():
    (FOLDER / "file").write_text("not a directory")
    places = [FOLDER / "file" / "below", "/proc/none", FOLDER / "file"]
    for out, result in zip(places, run_all([(2, *TRAIN, "--epochs", "1", "--out", out) for out in places])):
        check(result.says(1, out, "--out") and result.out == "", f"--out {out} is refused before any work",
              result)
    result = run(0, *TRAIN, "--epochs", "1", "--out", "x" * 5000)
    check(result.says(2, "--out"), "so is a path too long", result)


def disk_full():
    small = FOLDER / "small"
    small.mkdir()
    mount = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1300k", "dtrain-test", small], stderr=subprocess.DEVNULL)
    if not mount or mount.returncode != 0:
        skip("a disk that is full", "no small file system can be mounted here")
        return
    try:
        result = run(2, *TRAIN, "--epochs", "9", "--out", small / "run")
        check(result.says(1, small / "run", "No space left"), "a full disk: the file is named", result)
        left = {file.name for file in (small / "run").iterdir()}
        check(not any("tmp" in name for name in left), "nothing half-written stays", left)
        shutil.copytree(small / "run", FOLDER / "saved")
    finally:
        subprocess.run(["umount", small], check=True)
    unharmed("moved to another disk", "saved")


def shared():
    first = go_on(2, "shared")
    second = run(3, *ENDLESS, "--out", "shared", "--resume")
    pid = first.ranks()[0]
    check(second.says(2, "shared", "in use", f"process {pid} on {HOST}"),
          "a second run on one directory is refused, and the first named", second)
    second = run(2, *ENDLESS, "--out", "shared")
    check(second.says(2, "in use"), "without --resume too", second)
    first.signal(signal.SIGUSR1)
    result = first.finish()
    check(result.code == 75, "the first is not disturbed", result)
    unharmed("the first", "shared")


# --- ranks that are not alike -------------------------------------------------------------------------


def unlike():
    cases = [
        (["--seed", "1"], ["--seed", "2"], ["--seed", "1", "2"]),
        (["--lr", "0.01"], ["--lr", "0.02"], ["--lr", "0.01", "0.02"]),
        (["--epochs", "5"], [], ["--epochs", "5", "1000"]),
        (["--data", "synthetic:40+10"], ["--data", "synthetic:45+10"], ["--data", "40+10", "45+10"]),
        (["--data", "."], [], ["--data", "synthetic:335+70"]),
        (["--resume"], [], ["--resume", "true", "false"]),
    ]
    base = ["--data", "synthetic:335+70", "--out", "unlike", "--timeout", TIMEOUT]
    started = [start_unlike([*base, *ours], [*base, *ours], [*base, *theirs]) for ours, theirs, _ in cases]
    for (ours, theirs, words), running in zip(cases, started):
        result = running.finish(60)
        check(result.says(2, "rank 2", HOST, *words),
              f"a rank with {' '.join(theirs) or 'none'} instead of {' '.join(ours)} is refused", result)
    for flag in "--doctor", "--help":
        result = start_unlike([*base, flag], base).finish(60)
        check(result.code is not None, f"{flag} on one rank only ends as well", result)
    check(not (FOLDER / "unlike").exists(), "and no run began")


not_finite()
diverged()
unwritable()
disk_full()
unlike()
shared()
killed()
impatient()
stalls()
gone()
finish()
