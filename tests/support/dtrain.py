"""Runs dtrain as its users do, for the tests of the whole program.

What the runs of one test file write lies in FOLDER, which goes at the end. DTRAIN names another program to
test: DTRAIN=./dtrain-debug tests/exec tests/program/ranks.py.
"""

import atexit
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(os.environ.get("DTRAIN") or ROOT / "dtrain").resolve())
FOLDER = Path(tempfile.mkdtemp(prefix="dtrain-"))
DATA_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
RECORD = 3073  # bytes: a label and an image
LIMIT = 200  # seconds: only for what hangs, as a machine may be busy
MARK = "DTRAIN_TEST_RUN"  # in the environment of every process of a run: its number

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("DTRAIN")}
ENVIRONMENT |= {"DTRAIN": PROGRAM, "XDG_CACHE_HOME": str(FOLDER / "cache")}
for setting in ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe",
                "MCA_mpi_yield_when_idle"):
    ENVIRONMENT["OMPI_" + setting] = "1"
ENVIRONMENT |= {"OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_plm": "isolated"}
# As a program finds it that is started without a launcher: nothing set for Open MPI, and no ssh on the PATH.
BARE = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("OMPI_")} | {"PATH": str(FOLDER)}

_numbers = itertools.count()
_running = set()


class Result:
    """A run that has ended: its exit code (None: it had to be killed) and what it printed."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    @property
    def digest(self):
        """Of the weights: the last line of every run that trained."""
        last = re.search(r"^weights: ([0-9a-f]{16})\n\Z", self.out, re.MULTILINE)
        return last and last[1]

    @property
    def messages(self):
        """What dtrain itself, not Open MPI, says on standard error."""
        return [line for line in self.err.splitlines() if "dtrain: " in line]

    def says(self, code, *words):
        """Whether it ended with the code and one line of dtrain's own, which has the words."""
        one = len(self.messages) == 1
        return self.code == code and one and all(str(word) in self.messages[0] for word in words)

    @property
    def step(self):
        """The last step done before a signal stopped the run."""
        stopped = re.search(r"^stopped by .* after step (\d+)", self.out, re.MULTILINE)
        return stopped and int(stopped[1])

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.1f} s\n{self.out[-2000:]}{self.err[-2000:]}"


class Run:
    """A run that has been started."""

    def __init__(self, command, env, cwd):
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self.out = FOLDER / f"{self.mark}.out"
        temporary = FOLDER / "tmp" / self.mark  # mpiruns that share one remove it from under each other
        temporary.mkdir(parents=True)
        self.killed = False
        self.began = time.monotonic()
        environment = {**ENVIRONMENT, "TMPDIR": str(temporary), **env, MARK: self.mark}
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                text=True, errors="replace", cwd=cwd, env=environment)
        _running.add(self)

    def wait_for(self, words, seconds=LIMIT, times=1):
        """Until standard output has the words so many times; False if the run ended or time went by without them."""
        end = time.monotonic() + seconds
        while self.out.read_text().count(words) < times:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                print(f"# waited {seconds} s for {words!r} in vain")
                return False
            time.sleep(0.01)
        return True

    def ranks(self):
        """The process id of each rank."""
        pids = {}
        for process in Path("/proc").glob("[0-9]*"):  # no further: glob fails if one ends while it looks into it
            try:
                words = (process / "environ").read_text(errors="replace").split("\0")
            except OSError:
                continue  # it has ended, or is another user's
            rank = [word.split("=")[1] for word in words if word.startswith("OMPI_COMM_WORLD_RANK=")]
            if rank and f"{MARK}={self.mark}" in words:
                pids[int(rank[0])] = int(process.name)
        return pids

    def rank_process(self, rank):
        """The process id of one."""
        deadline = time.monotonic() + 5  # a busy /proc may leave one out
        while (pid := self.ranks().get(rank)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return pid

    def signal(self, number, rank=None):
        """To one rank, or to the launcher."""
        os.kill(self.process.pid if rank is None else self.rank_process(rank), number)

    def kill(self):
        """Every process of it, at once."""
        self.killed = True
        for pid in [*self.ranks().values(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def finish(self, seconds=LIMIT):
        """The result; a run that takes longer is killed."""
        try:
            _, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            _, err = self.process.communicate()
        _running.discard(self)
        code = None if self.killed else self.process.returncode
        return Result(code, self.out.read_text(errors="replace"), err, time.monotonic() - self.began)


def start(np, *options, env={}, cwd=FOLDER):
    """np ranks by launch/run; 0: the program alone, without mpirun."""
    launcher = [ROOT / "launch" / "run", "-np", np] if np else [PROGRAM]
    return Run([*launcher, *options], env, cwd)


def start_unlike(*ranks, settings=()):
    """One rank for each list of options. settings: of mpirun, a list a rank."""
    command = ["mpirun"]
    for i, options in enumerate(ranks):
        command += [*(":" if i else ""), "-np", 1, *(settings[i] if settings else ()), PROGRAM, *options]
    return Run(command, {}, FOLDER)


def run(np, *options, seconds=LIMIT, **where):
    return start(np, *options, **where).finish(seconds)


def run_all(calls):
    """Several runs, some at a time: their results in order. calls: the arguments of run, a list each."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda call: run(*call), calls))


def preloaded(name, source):
    """A library of this C, for LD_PRELOAD."""
    library = FOLDER / f"{name}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True, input=source.encode())
    return library


# --- what a run leaves ------------------------------------------------------------------------------


def metrics(directory):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (FOLDER / directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "second" not in key} for line in lines]


def content(*path):
    """The bytes of a file below FOLDER, or None."""
    file = FOLDER.joinpath(*path)
    return file.read_bytes() if file.exists() else None


def weights(directory):
    """The weights and momentum in a checkpoint, as floats."""
    data = content(directory, "checkpoint.safetensors")
    body = data[8 + int.from_bytes(data[:8], "little"):]
    return struct.unpack(f"<{len(body) // 4}f", body)


def progress(directory):
    """Where the checkpoint of a run stands: the metadata of its file, as texts."""
    data = content(directory, "checkpoint.safetensors")
    return json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def write_data(directory, train=40, test=8):
    """A small data set, not drawn but good enough to be read. Returns its directory."""
    (FOLDER / directory).mkdir()
    for name in DATA_FILES:
        count = test if name == "test_batch.bin" else train // 5
        records = b"".join(bytes([i % 10]) + bytes([i * 25 % 256]) * (RECORD - 1) for i in range(count))
        (FOLDER / directory / name).write_bytes(records)
    return FOLDER / directory


@atexit.register
def _clean():
    for started in list(_running):
        started.kill()
        started.finish()
    shutil.rmtree(FOLDER, ignore_errors=True)

