#!/usr/bin/env python3
"""What goes wrong with ranks is told in one line, ends the job soon, and costs no more than the last checkpoint."""
# needs: dtrain
# timed: how long it takes until faults are told is measured

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from dtrain import (ENVIRONMENT, FOLDER, PROGRAM, ROOT, Run, content, metrics, preloaded, progress, run, start,
                    start_unlike)
from endless_run import ENDLESS, TRAIN, go_on, unharmed
from events_reader import wall_times
from safetensors_reader import read
from tap import check, finish, side_by_side, skip

HOST = socket.gethostname()
TIMEOUT = 3
EVALUATING = ["--data", "synthetic:320+20000", "--eval-every", "1"]  # nearly all of the time


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


def suspended():
    """A whole job is stopped for longer than the timeout, in the middle of asking for a rank, and goes on."""
    running = go_on(3, "suspended", "--timeout", TIMEOUT)
    running.signal(signal.SIGSTOP, 1)
    time.sleep(0.5 * TIMEOUT + 0.3)  # the others have asked it
    for rank in 0, 2, None:
        running.signal(signal.SIGSTOP, rank)
    time.sleep(TIMEOUT + 1)
    last = running.out.read_text().count("epoch: ")
    for rank in None, 0, 2:
        running.signal(signal.SIGCONT, rank)
    time.sleep(0.3)
    running.signal(signal.SIGCONT, 1)
    check(running.wait_for(f"epoch: {last + 2} ", 20), "a whole job that is stopped and continued goes on")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    check(result.code == 75, "a whole job that is stopped and continued: to a normal end", result)


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


def gone_in_evaluation():
    run(0, *TRAIN, *EVALUATING, "--epochs", "0", "--out", "drawn")
    lost([(f"rank {rank} hangs while rank 0 evaluates", go_on(3, f"evaluating{rank}", *EVALUATING, "--timeout",
                                                              TIMEOUT), rank)
          for rank in (0, 1)])


def slow_polls():
    """On a machine so overloaded that a waiting rank polls less than once a second, one that is lost is noticed too."""
    library = preloaded("slow_polls", f"""
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int nanosleep(const struct timespec *time, struct timespec *rest)
        {{
            static const struct timespec longer = {{1, 50000000}};
            int slow = time->tv_sec == 0 && time->tv_nsec < 1000000 && access("{FOLDER}/slow", F_OK) == 0;
            return (int)syscall(SYS_nanosleep, slow ? &longer : time, rest);
        }}""")
    running = start(2, *ENDLESS, "--out", "slow-polls", "--timeout", TIMEOUT, env={"LD_PRELOAD": str(library)})
    running.wait_for("epoch: 2 ")
    (FOLDER / "slow").touch()
    running.signal(signal.SIGSTOP, 1)
    result = running.finish(60)
    check(result.says(4, "lost 1 of 2 ranks: rank 1 on host"), "a lost rank is noticed where every poll takes a second",
          result)


def kill(phase, running, rank):
    """Kills a rank; the one line there is then has who and what, and what another rank waited for,
    which this returns."""
    running.signal(signal.SIGKILL, rank)
    began = time.monotonic()
    result = running.finish(30)
    took = time.monotonic() - began
    # The kill before may have left half a checkpoint, of which there is a note.
    told = "".join(line for line in result.err.splitlines(True) if not line.startswith("dtrain: note: "))
    said = re.fullmatch(rf"launch/run: lost rank {rank} on host {HOST}, ended by signal 9 \(Killed\), while rank "
                        rf"[^{rank}] waited for (.*) of step \d+; start again with --resume\n", told)
    check(result.code == 4 and said and took < 10,
          f"rank {rank} killed {phase}: exit 4, and one line names it, its host and the step",
          f"{took:.1f} s\n{result}")
    return said and said[1]


def killed_mostly(phase, out, rank, awaited, *options):
    """In a run that is nearly always in this phase: when the others wait for that."""
    run(0, *ENDLESS, *options, "--max-steps", "9", "--out", out)  # amid an epoch, whose end would be a check
    for _ in range(6):
        running = start(3, *ENDLESS, *options, "--out", out, "--resume")
        running.wait_for("epoch: ")
        time.sleep(0.1)
        if hit := kill(phase, running, rank) == awaited:
            break
    check(hit, f"rank {rank} killed {phase}: the others waited for {awaited}")
    unharmed(f"rank {rank} killed {phase}", out, *options)


