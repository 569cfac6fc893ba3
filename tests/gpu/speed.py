#!/usr/bin/env python3
"""speed - what a step of a run took: tests/gpu/speed.py RUN...: several ran at once. Epochs with a check and the first ten, in
which the GPU wakes up, are left out."""

import json
import statistics
import sys
from pathlib import Path

STEPS = 196  # of 50,000 images, 256 at a time


def step_times(run):
    """Microseconds a step, an epoch each."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [1e6 * line["seconds"] / STEPS for line in lines[10:] if "test_accuracy" not in line]


runs = {run: step_times(run) for run in sys.argv[1:]}
for run, times in runs.items():
    print(f"{Path(run).name}: {statistics.median(times):.1f} us a step ({min(times):.1f} to {max(times):.1f})")
if len(runs) == 1:
    print(f"1000 epochs of it: {statistics.median(times) * STEPS / 1e3:.2f} s")
