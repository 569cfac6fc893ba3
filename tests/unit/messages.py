#!/usr/bin/env python3
"""The messages between ranks: sums, agreements, parts, and waits that end."""
# needs: messages
# timed: waits must end within seconds

import functools
import os
import subprocess
import tempfile
import time
from pathlib import Path

from tap import check, finish, side_by_side, skip

ROOT = str(Path(__file__).resolve().parents[2])
PROGRAM = os.path.join(ROOT, "build/gcc-native/tests/unit/messages")


def run(ranks, scenario, program=PROGRAM):
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:  # mpiruns that share one remove it from under each other
        done = subprocess.run(
            [os.path.join(ROOT, "launch/run"), "-np", str(ranks), scenario],
            env={**os.environ, "DTRAIN": program, "TMPDIR": directory},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    return done.returncode, done.stdout, time.monotonic() - begin


for ranks in (3, 4):
    for scenario in ("sum", "turns", "agree", "same", "split", "messages"):
        code, output, _ = run(ranks, scenario)
        check(code == 0, f"{scenario} on {ranks} ranks", output)

# Ranks that cannot see each other's processes share no memory: their sums go by MPI, and are the same.
with tempfile.TemporaryDirectory() as directory:
    apart = os.path.join(directory, "apart")
    with open(apart, "w") as script:
        script.write(f'#!/bin/sh\nOMPI_MCA_btl=tcp,self '
                     f'exec unshare --pid --fork --mount-proc {PROGRAM} "$@"\n')
    os.chmod(apart, 0o755)
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode:
        skip("sums of ranks in containers of their own", "needs root and namespaces")
    else:
        code, output, _ = run(3, "sum", apart)
        check(code == 0, "sums of ranks in containers of their own", output)


def waits(ranks, scenario):
    """Waits that are long, and end well."""
    code, output, _ = run(ranks, scenario)
    check(code == 0, f"{scenario} on {ranks} ranks", output)


def stuck():
    code, output, seconds = run(3, "stuck")
    check(code == 4, "ranks that wait for each other for ever end with exit code 4", output)
    check("none gets on" in output, "and the message says why", output)
    check(seconds < 10, "within seconds", f"{seconds:.1f} s")


def delayed():
    code, output, _ = run(2, "delayed")
    check(code == 4 and "lost 1 of 2 ranks: rank 1 on host" in output and output.count("rank 0 asks") == 2,
          "an answer that was long on its way is none to the next question", output)


side_by_side(4, stuck, delayed, *(functools.partial(waits, *wait) for wait in (
    (4, "busy"), (3, "busy"), (3, "patient"), (3, "late"), (3, "evaluation"))))
code, output, _ = run(3, "nonsense")
check(code != 0, "a scenario that does not exist fails", output)
finish()