def killed_computing():
    killed_mostly("in its forward or backward pass", "killed-computing", 2, "the gradient sum", "--data",
                  "synthetic:5000+70",
                  "--batch-size", "2500", "--eval-every", "1000000", "--checkpoint-every", "1000000")


def killed_evaluating():
    killed_mostly("while it evaluates", "killed-evaluating", 0, "the sum of an evaluation", *EVALUATING)


def killed_summing():
    running = go_on(3, "killed-summing")
    running.signal(signal.SIGSTOP, 2)
    time.sleep(0.5)  # now the others wait for it
    kill("in the all-reduce", running, 1)
    unharmed("rank 1 killed in the all-reduce", "killed-summing")


def killed_saving():
    running = go_on(3, "killed-saving")
    rank, deadline = running.rank_process(0), time.monotonic() + 60
    while time.monotonic() < deadline:
        if half_a_checkpoint("killed-saving"):
            os.kill(rank, signal.SIGSTOP)
            while Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                pass  # it may write a little further until it stops
            if half_a_checkpoint("killed-saving"):
                break
            os.kill(rank, signal.SIGCONT)
    kill("while it saves", running, 0)
    check(half_a_checkpoint("killed-saving"), "rank 0 killed while it saves: leaves half a checkpoint")
    unharmed("rank 0 killed while it saves", "killed-saving")
    check(not half_a_checkpoint("killed-saving"), "rank 0 killed while it saves: the half is removed")


def all_killed():
    running = go_on(3, "all-killed")
    running.kill()
    running.finish()
    unharmed("every rank killed at once", "all-killed")


def half_a_checkpoint(out):
    return [file for file in os.listdir(FOLDER / out) if "checkpoint" in file and ".tmp-" in file]


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


def noise():
    """Open MPI's own races are not the user's trouble; what looks like them, and is another's, is."""
    program = FOLDER / "noisy"
    program.write_text("""#!/bin/sh
echo '[h:84] plm:rsh: Warning: setpgid(84,84) failed in parent with errno=Permission denied(13)' >&2
echo >&2
echo 'another: Warning: setpgrp' >&2
exec "$REAL" "$@"
""")
    program.chmod(0o755)
    result = run(1, *TRAIN, "--epochs", "1", "--out", "noisy-run", env={"DTRAIN": str(program), "REAL": PROGRAM})
    check(result.code == 0 and result.err == "another: Warning: setpgrp\n", "Open MPI's warning of setpgid is withheld",
          result)


def crash_of_mpirun():
    """Open MPI's mpirun crashes now and then as it ends: then what the first rank said counts. Before, all is lost."""
    places = FOLDER / "crashing"
    places.mkdir()
    (places / "mpirun").write_text(f"""#!/bin/bash
[[ $1 != --version ]] || exec {shutil.which('mpirun')} --version
[[ $WHEN == before ]] || {shutil.which('mpirun')} "$@"
printf '[h:84] %s\\n' '*** Process received signal ***' 'Signal: Segmentation fault (11)' \\
    '[ 7] /usr/bin/mpirun(+0x13b9)[0x562dd81fe3b9]' '*** End of error message ***' >&2
kill -s SEGV $$
""")
    (places / "mpirun").chmod(0o755)

    def crashed(when, out):
        env = {**ENVIRONMENT, "PATH": f"{places}:{ENVIRONMENT['PATH']}", "WHEN": when}
        return subprocess.run([ROOT / "launch/run", "-np", "2", *TRAIN, "--epochs", "1", "--out", out], cwd=FOLDER,
                              env=env, text=True, capture_output=True, timeout=60, check=False)

    result = crashed("after", "crashed")
    check(result.returncode == 0 and result.stderr == "", "mpirun crashes when all is done: exit 0, and no word of it",
          result)
    result = crashed("after", "crashed")
    check(result.returncode == 2 and len(result.stderr.splitlines()) == 1, "after a refusal: exit 2, and its line",
          result)
    result = crashed("before", "early")
    check(result.returncode == 4 and "/usr/bin/mpirun(" in result.stderr and "by signal 11" in result.stderr,
          "before: exit 4, one line, and what Open MPI says", result)


