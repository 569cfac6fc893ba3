#!/usr/bin/env python3
"""launch/variants: four nets as jobs with cores of their own."""
# needs: dtrain

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from launching import DATA, HOSTILE, LAUNCH, SCRATCH, begin, children, fails, is_png, launch, said, wait_for
from tap import check, finish
from terminal import Terminal


def digests(output):
    """Net to digest, of the lines at the end, or of the table of --net all."""
    return dict(re.findall(r"^(?:net )?([A-D])  .* ([0-9a-f]{16})$", output, re.MULTILINE))


def best_tests(output):
    """Net to best test accuracy, as digests."""
    table = {row[0]: row.split()[-3] for row in re.findall(r"^[A-D]  .*", output, re.MULTILINE)}
    return table or dict(re.findall(r"^net ([A-D])  epoch: .* best: ([\d.]+)%", output, re.MULTILINE))


def test_variants():
    done = launch("variants", "-np", 1, *DATA, "--epochs", 2, "--p-conv", 0.2, "--seed=7")
    out = SCRATCH / "runs/variants-7"
    check(
        done.returncode == 0 and set(digests(done.stdout)) == set("ABCD"),
        "variants: trains four nets",
        said(done),
    )
    check(is_png(out / "loss.png"), "variants: draws them", said(done))
    taken = {net: json.loads((out / net / "run.json").read_text())["options"]["p-conv"] for net in "ABCD"}
    check(taken == {"A": None, "B": None, "C": 0.2, "D": 0.2}, "variants: --p-conv is for C and D", taken)
    both = launch(
        "run", "-np", 2, *DATA, "--net", "all", "--epochs", 2, "--p-conv", 0.2, "--seed", 7, "--out", "all"
    )
    check(
        digests(both.stdout) == digests(done.stdout),
        "variants: the weights are those of --net all",
        said(done) + said(both),
    )
    check(
        set(best_tests(done.stdout)) == set("ABCD") and best_tests(both.stdout) == best_tests(done.stdout),
        "variants: so are the best accuracies",
        said(done) + said(both),
    )

    done = launch("variants", "--data", "nowhere", "--out", "bad")
    check(fails(done, 3, "A B C D", "nowhere"), "variants: what all four say is said once", said(done))
    for words in ["--lr", "fast"], ["--bogus"], ["foo"], ["--p-fc", "2"]:
        done = launch("variants", *DATA, *words, "--out", "none")
        check(fails(done, 2, words[-1]) and not done.stdout and not (SCRATCH / "none").exists(),
              f"variants: {' '.join(words)}: exit 2, one line, no files", said(done))
    done = launch("variants", *DATA, "--out", "/proc/variants")
    check(fails(done, 1, "/proc/variants: cannot be made: No such file"), "variants: no room for the files", said(done))
    done = launch("variants", "--net", "A")
    check(fails(done, 2, "--net"), "variants: --net is refused", said(done))
    done = launch("variants", "--seed")
    check(fails(done, 2, "--seed"), "variants: an option without its value", said(done))
    done = launch("variants", "-np", 1, *DATA, "--seed=7", "--epochs", 3)
    check(
        done.returncode == 2 and done.stderr.count("--resume") == 4,
        "variants: runs there are kept",
        said(done),
    )


LSCPU = """#!/usr/bin/env python3
print("# eleven cores of two threads each, on two sockets")
for cpu in range(22):
    print(f"{cpu % 11 // 6},{cpu % 11},{cpu}")
"""
TASKSET = """#!/bin/bash
if [[ $1 == -cp ]]; then
    echo "pid $2's current affinity list: ${PINNED:-0,2-21}"
else
    PINNED=$2 exec "${@:3}"
fi
"""


