"""For the tests of launch/: runs its scripts in SCRATCH, a folder of this test's own that goes at the end, in an
environment without settings of Open MPI's or dtrain's."""

import atexit
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRATCH = Path(tempfile.mkdtemp(prefix="dtrain-launch-"))
DATA = ["--data", "synthetic:200+100"]
HOSTILE = "it's $(touch pwned) {^x} \"`a` 100%_ü;&|"
os.environ["XDG_CACHE_HOME"] = str(SCRATCH / "cache")
for name in ["DTRAIN", "DTRAIN_DATA", "PYTHONUNBUFFERED", *filter(lambda name: name.startswith("OMPI_"), os.environ)]:
    os.environ.pop(name, None)
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


def launch(script, *arguments, **settings):
    """Runs launch/SCRIPT to its end; .stdout and .stderr are text."""
    settings = {"cwd": SCRATCH, "capture_output": True, "text": True, "timeout": 120, **settings}
    return subprocess.run([LAUNCH / script, *map(str, arguments)], **settings)


def begin(script, *arguments):
    """Starts launch/SCRIPT; its output is read by communicate()."""
    command = [LAUNCH / script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=SCRATCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent(pid):
    return int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def said(done):
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def fails(done, code, *words):
    """One line on standard error, with these words, and this exit code."""
    return (
        done.returncode == code
        and done.stderr.count("\n") == 1
        and all(word in done.stderr for word in words)
    )


def stand_in(script, version="mpirun (Open MPI) 4.1.4"):
    """A shell script that says it is an mpirun."""
    return f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "{version}"; exit; }}\n{script}\n'


def place_mpirun(script, version="mpirun (Open MPI) 4.1.4"):
    """A folder with this shell script as mpirun, and the environment in which it is found."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH))
    (folder / "mpirun").write_text(stand_in(script, version))
    (folder / "mpirun").chmod(0o755)
    return folder, {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def is_png(path):
    content = path.read_bytes() if path.exists() else b""
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    return content.startswith(b"\x89PNG\r\n") and width > 1000 and height > 600
