#!/usr/bin/env python3
"""The whole program under AddressSanitizer and UndefinedBehaviorSanitizer, leaks included."""
# needs: dtrain-debug

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ["DTRAIN"] = str(ROOT / "dtrain-debug")

from dtrain import FOLDER, run
from tap import check, finish

TRAINING = ["--data", "synthetic:160+48", "--batch-size", "48", "--eval-every", "1"]


def clean(result, code, name):
    reports = [line for line in result.err.splitlines() if "runtime error" in line or "Sanitizer" in line]
    check(result.code == code and not reports, name, f"{result}\n" + "\n".join(reports))


clean(run(2, "--net", "D", *TRAINING, "--epochs", "2", "--out", FOLDER / "D", "--max-steps", "3"), 0, "a run")
clean(run(3, "--net", "D", *TRAINING, "--epochs", "3", "--out", FOLDER / "D", "--resume"), 0, "resumed")
clean(run(1, "--net", "all", *TRAINING, "--epochs", "1", "--out", FOLDER / "turns"), 0, "four nets in turn")
clean(run(4, "--net", "all", *TRAINING, "--epochs", "1", "--out", FOLDER / "groups"), 0, "four nets at once")
clean(run(2, "--net", "E"), 2, "a wrong option")
clean(run(2, "--data", FOLDER), 3, "data that is not there")
clean(run(2, *TRAINING, "--lr", "1e6", "--out", FOLDER / "infinite"), 1, "a loss that is not finite")
clean(run(2, "--doctor", "--data", "synthetic"), 0, "the doctor")
finish()
