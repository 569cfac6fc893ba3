#!/usr/bin/env python3
"""tests/gpu/run, which has a few minutes of a lent GPU: steps that hang, fail or come too late cost only themselves.
Its own steps are replaced by small ones, nvidia-smi by one that finds a GPU."""
# timed: steps of seconds have limits of seconds

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from tap import check, finish

FOLDER = Path(tempfile.mkdtemp(prefix="dtrain-"))
ROOT = Path(__file__).resolve().parents[2]
loader = SourceFileLoader("runner", str(ROOT / "tests" / "gpu" / "run"))
runner = module_from_spec(spec_from_loader("runner", loader))
loader.exec_module(runner)
PATH = os.environ["PATH"]


def run(steps, *words, nvidia_smi="exit 0"):
    """(exit code, what it printed, seconds)"""
    tool = FOLDER / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    tool.chmod(0o755)
    os.environ["PATH"] = f"{tool.parent}:{PATH}"
    runner.STEPS, runner.OUT = steps, FOLDER / "out"
    sys.argv[1:] = words
    began, printed = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = runner.main()
    return code, printed.getvalue(), time.monotonic() - began


STUBBORN = """
    echo begun
    trap '' TERM INT HUP
    setsid -f sh -c 'trap "" TERM; while :; do sleep 1; done'
    while :; do sleep 1; done"""
SLOW = runner.Step(30, "sleep 30")
GOOD, BAD = runner.Step(20, "echo fine"), runner.Step(20, "echo no good; exit 3")
GATE = BAD._replace(gate=True)

code, text, seconds = run({"hangs": runner.Step(1, STUBBORN), "good": GOOD})
check(code == 1 and "hangs        FAILED: killed after 1 s" in text and "good         ok" in text and seconds < 15,
      "a step that ignores signals is killed at its limit, the next one runs", text)
left = [pid for i in range(9) for pid in runner.processes(f"{os.getpid()}-{i}")]
check("begun" in text and not left, "what it printed is kept, and nothing of it is left, in whatever session", left)
code, text, _ = run({"bad": BAD, "good": GOOD})
check(code == 1 and "bad          FAILED: exit code 3" in text and "good         ok" in text,
      "a step that fails stops no other", text)
code, text, _ = run({"step": GATE, "good": GOOD, "diagnose": GOOD})
check(code == 1 and "good         NOT RUN: step failed" in text and "diagnose     ok" in text,
      "but after one that the others need only a diagnosis follows", text)
code, text, _ = run({"build": GATE, "good": GOOD, "diagnose": GOOD})
check(code == 1 and "good         NOT RUN: build failed" in text and "diagnose     " not in text,
      "and nothing after a build that fails", text)
code, text, seconds = run({"slow": SLOW, "late": GOOD}, "-t", "7")
check(code == 1 and "slow         FAILED: killed after 7 s" in text and "late         NOT RUN: no time left" in text and
      seconds < 15, "-t ends all of them", text)
code, text, _ = run({"good": GOOD, "bad": BAD}, "good")
check(code == 0 and "bad" not in text, "only what is named runs", text)
check((FOLDER / "out" / "gpu.txt").read_text().count("fine") == 1, "gpu.txt has what was printed")
code, text, _ = run({"good": GOOD}, nvidia_smi="exit 9")
check(code == 0 and text.startswith("tests/gpu/run: skipped: there is no GPU here"), "without a GPU it is skipped",
      text)

# Told to stop by a signal, and with an OUT that is relative: the first step asks a driver that hangs.
tool, away = FOLDER / "bin" / "nvidia-smi", FOLDER / "away"
(FOLDER / "temporary").mkdir()
away.mkdir()
tool.write_text(f'#!/bin/sh\n[ "$1" != -L ] || exit 0\necho $OUT >{FOLDER}/hangs\nsleep 60\n')
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
    (FOLDER / "hangs").unlink(missing_ok=True)
    running = subprocess.Popen([ROOT / "tests/gpu/run", "environment"], cwd=away, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OUT": "results", "TMPDIR": str(FOLDER / "temporary")})
    while running.poll() is None and not ((FOLDER / "hangs").exists() and (FOLDER / "hangs").read_text()):
        time.sleep(0.05)
    running.send_signal(number)
    code = running.wait(30)
    left = list(runner.processes(f"{running.pid}-0"))
    check(code == 128 + number.value and not left and not os.listdir(FOLDER / "temporary"),
          f"{number.name}: ends the step, and leaves nothing of it", (code, left, os.listdir(FOLDER / "temporary")))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
said = (FOLDER / "hangs").read_text()
check((away / "results" / "gpu.txt").exists() and said == f"{away}/results\n", "a relative OUT is the caller's", said)

done = subprocess.run(["gpu/carry"], cwd=ROOT / "tests", env={**os.environ, "CDPATH": str(FOLDER)}, capture_output=True,
                      text=True, check=False)
check(done.returncode == 2 and "tests/gpu/carry run" in done.stdout and not done.stderr,
      "carry called from another folder says what it does", done)
shutil.rmtree(FOLDER)
finish()
