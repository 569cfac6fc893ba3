#!/usr/bin/env python3
"""The messages between ranks: sums, agreements, parts, and waits that end."""

import os
import subprocess
import time

from tap import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "build/gcc-native/tests/mpi/comm")


def run(ranks, scenario):
    begin = time.monotonic()
    done = subprocess.run(
        [os.path.join(ROOT, "launch/run"), "-np", str(ranks), scenario],
        env={**os.environ, "DTRAIN": PROGRAM},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, time.monotonic() - begin


for ranks in (3, 4):
    for scenario in ("sum", "agree", "same", "split", "messages", "busy"):
        code, output, _ = run(ranks, scenario)
        check(code == 0, f"{scenario} on {ranks} ranks", output)

code, output, seconds = run(3, "stuck")
check(code == 4, "ranks that wait for each other for ever end with exit code 4", output)
check("none gets on" in output, "and the message says why", output)
check(seconds < 10, "within seconds", f"{seconds:.1f} s")
code, output, _ = run(3, "nonsense")
check(code != 0, "a scenario that does not exist fails", output)
finish()