def unread():
    """Nobody reads what it prints any more, as after launch/run ... | head."""
    command = [ROOT / "launch" / "run", "-np", "2", *ENDLESS, "--out", "unread"]
    with subprocess.Popen(command, cwd=FOLDER, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as running:
        while "epoch: 2 " not in running.stdout.readline():
            pass
        running.stdout.close()
        said = running.stderr.read()
        code = running.wait(60)
    check(code == 75 and len(said.splitlines()) == 1 and "standard output" in said and "--resume" in said,
          "launch/run ... | head: saved, exit 75, and one line says why", f"{code}: {said}")
    unharmed("a pipe that nobody reads", "unread")


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
    check(said[0].endswith(f"at step {step}") and kept.code == 0 and kept.digest == good.digest and int(step) > 0,
          "the checkpoint named is of the last good step, and loads", f"{kept}{good}")
    result = run(1, *options, "--epochs", "9", "--out", "infinite2", "--resume")
    check(result.says(1, f"at step {step}"), "and is named again where the run goes on from it", result)
    result = run(1, *options, "--batch-size", "5", "--epochs", "9", "--out", "at-once")
    check(result.says(1, "after 1 step (epoch 1)", "no checkpoint yet", "--lr", "--resume"),
          "within the first epoch there is none", result)
    result = run(1, *options, "--lr", "0.01", "--batch-size", "5", "--epochs", "2", "--out", "at-once", "--resume")
    check(result.code == 0 and [line["epoch"] for line in metrics("at-once")] == [1, 2],
          "the advice works: the same with a lower --lr, and --resume", result)
    result = run(1, *options, "--lr", "0.01", "--epochs", "2", "--out", "another")
    check(result.code == 0 and result.digest, "so does that where there is a checkpoint: a lower --lr, another --out",
          result)
    weights = re.search(r"--init-from (\S+) ", said[-1])[1].replace("/", "infinite2/")
    result = run(1, *options, "--epochs", "0", "--out", "from-there", "--init-from", weights)
    check(result.code == 0 and result.digest == good.digest, "and the checkpoint named can be started from", result)
    result = run(0, "--data", "synthetic:3200+70", "--batch-size", "64", "--lr", "0.05", "--net", "C", "--p-conv",
                 "0.999", "--epochs", "3", "--out", "scaled")
    check(result.says(1, "p = 0.999 multiplies what it keeps by 1000"), "where dropout may be the cause, that is said",
          result)


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


def stop_between_saves(pid, checkpoint, tries=100):
    """Stops a process so soon after a save that the next one, a second later, has not begun (SECONDS_BETWEEN_SAVES of
    trainer.c). False: it never came to that."""
    for _ in range(tries):
        saved, before, end = checkpoint.stat().st_mtime_ns, time.monotonic(), time.monotonic() + 30
        while (now := time.monotonic()) < end and checkpoint.stat().st_mtime_ns == saved:
            before = now  # there was none yet
            time.sleep(0.001)
        os.kill(pid, signal.SIGSTOP)
        if time.monotonic() - before < 0.5:
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def diverged():
    """At a learning rate of 0 the weights stand still, so they are found in memory by their values. What is flipped in
    the moment between comparing and writing is written, and no test of this: hence stop_between_saves."""
    options = ["--data", "synthetic:20000+70", "--lr", "0", "--eval-every", "1000000"]

    def flip(running, rank, out):
        """Returns the weights as they were, and how often they lay there."""
        weights = read(FOLDER / out / "checkpoint.safetensors")[0]["conv1.bias"][1].tobytes()
        pid = running.rank_process(rank)
        check(stop_between_saves(pid, FOLDER / out / "checkpoint.safetensors"), f"rank {rank} stands between two saves")
        found = flip_weights(pid, weights)
        os.kill(pid, signal.SIGCONT)
        return weights, found

    for rank in 1, 0:
        out = f"diverged{rank}"
        running = start(3, *ENDLESS, *options, "--out", out)
        running.wait_for("epoch: 2 ")
        weights, found = flip(running, rank, out)
        result = running.finish(30)
        check(found > 0 and result.says(5, f"rank {rank} (host {HOST})", "differ"),
              f"a flipped bit in the weights of rank {rank}: exit 5, and the rank is named", f"{found}{result}")
        kept = read(FOLDER / out / "checkpoint.safetensors")[0]["conv1.bias"][1].tobytes()
        check(kept == weights, "and is not saved")
        resumed = run(2, *ENDLESS, *options, "--out", out, "--resume", "--max-steps",
                      str(int(progress(out)["step"]) + 9))
        check(resumed.code == 0, "--resume goes on", resumed)
    running = start(4, *ENDLESS, *options, "--net", "A,D", "--out", "diverged-study")
    running.wait_for("net: D epoch: 2 ")
    flip(running, 3, "diverged-study/D")
    running.wait_for("differ")
    running.signal(signal.SIGUSR1)
    result = running.finish(30)
    check(result.says(75, "net D", f"rank 3 (host {HOST})", "differ"),
          "of several nets the rank is named by its number among all", result)


# --- clocks -------------------------------------------------------------------------------------------


def clocks():
    """The clocks of two ranks jump, a day ahead and three back, on the way."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        skip("clocks that jump", "no libfaketime here; apt-get install libfaketime")
        return
    fake = {"LD_PRELOAD": library, "FAKETIME_NO_CACHE": 1, "FAKETIME_DONT_FAKE_MONOTONIC": 1, "FAKETIME_DISABLE_SHM": 1}
    jumps = [("ahead", "+1d"), ("back", "-3d"), ("still", "+0d")]
    settings = []
    for name, _ in jumps:
        (FOLDER / name).write_text("+0d\n")
        settings.append([word for key, value in {**fake, "FAKETIME_TIMESTAMP_FILE": FOLDER / name}.items()
                         for word in ("-x", f"{key}={value}")])
    began = time.time()
    running = start_unlike(*[[*ENDLESS, "--out", "clocks", "--timeout", TIMEOUT]] * 3, settings=settings)
    running.wait_for("epoch: 2 ")
    for name, jump in jumps:
        (FOLDER / name).write_text(jump + "\n")
    time.sleep(2.5 * TIMEOUT)
    last = running.out.read_text().count("epoch: ")
    check(running.wait_for(f"epoch: {last + 2} ", 20), "clocks that jump: the run goes on")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    times = wall_times(FOLDER / "clocks")
    check(result.code == 75, "clocks that jump: to a normal end", result)
    check(times[-1] > began + 86400, "clocks that jump: they did", times[-1] - began)
    seconds = [json.loads(line)["seconds"] for line in content("clocks", "metrics.jsonl").splitlines()]
    check(all(0 < second < 60 for second in seconds), "clocks that jump: no epoch took a day, or less than nothing",
          seconds)
    unharmed("clocks that jump", "clocks")


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
    revision = subprocess.run([PROGRAM, "--version"], stdout=subprocess.PIPE, check=True).stdout.split()[3].rstrip(b",")
    other = b"0123456789ab"[:len(revision)].ljust(len(revision), b"x")
    build = FOLDER / "dtrain-of-another-revision"
    build.write_bytes(Path(PROGRAM).read_bytes().replace(revision, other))
    build.chmod(0o755)
    result = Run(["mpirun", "-np", 2, PROGRAM, *base, ":", "-np", 1, build, *base], {}, FOLDER).finish(60)
    check(result.says(2, "rank 2", HOST, "code", revision.decode(), other.decode()),
          "a rank of another revision is refused", result)
    for flag in "--doctor", "--help":
        result = start_unlike([*base, flag], base).finish(60)
        check(result.code is not None, f"{flag} on one rank only ends as well", result)
    check(not (FOLDER / "unlike").exists(), "and no run began")


side_by_side(2, diverged, clocks, unlike, killed_computing, killed_evaluating, killed_saving, killed_summing,
             not_finite, all_killed, suspended, slow_polls, impatient, noise, crash_of_mpirun, unread)
stalls()
gone()
gone_in_evaluation()
finish()
