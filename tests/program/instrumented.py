#!/usr/bin/env python3
"""Two ranks under ThreadSanitizer and valgrind: no thread races with another, nothing is read that was not set."""
# needs: threads widths

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from dtrain import FOLDER, ROOT, Run
from tap import check, finish, skip

SUPPORT = ROOT / "tests" / "support"
TRAIN = ["--data", "synthetic:40+10", "--eval-every", "1", "--out"]
OPEN_MPI = Path("/usr/share/openmpi/openmpi-valgrind.supp")


def start(wrapper, build, *options):
    """Without launch/run, as a report is then all that is looked for among what mpirun says."""
    return Run(["mpirun", "-np", 2, *wrapper, ROOT / "build" / build / "dtrain", *options], {}, FOLDER)


def clean(name, running, code):
    result = running.finish()
    reports = re.findall(r"^.*ThreadSanitizer.*$|^==\d+==.*$", result.err, re.MULTILINE)
    check(result.code == code and not reports, f"{name}: nothing is reported", f"{reports}\n{result}")


def threads():
    if subprocess.run(["setarch", "-R", "true"], check=False, capture_output=True).returncode != 0:
        skip("ThreadSanitizer", "setarch -R is not allowed here, as in some containers")
        return
    settings = f"suppressions={SUPPORT}/threads.supp ignore_noninstrumented_modules=1 exitcode=9"
    wrapper = ["-x", f"TSAN_OPTIONS={settings}", "setarch", "-R"]  # it cannot run where addresses are random
    clean("ThreadSanitizer, a run", start(wrapper, "gcc-threads", *TRAIN, "raced", "--epochs", 3), 0)
    running = start(wrapper, "gcc-threads", "--net", "A,D", *TRAIN, "stopped", "--checkpoint-every", 1)
    running.wait_for("epoch: 2 ")
    running.signal(signal.SIGUSR1)
    clean("ThreadSanitizer, two nets that are stopped", running, 75)
    clean("ThreadSanitizer, and opened again",
          start(wrapper, "gcc-threads", "--net", "A,D", *TRAIN, "stopped", "--resume", "--max-steps", 1), 0)


def memory():
    if os.uname().machine != "x86_64" or shutil.which("valgrind") is None or not OPEN_MPI.exists():
        skip("valgrind", "it is not here, or not for this processor, or without Open MPI's list of what to pass over")
        return
    wrapper = ["valgrind", "-q", "--error-exitcode=9", f"--suppressions={OPEN_MPI}",
               f"--suppressions={SUPPORT}/valgrind.supp"]  # valgrind 3.19 knows no AVX-512
    clean("valgrind, a run", start(wrapper, "gcc-x86-64-v3", *TRAIN, "valgrind", "--epochs", 1), 0)


threads()
memory()
finish()