def test_variants_cores():
    """On a machine that looks larger than this one, and of which one CPU is not ours."""
    tools = SCRATCH / "large"
    tools.mkdir()
    for tool, text in ("lscpu", LSCPU), ("taskset", TASKSET):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    large = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = launch("variants", *DATA, "--epochs", 1, "--out", "cores", env=large)
    cpus = [
        [int(cpu) for cpu in line.split(",")] for line in re.findall(r"on cores ([\d,]+), log", done.stdout)
    ]
    check(sorted(sum(cpus, [])) == [0, *range(2, 22)], "variants: every CPU is one net's", said(done))
    cores = [{cpu % 11 for cpu in share} for share in cpus]
    check(sum(map(len, cores)) == 11, "variants: threads of a core stay together", cpus)
    check(sorted(map(len, cores)) == [2, 3, 3, 3], "variants: cores are shared evenly", cpus)
    ranks = [json.loads((SCRATCH / "cores" / net / "run.json").read_text())["net"]["ranks"] for net in "ABCD"]
    check(ranks == list(map(len, cores)), "variants: a rank a core", ranks)


def test_variants_stop():
    out = SCRATCH / HOSTILE / "stopped"
    run = begin("variants", "-np", 1, *DATA, "--out", out)
    wait_for(lambda: all((out / net / "checkpoint.safetensors").exists() for net in "ABCD"))
    run.send_signal(signal.SIGTERM)
    output, errors = run.communicate(timeout=60)
    check(
        run.returncode == 75 and "--resume" in output, "variants: a signal saves and stops", output + errors
    )
    check(set(digests(output)) == set("ABCD"), "variants: all four", output + errors)
    most = max(len((out / net / "metrics.jsonl").read_text().splitlines()) for net in "ABCD") + 1
    done = launch("variants", "-np", 1, *DATA, "--out", out, "--epochs", most, "--resume")
    counts = [len((out / net / "metrics.jsonl").read_text().splitlines()) for net in "ABCD"]
    check(
        done.returncode == 0 and counts == [most] * 4, "variants: --resume goes on", f"{counts}\n{said(done)}"
    )


def test_variants_options_of_shell():
    """Of whoever starts it, `export SHELLOPTS` in an interactive shell."""
    done = launch("variants", "-np", 1, *DATA, "--epochs", 1, "--out", "shell",
                  env={**os.environ, "SHELLOPTS": "braceexpand:monitor"})
    check(done.returncode == 0 and set(digests(done.stdout)) == set("ABCD") and not done.stderr,
          "variants: bash's options in the environment change nothing", said(done))


def test_variants_unheard():
    """All four train to the end, whatever becomes of standard output."""
    for name, how, code in ("full", '"$@" >/dev/full', 1), ("closed", '"$@" <&- >&- 2>&-', 0), (
            "without a reader", '{ "$@"; echo $? >code; } | true; exit $(cat code)', 1):
        command = [LAUNCH / "variants", "-np", 1, *DATA, "--epochs", 2, "--out", f"unheard-{name}"]
        done = subprocess.run(["bash", "-c", how, "bash", *map(str, command)], cwd=SCRATCH, capture_output=True,
                              text=True, timeout=120, check=False)
        what = f"variants: standard output is {name}: it trains four nets, and ends with {code}"
        drawn = is_png(SCRATCH / f"unheard-{name}" / "accuracy.png")
        check(drawn and (fails(done, 1, "standard output") if code else done.returncode == 0), what, said(done))
    done = subprocess.run([LAUNCH / "variants", "--net", "A"], stderr=open("/dev/full", "w"), check=False)
    check(done.returncode == 2, "variants: standard error is full: the exit code is the same", done)


def test_variants_hung_up():
    """Its terminal is closed, which then can no longer be written to."""
    out = SCRATCH / "hung-up"
    terminal = Terminal([LAUNCH / "variants", "-np", 1, *DATA, "--out", out], SCRATCH, os.environ)
    wait_for(lambda: all((out / net / "checkpoint.safetensors").exists() for net in "ABCD"))
    os.close(terminal.screen)
    code = os.waitstatus_to_exitcode(os.waitpid(terminal.process, 0)[1])
    logs = [(out / net / "log.txt").read_text() for net in "ABCD"]
    check(code == 75 and all("weights: " in log for log in logs), "variants: its terminal is closed: saved, 75",
          (code, *logs))


