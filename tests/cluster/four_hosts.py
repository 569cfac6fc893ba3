#!/usr/bin/env python3
"""Several hosts, and SLURM over them: everything in tests/cluster, each part with four fake hosts of its own, all parts
side by side. With arguments only these parts: tests/cluster/four_hosts.py unplug limits."""
# needs: dtrain
# timed: how long it takes until faults are told is measured

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

import hosts
import slurm
from tap import check, finish, skip, skip_all

PARTS = {
    "mpirun.py": ["agree", "scale", "kill", "unplug"],
    "jobs.py": ["launchers", "several", "limits", "requeues", "preemption", "lost", "powerless", "two_writers"],
}
MARK = "DTRAIN_TEST_CLUSTER"  # in the environment of the processes of a test that is interrupted


def traces():
    """What a test has left on this machine."""
    return [*(name for name in os.listdir("/sys/class/net") if name.startswith("veth")),
            *(name for name in os.listdir("/dev/shm") if re.search(r"\.(head|n\d)\b", name)),
            *(line for line in Path("/proc/mounts").read_text().splitlines() if "dtrain-test" in line)]


def interrupted():
    """A test that is ended half-way leaves nothing."""
    for number in signal.SIGKILL, signal.SIGTERM, signal.SIGINT:
        mark = f"{os.getpid()}-{number}"
        with tempfile.TemporaryDirectory() as folder:
            test = subprocess.Popen([sys.executable, __file__, "launchers"], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL, env={**os.environ, MARK: mark, "TMPDIR": folder})
            started = hosts.eventually(lambda: len(hosts.processes("slurmd", f"{MARK}={mark}")) >= 4)
            test.send_signal(number)
            test.wait()
            left = lambda: [name for name in ("slurmd", "slurmctld", "munged", "bash", "unshare", "python3")
                            if hosts.processes(name, f"{MARK}={mark}")]
            check(started and hosts.eventually(lambda: not left()), f"ended by {number.name}: no process is left",
                  left())
            check(not traces() + os.listdir(folder),
                  f"ended by {number.name}: no interface, mount or file is left", traces() + os.listdir(folder))


if reason := hosts.missing():
    skip_all(reason)
if slurm.missing():
    skip("SLURM", slurm.missing())
    del PARTS["jobs.py"]
asked = sys.argv[1:]
hosts.relay([(part, FOLDER / file, part) for file, parts in PARTS.items() for part in parts
             if part in (asked or parts)])
if not asked and "jobs.py" in PARTS:
    interrupted()
finish()
