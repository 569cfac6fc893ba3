#!/usr/bin/env python3
"""The messages between ranks: sums, agreements, parts, and waits that end."""
# needs: messages
# timed: waits must end within seconds

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tap import check, finish, skip

ROOT = str(Path(__file__).resolve().parents[2])
PROGRAM = os.path.join(ROOT, "build/gcc-native/tests/unit/messages")


def run(ranks, scenario, program=PROGRAM):
    begin = time.monotonic()
    done = subprocess.run(
        [os.path.join(ROOT, "launch/run"), "-np", str(ranks), scenario],
        env={**os.environ, "DTRAIN": program},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, time.monotonic() - begin


for ranks in (3, 4):
    for scenario in ("sum", "turns", "agree", "same", "split", "messages", "busy"):
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

code, output, seconds = run(3, "stuck")
check(code == 4, "ranks that wait for each other for ever end with exit code 4", output)
check("none gets on" in output, "and the message says why", output)
check(seconds < 10, "within seconds", f"{seconds:.1f} s")
code, output, _ = run(3, "nonsense")
check(code != 0, "a scenario that does not exist fails", output)
finish()