def test_variants_killed():
    """With -9, on a terminal that stays: all that it started ends, saved."""
    out = SCRATCH / "killed"
    command = [LAUNCH / "variants", "-np", 1, *DATA, "--epochs", 1000000, "--out", out]
    terminal = Terminal(["/bin/sh", "-c", '"$@"; sleep 60', "sh", *command], SCRATCH, os.environ)

    def left():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if bytes(out) in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    wait_for(lambda: all((out / net / "checkpoint.safetensors").exists() for net in "ABCD"))
    os.kill(children(terminal.process)[0], signal.SIGKILL)
    ended = wait_for(lambda: left() == [terminal.process], 15)
    for pid in left():
        os.kill(pid, signal.SIGKILL)
    terminal.finish()
    logs = [(out / net / "log.txt").read_text() for net in "ABCD"]
    check(ended and all("weights: " in log for log in logs), "variants: killed with -9: its jobs are saved and end",
          logs)


def test_variants_early_stop():
    """Signals at whatever moment of the start, which takes a while where lscpu does, reach all four or find none."""
    tools = SCRATCH / "slow"
    shutil.copytree(SCRATCH / "large", tools)
    (tools / "lscpu").write_text(f"{LSCPU}import time\ntime.sleep(0.1)\n")
    slow = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    for moment in 0, 0.2, 0.4, 0.6:
        out = SCRATCH / f"early-{moment}"
        command = [LAUNCH / "variants", "-np", "1", *DATA, "--epochs", "1000", "--out", out]
        run = subprocess.Popen(command, cwd=SCRATCH, env=slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
        wait_for((out / "D").exists)
        time.sleep(moment)
        run.send_signal(signal.SIGTERM)
        output, errors = run.communicate(timeout=60)
        begun = [net for net in "ABCD" if (out / net / "log.txt").exists()]
        to_the_end = [net for net in begun if "epoch: 1000 " in (out / net / "log.txt").read_text()]
        check(run.returncode == 75 and len(begun) in (0, 4) and not to_the_end and (begun or errors.count("\n") == 1),
              f"variants: SIGTERM after {moment} s", (begun, to_the_end, output, errors))
    # from the first of them, while the others are being started
    place = SCRATCH / "stops-at-once"
    shutil.copytree(LAUNCH, place)
    (place / "run").write_text('''#!/bin/bash
trap "exit 75" USR1
[[ $* != *--net\\ A* ]] || kill -TERM $PPID
sleep 5 &
wait $!
exit 3
''')
    for _ in range(5):
        done = subprocess.run([place / "variants", "--out", "at-once"], cwd=SCRATCH, capture_output=True, text=True,
                              timeout=60, check=False)
        check(done.returncode == 75, "variants: SIGTERM as they are being started", said(done))


def test_variants_seeds():
    done = launch("variants", "-np", 1, *DATA, "--epochs", 2, "--seeds", 2, "--out", "seeds")
    check(len(re.findall(r"^net [A-D]  seed: 2 epoch: 2 .*  weights: [0-9a-f]{16}$", done.stdout, re.M)) == 4 and
          is_png(SCRATCH / "seeds/loss.png") and not done.stderr, "variants: --seeds: what each said, and figures",
          said(done))
    terminal = Terminal([LAUNCH / "variants", "-np", 1, *DATA, "--seeds", 2, "--out", "seen"], SCRATCH, os.environ)
    wait_for(lambda: all((SCRATCH / "seen" / net / "seed2/checkpoint.safetensors").exists() for net in "ABCD"))
    time.sleep(2)
    terminal.press(b"\x03")
    code, output = terminal.finish()
    check(code == 75 and re.search(r"epoch, loss(   [A-D] \d+, \d\.\d+){4}", output), "variants: --seeds: the progress",
          output)


test_variants()
test_variants_cores()
test_variants_stop()
test_variants_options_of_shell()
test_variants_unheard()
test_variants_hung_up()
test_variants_killed()
test_variants_early_stop()
test_variants_seeds()
finish()
