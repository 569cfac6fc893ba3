#!/usr/bin/env python3
"""launch/run, plot, variants and quickstart, with nets that train for a second."""
# needs: dtrain
# timed: signals come at moments of a start

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import xml.etree.ElementTree as xml
from pathlib import Path

from tap import check, finish, skip

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRATCH = Path(tempfile.mkdtemp(prefix="dtrain-launch-"))
DATA = ["--data", "synthetic:200+100"]
HOSTILE = "it's $(touch pwned) {^x} \"`a` 100%_ü;&|"
CORES = len(os.sched_getaffinity(0))
os.environ["XDG_CACHE_HOME"] = str(SCRATCH / "cache")
for name in [name for name in os.environ if name.startswith("OMPI_")] + ["DTRAIN", "DTRAIN_DATA"]:
    os.environ.pop(name, None)


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


# --- run -----------------------------------------------------------------------------------------------


def test_run():
    done = launch("run", "-np", 2, *DATA, "--epochs", 2, "--out", "run")
    digest = re.search(r"weights: [0-9a-f]{16}\n$", done.stdout)
    check(done.returncode == 0 and digest and not done.stderr, "run: trains, says nothing else", said(done))

    done = launch("run", "-np", 2, *DATA, "--lr", "fast")
    check(fails(done, 2, "--lr fast"), "run: a wrong option is exit 2 and one line", said(done))
    done = launch("run", "-np", 2, "--data", "nowhere")
    check(fails(done, 3, "nowhere"), "run: missing data is exit 3 and one line", said(done))

    done = launch("run", "-np", CORES + 1, *DATA, "--epochs", 1, "--out", "many")
    check(done.returncode == 0, "run: more ranks than cores", said(done))
    # The net of another number of ranks is the same, so the digest is too.
    done = launch(
        "run", *DATA, "--epochs", 2, "--out", "default", preexec_fn=lambda: os.sched_setaffinity(0, {0})
    )
    check("on 1 rank," in done.stdout, "run: as many ranks as cores it may use", said(done))
    check(digest and digest[0] in done.stdout, "run: one rank and two make the same weights", said(done))

    done = launch(
        "run", "-np", CORES + 1, *DATA, env={**os.environ, "OMPI_MCA_rmaps_base_oversubscribe": "0"}
    )
    check(
        done.returncode != 0 and "slots" in done.stderr,
        "run: Open MPI's settings of the user win",
        said(done),
    )

    for arguments in ["-np"], ["-np", "0"], ["-np", "two"], ["--hostfile"]:
        done = launch("run", *arguments)
        check(fails(done, 2, "launch/run", arguments[0]), f"run: refuses {' '.join(arguments)}", said(done))
    done = launch("run", env={**os.environ, "DTRAIN": "not/built"})
    check(fails(done, 1, "not/built", "make"), "run: without a program it says how to build it", said(done))

    done = launch("run", "-np", "\x1b[2J\n")
    check(fails(done, 2, "-np ?[2J?"), "run: control characters are not passed on", said(done))
    done = launch("run", "-np", 2, *DATA, "--epochs", 1, "--out", "odd\x1b[31m\nname")
    check(done.returncode == 0 and "files in odd?[31m?name\n" in done.stdout, "run: nor those in the run's name",
          said(done))

    command = 'printf left | { "$0" -np 1 --version >&2; cat; }'
    done = subprocess.run(["bash", "-c", command, LAUNCH / "run"], capture_output=True, text=True, timeout=60)
    check(done.stdout == "left", "run: leaves standard input alone", said(done))


def test_binding():
    """How mpirun is told to bind: where cores are left for another run, and where a driver lists a GPU."""
    place = SCRATCH / "gpu"
    place.mkdir()
    for tool, word in {
        "dtrain": "",
        "nvidia-smi": "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)",
        "mpirun": "${OMPI_MCA_hwloc_base_binding_policy-as it likes}",
    }.items():
        (place / tool).write_text(stand_in(f'echo "{word}"'))
        (place / tool).chmod(0o755)

    def binding(*options, ranks=CORES, **env):
        env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "DTRAIN": str(place / "dtrain"), **env}
        return launch("run", "-np", ranks, *options, env=env).stdout.strip()

    usual = binding()
    what = "run: ranks that leave cores to another run are bound to none"
    if CORES > 1:
        check((binding(ranks=CORES - 1), usual) == ("none", "as it likes"), what, usual)
    else:
        skip(what, "there is one core")
    (place / "dtrain-cuda.so").touch()
    check(binding() == "none", "run: ranks with a GPU are bound to no core", binding())
    check(
        usual == binding("--engine", "cpu") == binding("--engine=cpu"),
        "run: ranks are bound as usual without the GPU part, or with --engine cpu",
        (usual, binding("--engine", "cpu"), binding("--engine=cpu")),
    )
    chosen = binding(OMPI_MCA_hwloc_base_binding_policy="socket")
    check(chosen == "socket", "run: unless the user binds them", chosen)


def tree(pid):
    """The process and all below it."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def test_odd_places():
    """What a starter, a container or a batch system leaves behind or withholds."""
    train = ["-np", 2, *DATA, "--epochs", 2]
    shell = lambda command, *arguments, **more: subprocess.run(
        ["bash", "-c", command, LAUNCH / "run", *map(str, arguments)], cwd=SCRATCH, capture_output=True, text=True,
        timeout=120, **more)

    done = shell('"$0" "$@" <&- >&- 2>&-', *train, "--out", "closed")
    lines = (SCRATCH / "closed" / "metrics.jsonl").read_text().splitlines()
    check(done.returncode == 0 and len(lines) == 2, "run: with its standard streams closed", said(done))
    done = shell('ulimit -Sn 48 && exec "$0" "$@"', "-np", 16, *DATA, "--epochs", 1, "--out", "few")
    check(done.returncode == 0 and not done.stderr, "run: the soft limit on open files is raised", said(done))
    done = shell('ulimit -n 48 && exec "$0" "$@"', "-np", 16, *DATA, "--epochs", 1, "--out", "too-few")
    check(fails(done, 1, "16 ranks", "92 open files", "48"),
          "run: a hard limit on open files is told before mpirun hangs", said(done))
    done = shell('ulimit -n 44; exec "$0" "$@"', "-np", 4, *DATA, "--epochs", 1, "--out", "just-enough")
    check(done.returncode == 0 and not done.stderr, "run: one that just suffices will do", said(done))
    for limit, words in ("ulimit -f 20", "20480 bytes"), ("umask 777", "0777"), ("cd gone && rmdir ../gone", "gone"):
        (SCRATCH / "gone").mkdir(exist_ok=True)
        done = shell(limit + ' && exec "$0" "$@"', *train, "--out", "limited")
        check(done.returncode == 1 and words in done.stderr.splitlines()[-1], f"run: {limit}: told", said(done))
    for options, code in (train, 1), (["--version"], 1), (["-h"], 1), ([*train, "--lr", "x"], 2):
        out = ["--out", "unheard"] if options == train else []
        done = shell('exec "$0" "$@" >/dev/full', *options, *out)
        check(done.returncode == code and done.stderr.count("\n") == 1,
              f"run: {options[-1]}: standard output is full: {code}, and told", said(done))
    done = shell('exec "$0" "$@" >out.txt', *train, "--out", "to-a-file")
    check(done.returncode == 0 and not done.stderr and (SCRATCH / "out.txt").read_text().count("\n") == 7,
          "run: standard output may be a file", said(done))
    done = shell('exec env -i XDG_CACHE_HOME="$XDG_CACHE_HOME" "$0" "$@"', *train, "--out", "bare")
    check(done.returncode == 0 and not done.stderr, "run: without PATH and HOME", said(done))
    (SCRATCH / "hosts").write_bytes(b"localhost slots=2\r\n")
    done = launch("run", "--hostfile", "hosts", *train, "--out", "windows")
    check(done.returncode == 0 and not done.stderr, "run: a hostfile with Windows' line ends", said(done))

    tools = SCRATCH / "tools-of-path"
    tools.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for tool in os.listdir(folder) if os.path.isdir(folder) else ():
            if tool != "srun" and not (tools / tool).is_symlink():
                (tools / tool).symlink_to(Path(folder, tool))
    leaked = {"SLURM_JOB_ID": "77", "SLURM_NODELIST": "node17", "SLURM_TASKS_PER_NODE": "4", "SLURM_NNODES": "1"}
    done = launch("run", *train, "--out", "leaked", env={**os.environ, "PATH": str(tools), **leaked})
    check(done.returncode == 0 and not done.stderr, "run: a job's variables in a container without srun", said(done))

    if os.geteuid() != 0:
        skip("run: a full TMPDIR, a long host name, a quota", "root alone can make them")
        return
    full = 'mkdir -p full && mount -t tmpfs -o size=160k none full && TMPDIR=$PWD/full exec "$0" "$@"'
    done = subprocess.run(["unshare", "-m", "bash", "-c", full, LAUNCH / "run", *map(str, train)], cwd=SCRATCH,
                          capture_output=True, text=True, timeout=60, check=False)
    check(fails(done, 1, f"{SCRATCH}/full", "160 KB", "TMPDIR"), "run: a full TMPDIR is named", said(done))
    none = full.replace("size=160k none full", "size=4k none full && echo >full/file")
    done = subprocess.run(["unshare", "-m", "bash", "-c", none, LAUNCH / "run", *map(str, train)], cwd=SCRATCH,
                          capture_output=True, text=True, timeout=60, check=False)
    check(fails(done, 1, f"{SCRATCH}/full", "0 KB", "TMPDIR"), "run: so is one with no room at all", said(done))
    for how, why in ("-o ro", "Read-only"), ("-o size=9m,nr_inodes=1", "No space"):
        locked = full.replace("-o size=160k", how)
        done = subprocess.run(["unshare", "-m", "bash", "-c", locked, LAUNCH / "run", *map(str, train)], cwd=SCRATCH,
                              capture_output=True, text=True, timeout=60, check=False)
        check(fails(done, 1, f"{SCRATCH}/full", why, "TMPDIR"), f"run: a TMPDIR mounted with {how} is named",
              said(done))
    nobody = SCRATCH / "nobody"
    nobody.mkdir()
    os.chown(nobody, 4242, 4242)
    SCRATCH.chmod(0o755)
    done = subprocess.run(["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups", "env", "-u", "HOME",
                           f"XDG_CACHE_HOME={nobody}", LAUNCH / "run", *map(str, train)], cwd=nobody,
                          capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0 and not done.stderr, "run: a user without a name or a home", said(done))
    almost = full.replace("160k", "3m")
    done = subprocess.run(["unshare", "-m", "bash", "-c", almost, LAUNCH / "run", *map(str, train), "--out", "almost"],
                          cwd=SCRATCH, capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0 and not done.stderr, "run: one that is nearly full will do", said(done))
    done = subprocess.run(["unshare", "-m", "bash", "-c", 'mount -t tmpfs none /proc && exec "$0"', LAUNCH / "run"],
                          capture_output=True, text=True, timeout=60, check=False)
    check(fails(done, 1, "/proc"), "run: without /proc", said(done))
    done = subprocess.run(["prlimit", "--nproc=8", "setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups",
                           LAUNCH / "run"], cwd=nobody, capture_output=True, text=True, timeout=60, check=False)
    check(fails(done, 1, "8 processes"), "run: a limit on processes", said(done))
    shared = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$0" "$@"'
    done = subprocess.run(["unshare", "-m", "bash", "-c", shared, LAUNCH / "run", *map(str, train), "--out", "shm"],
                          cwd=SCRATCH, capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0 and not done.stderr, "run: a full /dev/shm", said(done))
    name = "training-job-with-a-rather-long-name-for-a-pod-worker-xkzpqrst"
    done = subprocess.run(["unshare", "-u", "bash", "-c", f'hostname {name}; exec "$0" "$@"', LAUNCH / "run",
                           *map(str, train), "--out", "long"], capture_output=True, text=True, timeout=60, cwd=SCRATCH)
    check(done.returncode == 0 or fails(done, 1, name, "62 letters"), "run: a long host name", said(done))
    done = launch("run", *train, "--out", "misnamed", env={**os.environ, "HOSTNAME": name})
    check(done.returncode == 0, "run: another host's long name in HOSTNAME", said(done))
    group = Path(f"/sys/fs/cgroup/cpu/dtrain-{os.getpid()}")
    with contextlib.suppress(OSError):
        group.mkdir()
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_quota_us").write_text("100000")
        command = 'echo $$ >"$1/cgroup.procs"; . "$2/cores.sh"; count_cores'
        done = subprocess.run(["bash", "-c", command, "x", group, LAUNCH], capture_output=True, text=True, check=False)
        check(done.stdout == "1\n", "run: a quota of one core below the root, of cgroup v1", said(done))
        wait_for(lambda: not (group / "cgroup.procs").read_text(), 5)
        group.rmdir()
    else:
        skip("run: a quota of cgroup v1", "this system has no controller of it for cpu")


def test_settings():
    """Its files say who else is to take part, and where memory is shared: those of the Open MPI that runs."""
    prefix, home, elsewhere = SCRATCH / "prefix", SCRATCH / "home-of-settings", SCRATCH / "elsewhere"
    for folder in prefix / "bin", prefix / "etc", home / ".openmpi", elsewhere:
        folder.mkdir(parents=True)
    (prefix / "bin" / "mpirun").touch()
    own, prte, hosts = (prefix / "etc" / name for name in
                        ("openmpi-mca-params.conf", "prte-mca-params.conf", "prte-default-hostfile"))
    asking = """. "$0/launcher.sh"; launcher=$1 launcher_kind=open-mpi-5
                launcher_names_hosts && printf 'others, ' || printf 'alone, '; launcher_memory"""

    def seen(name, expected, files=(), **env):
        for file, text in files:
            file.write_text(text)
        done = subprocess.run(["bash", "-euc", asking, LAUNCH, prefix / "bin" / "mpirun"], text=True, check=False,
                              env={"PATH": os.environ["PATH"], "HOME": str(home), **env}, capture_output=True)
        check(done.stdout == expected + "\n" and not done.stderr, f"settings of Open MPI: {name}", said(done))

    seen("none", "alone, /dev/shm", [(own, "# nothing\n"), (prte, "prte_default_hostfile = none\n"), (hosts, "#\n")])
    seen("the environment's", "others, /big", PRTE_MCA_prte_default_hostfile="x",
         OMPI_MCA_btl_sm_backing_directory="/big")
    seen("of PRRTE, hosts", "others, /dev/shm", [(hosts, "# hosts\nn1\n")])
    seen("of PRRTE, a hostfile", "others, /dev/shm", [(hosts, ""), (prte, "  prte_default_hostfile=/x \n")])
    seen("the user's first", "alone, /mine", [(prte, ""), (own, "btl_vader_backing_directory = /site\n"),
                                              (home / ".openmpi" / "mca-params.conf",
                                               "btl_sm_backing_directory = /mine \n")])
    (home / ".openmpi" / "mca-params.conf").unlink()
    seen("the site's", "alone, /site")
    own.unlink()
    (prefix / "bin" / "ompi_info").write_text(f"#!/bin/sh\necho path:sysconfdir:{elsewhere}\n")
    (prefix / "bin" / "ompi_info").chmod(0o755)
    seen("where it says that they are", "others, /dev/shm", [(elsewhere / "openmpi-default-hostfile", "n2 slots=2\n")])


def test_stop_of_all():
    """systemd, and qdel of PBS, send SIGTERM to every process of a job."""
    running = begin("run", "-np", 2, *DATA, "--epochs", 100000, "--checkpoint-every", 100000, "--eval-every", 100000,
                    "--out", "all-stop")
    wait_for(lambda: (SCRATCH / "all-stop" / "metrics.jsonl").exists())
    time.sleep(0.5)
    for pid in tree(running.pid)[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    check(running.returncode == 75 and "stopped by SIGTERM" in out,
          "run: SIGTERM to all its processes at once saves and ends with 75", f"exit {running.returncode}\n{out}{err}")


def test_hostile_place():
    """The whole program in a directory, and a run into another, with names a shell would stumble over."""
    place = SCRATCH / HOSTILE
    shutil.copytree(LAUNCH, place / "launch")
    shutil.copy(ROOT / "dtrain", place)
    done = subprocess.run(
        [place / "launch/run", "-np", "2", *DATA, "--net", "A,D", "--epochs", "1", "--out", HOSTILE],
        cwd=SCRATCH,
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = (place / "accuracy.png").exists()
    harmless = not list(SCRATCH.rglob("pwned"))
    check(done.returncode == 0 and drawn and harmless, "run: in a place with a hostile name", said(done))


def test_stop():
    for number in signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        out = f"stopped-{number.name}"
        run = begin("run", "-np", 2, *DATA, "--out", out, "--progress", "never")
        wait_for((SCRATCH / out / "checkpoint.safetensors").exists)
        run.send_signal(number)
        output, errors = run.communicate(timeout=60)
        check(
            run.returncode == 75 and "stopped by SIGUSR1" in output,
            f"run: {number.name} saves and stops, exit 75",
            f"exit {run.returncode}\n{output[-500:]}{errors}",
        )
        check(errors == "", f"run: {number.name}: without a banner", errors)

    done_epochs = len((SCRATCH / "stopped-SIGINT/metrics.jsonl").read_text().splitlines())
    done = launch("run", "-np", 1, *DATA, "--out", "stopped-SIGINT", "--epochs", done_epochs + 2, "--resume")
    check(done.returncode == 0, "run: --resume goes on", said(done))


def test_hidden_errors():
    """A script between launch/run and dtrain that leads its standard error elsewhere."""
    script = SCRATCH / "hides.sh"
    script.write_text(f'#!/bin/sh\nexec {ROOT}/dtrain "$@" 2>/dev/null\n')
    script.chmod(0o755)
    command = [LAUNCH / "run", "-np", "2", *DATA, "--out", "hidden", "--checkpoint-every", "1000000"]
    running = subprocess.Popen(command, cwd=SCRATCH, env={**os.environ, "DTRAIN": str(script)}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: (SCRATCH / "hidden/metrics.jsonl").exists())
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    check(running.returncode == 75 and "stopped by SIGUSR1" in out and not err,
          "run: a script that hides standard error", f"exit {running.returncode}\n{out}{err}")


def test_terminal():
    """Ctrl-C on a terminal, where it reaches everything in the foreground."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(SCRATCH)
        os.execv(LAUNCH / "run", ["run", "-np", "2", *DATA, "--out", "terminal"])
    wait_for((SCRATCH / "terminal/checkpoint.safetensors").exists)
    os.write(terminal, b"\x03")
    output = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while block := os.read(terminal, 65536):
            output += block
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    check(code == 75 and b"run again with --resume" in output, "run: Ctrl-C on a terminal saves and stops, exit 75",
          f"exit {code}\n{output[-500:].decode(errors='replace')}")


def run_on_terminal(columns, kind, *options):
    """What a run writes on a terminal of that width and TERM."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(SCRATCH)
        os.environ["TERM"] = kind
        os.execv(LAUNCH / "run", ["run", "-np", "2", *options])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while block := os.read(terminal, 65536):
            output += block
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output.decode()


def test_progress_line():
    options = ["--data", "synthetic:20000+100", "--epochs", "2", "--out"]
    for columns in 30, 100:
        code, output = run_on_terminal(columns, "xterm", *options, f"columns-{columns}")
        lines = re.findall(r"\r\x1b\[K(epoch \d+/[^\r\n]*)", output)
        longest = max(map(len, lines), default=0)
        check(code == 0 and longest == columns - 1, f"run: a progress line of the width of {columns} columns",
              (longest, output))
    code, output = run_on_terminal(80, "dumb", *options, "dumb")
    check(code == 0 and "\x1b" not in output and "epoch: 2" in output, "run: no escape sequences for a dumb terminal",
          output)


def rank_processes(run):
    """Of a job that runs on this machine, in the order of the ranks."""
    (mpirun,) = (pid for pid in children(run.pid) if os.readlink(f"/proc/{pid}/exe").endswith(("/mpirun", "/orterun")))
    return sorted(pid for pid in children(mpirun) if os.readlink(f"/proc/{pid}/exe").endswith("/dtrain"))


def test_lost_rank():
    run = begin("run", "-np", 2, *DATA, "--out", "lost", "--progress", "never")
    wait_for((SCRATCH / "lost/checkpoint.safetensors").exists)
    os.kill(rank_processes(run)[1], signal.SIGKILL)
    output, errors = run.communicate(timeout=60)
    words = (r"launch/run: lost rank 1 on host \S+, ended by signal 9 \(Killed\), "
             r"while rank 0 waited for .* of step \d+; .*\n")
    check(run.returncode == 4 and re.fullmatch(words, errors),
          "run: a rank killed is exit 4 and a line with rank, host, signal and step",
          f"exit {run.returncode}\n{errors}")


def test_killed_launcher():
    """Whichever of the two processes that hold a job together goes, the ranks go too."""
    for victim in "run", "mpirun":
        run = begin("run", "-np", 2, *DATA, "--out", f"orphans-{victim}", "--progress", "never")
        wait_for((SCRATCH / f"orphans-{victim}/checkpoint.safetensors").exists)
        ranks = rank_processes(run)
        shared = {word for pid in ranks for word in Path(f"/proc/{pid}/maps").read_text().split()
                  if "/dev/shm/" in word}
        os.kill(run.pid if victim == "run" else parent(ranks[0]), signal.SIGKILL)
        output, errors = run.communicate(timeout=60)
        check(wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks)),
              f"{victim} killed: the ranks end", ranks)
        if victim == "mpirun":
            check(run.returncode == 4 and "mpirun was killed" in errors, "mpirun killed: exit 4, and told",
                  f"exit {run.returncode}\n{errors}")
        done = launch("run", "-np", 2, *DATA, "--out", f"orphans-{victim}", "--epochs", 1, "--resume")
        check(done.returncode == 0, f"{victim} killed: --resume goes on", said(done))
        for segment in shared:  # nobody but mpirun removes Open MPI's
            Path(segment).unlink(missing_ok=True)


def stand_in(script, version="mpirun (Open MPI) 4.1.4"):
    """A shell script that says it is an mpirun."""
    return f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "{version}"; exit; }}\n{script}\n'


def place_mpirun(script, version="mpirun (Open MPI) 4.1.4"):
    """A folder with this shell script as mpirun, and the environment in which it is found."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH))
    (folder / "mpirun").write_text(stand_in(script, version))
    (folder / "mpirun").chmod(0o755)
    return folder, {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def begin_with_mpirun(script):
    """launch/run under way with this shell script in mpirun's place."""
    folder, env = place_mpirun(f"touch {SCRATCH}/$PPID\n{script}")
    running = subprocess.Popen([LAUNCH / "run", "-np", "2"], env=env, cwd=SCRATCH, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (SCRATCH / str(running.pid)).exists())
    return running


def with_mpirun(script, version="mpirun (Open MPI) 4.1.4", **settings):
    """launch/run with this shell script in mpirun's place; .left are the processes that outlive it."""
    folder, env = place_mpirun(script, version)
    done = launch("run", "-np", 2, env=env, **settings)
    done.left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if bytes(folder) in (process / "environ").read_bytes():
                done.left.append((process / "cmdline").read_text())
    return done


def test_relay():
    """What Open MPI and the ranks write, in ways that real runs seldom show."""
    rule = "-" * 74
    lost = f"{rule}\nmpirun noticed that process rank 1 with PID 5 on node h exited on signal 9 (Killed).\n{rule}"
    told = "launch/run: lost rank 1 on host h, ended by signal 9 (Killed); start again with --resume\n"
    for name, before in ("alone", ""), ("after a line of dashes", "----------\n"), ("within a line", "abc"):
        done = with_mpirun(f"printf '%s' '{before}{lost}\n' >&2; exit 137")
        rest = before if before.endswith("\n") or not before else before + "\n"
        check(done.returncode == 4 and done.stderr == rest + told, f"a banner {name}: one line, exit 4", said(done))
    broken = "".join(f"[h][[1,1],3][../opal/mca/btl/tcp/btl_tcp_{where}\n" for where in (
        "frag.c:135:mca_btl_tcp_frag_send] mca_btl_tcp_frag_send: writev failed: Connection reset by peer (104)",
        "endpoint.c:1065:mca_btl_tcp_endpoint_send_handler] invalid connection state (2)"))
    done = with_mpirun(f"printf '%s' '{broken}{lost}\n' >&2; exit 137")
    check(done.returncode == 4 and done.stderr == told, "broken connections to a rank that is lost: not told",
          said(done))
    daemon = (f"{rule}\nORTE has lost communication with a remote daemon.\n\n"
              f"  Remote daemon: [[1,0],2] on node k \n{rule}\n")
    route = f"{rule}\nORTE does not know how to route a message to the specified daemon\n  target node:  m\n{rule}\n"
    done = with_mpirun(f"printf '%s' '{route}{daemon}' >&2; exit 137")
    check(done.returncode == 4 and
          done.stderr == "launch/run: lost host k, or Open MPI's daemon there; start again with --resume\n",
          "no route to the daemons behind one that is lost: not told", said(done))
    done = with_mpirun(f"printf '%s' '{broken}' >&2; exit 1")
    check(done.returncode == 1 and done.stderr == broken, "broken connections, and nothing lost: told", said(done))
    closed = "".join(f"[h:00000] *** {line}\n" for line in (
        "An error occurred in Socket closed", "on a NULL communicator",
        "MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,"))
    done = with_mpirun(f"printf '%s' '{closed}' >&2; exit 14")
    check(done.returncode == 4 and
          done.stderr == "launch/run: lost a rank, to which host h's connection closed; start again "
          "with --resume\n", "a rank that finds another's connection closed: one line, exit 4", said(done))
    done = with_mpirun(f"printf '%s' '{closed}{lost}\n' >&2; exit 137")
    check(done.returncode == 4 and done.stderr == told, "and is not told where the lost one is named", said(done))
    done = with_mpirun(f"echo 'dtrain: disk full' >&2; printf '%s' '{closed}' >&2; exit 1")
    check(done.returncode == 1 and "dtrain: disk full" in done.stderr, "nor where dtrain itself said what is wrong",
          said(done))
    note = "dtrain: note: no room\n"
    done = with_mpirun(f"printf '%s' '{note}{closed}' >&2; exit 14")
    check(done.returncode == 4 and re.fullmatch(f"{note}launch/run: lost a rank, to which host h.*\n", done.stderr),
          "but where it noted something only", said(done))
    done = with_mpirun(f"echo 75 >$DTRAIN_EXIT_FILE; printf '%s' '{closed}' >&2; exit 14")
    check(done.returncode == 75 and done.stderr == closed, "no rank is lost once they have saved and ended", said(done))
    null = subprocess.DEVNULL  # a pipe would wait for what is left
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; exit 4", capture_output=False, stdout=null, stderr=null)
    check(done.returncode == 4 and not done.left, "mpirun that ends by itself: nothing outlives launch/run", done.left)
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; exec sleep 100")
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n",
          "mpirun that waits for a host that is gone is ended", said(done))
    begun = "dtrain: starting MPI has taken 60 s: a rank is stuck\n"
    failed = f"{rule}\nA system call failed during shared memory initialization that should\nnot have.\n"
    shared = f"{failed}  System call: open(2)\n{rule}\n"
    done = with_mpirun(f"printf '%s' '{begun}{shared}' >&2; exit 4")
    check(done.returncode == 4 and done.stderr == begun,
          "a rank stuck in MPI_Init: what others say of its end is not told", said(done))
    gone = (f"{failed}\n  Local host:  h\n  System call: unlink(2) /tmp/ompi.h.0/pid.5/1/vader_segment.h.0.6bb60001.2\n"
            f"  Error:       No such file or directory (errno 2)\n{rule}\n")
    done = with_mpirun(f"printf '%s' '{gone}' >&2")
    check(done.returncode == 0 and done.stderr == "", "a segment that is gone already as the run ends: not told",
          said(done))
    full = gone.replace("unlink(2)", "open(2)").replace("No such file or directory (errno 2)",
                                                        "No space left on device (errno 28)")
    done = with_mpirun(f"printf '%s' '{full}' >&2; exit 1")
    check(done.returncode == 1 and done.stderr == full, "shared memory that cannot be had: told", said(done))
    done = with_mpirun("printf abc >&2; exit 3")
    check(done.returncode == 3 and done.stderr == "abc\n", "a last line without an end is told", said(done))
    with open("/dev/full", "w") as full:
        done = with_mpirun("echo abc >&2; exit 75", capture_output=False, stderr=full)
    check(done.returncode == 75, "the exit code stays where nothing can be written", done.returncode)


def test_hung_mpirun():
    """It has no rank, or cannot end; half a minute, beside the other tests."""
    mark = 'echo "$DTRAIN_MARK" >&2\n'
    deaf = "trap '' TERM INT USR1 USR2; while :; do sleep 1; done"
    idle = {"begun": begin_with_mpirun(f"{mark}exec sleep 1000"), "not begun": begin_with_mpirun("exec sleep 1000")}
    early = {"heeds TERM alone": begin_with_mpirun("trap : USR1 USR2; while :; do sleep 0.2; done"),
             "heeds no signal": begin_with_mpirun(deaf)}
    twice = begin_with_mpirun(mark + deaf)
    time.sleep(0.5)
    for running in *early.values(), twice:
        running.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    twice.send_signal(signal.SIGTERM)
    yield
    for name, running in early.items():
        out, err = running.communicate(timeout=60)
        check(running.returncode == 75 and err == "launch/run: stopped before the ranks had begun: run again\n",
              f"run: stopped before the ranks have begun, and mpirun {name}: 75, one line",
              f"exit {running.returncode}\n{out}{err}")
    out, err = twice.communicate(timeout=60)
    check(twice.returncode == 4 and err.count("\n") == 1 and "mpirun was killed" in err,
          "run: a second signal ends mpirun that heeds none", f"exit {twice.returncode}\n{out}{err}")
    for name, code in ("begun", 4), ("not begun", 1):
        out, err = idle[name].communicate(timeout=60)
        check(idle[name].returncode == code and
              re.fullmatch(r"launch/run: mpirun had no rank for half a minute.*\n", err) and
              ("--resume" in err) == (code == 4),
              f"run: mpirun that has no rank, the ranks had {name}: {code}, one line",
              f"exit {idle[name].returncode}\n{out}{err}")


def test_early_stop():
    """At whatever moment of the start: nothing is lost, and nobody goes on."""
    for moment in 0.05, 0.15, 0.25, 0.35, 0.45, 0.6:
        running = begin("run", "-np", 2, *DATA, "--out", f"early-{moment}")
        time.sleep(moment)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
        check(running.returncode in (75, -signal.SIGTERM) and ("" if "weights:" in out else err) in (
            "", "launch/run: stopped before the ranks had begun: run again\n"), f"run: SIGTERM after {moment} s",
              f"exit {running.returncode}\n{out}{err}")


HYDRA = "HYDRA build details:"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.18.1"


def test_relay_of_hydra():
    """What MPICH's and Intel's launchers say, the former in an order that depends on chance."""
    bar = "=" * 83
    for codes, which in (("[h] 0,11,9", "rank 1 on host h"), ("[k] 0,9\n[h] 0,11", "a rank on host h"),
                         ("[h] 9", "a rank")):
        banner = (f"\n{bar}\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n{bar}\n"
                  f"[mpiexec@h] Exit codes: {codes}\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: "
                  "Segmentation fault (signal 11)\nThis typically refers to a problem with your application.\n")
        done = with_mpirun(f"printf 'epoch\n%s' '{banner}'; exit 11", HYDRA)
        told = f"launch/run: lost {which}, ended by signal 11 (Segmentation fault); start again with --resume\n"
        check(done.returncode == 4 and done.stderr == told and done.stdout == "epoch\n",
              f"MPICH, exit codes {codes!r}: {which}", said(done))
    done = with_mpirun(f"echo '[mpiexec@h] Exit codes: [h] 9,9'; echo '{bar}'; echo 'YOUR APPLICATION TERMINATED WITH "
                       "THE EXIT STRING: Killed (signal 9)'; exit 9", HYDRA)
    check(done.returncode == 4 and "one of the ranks 0 1" in done.stderr, "MPICH: which of two is not known",
          said(done))
    done = with_mpirun("printf 'epoch\n[mpiexec@h] Exit codes: [h] 0,0\n[k] 0,0\n'", HYDRA)
    check(done.returncode == 0 and done.stdout == "epoch\n" and not done.stderr, "MPICH: exit codes of several hosts",
          said(done))
    banner = (f"\n{bar}\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 12 RUNNING AT k\n"
              f"=   EXIT CODE: 9\n{bar}\n")
    broken = "[proxy:0@h] HYD_pmcd_pmip_control_cmd_cb (/src/proxy/pmip_cb.c:490): assert (!closed) failed"
    for printed, which in ((banner, "a rank on host k"),
                           ("", r"a rank or a host, by what mpirun says \(assert \(!closed\) failed\)")):
        done = with_mpirun(f"printf 'epoch\n%s' '{printed}'; echo '{broken}' >&2; exit 255", HYDRA)
        check(done.returncode == 4 and done.stdout == "epoch\n" and re.fullmatch(
            f"launch/run: lost {which}; start again with --resume\n", done.stderr),
              f"MPICH's own failure: lost {which}", said(done))
        done = with_mpirun(f"echo epoch; printf 'dtrain: note: no room\n%s\n' '{broken}' >&2; printf '%s' '{printed}'; "
                           "exit 255", HYDRA)
        check(done.returncode == 4 and
              re.fullmatch(f"dtrain: note: no room\nlaunch/run: lost {which}; start again with --resume\n",
              done.stderr), f"and after a note: lost {which}", said(done))
    for name, lines in ("MPICH", ("HYDU_sock_get_iface_ip (sock.c:447): unable to find interface eth7",
                                  "main (mpiexec.c:266): process manager returned error")), (
            "Intel", ("get_local_host (bstrap.c:260): unable to get iface ip", "Error setting up the bootstrap proxies",
                      "1. Host is unavailable. Please check that all hosts are available.")):
        lines = "".join(f"[mpiexec@a] {line}\n" for line in lines)
        done = with_mpirun(f"printf '%s' '{lines}' >&2; exit 255", HYDRA)
        check(done.returncode == 255 and done.stderr == lines,
              f"{name} that cannot start a rank: nothing is lost, all is told", said(done))
    for name, ending, code in (("ended well", "exit 0", 0),
                               ("saved and ended", "echo 75 >$DTRAIN_EXIT_FILE; exit 255", 75)):
        done = with_mpirun(f"echo epoch; echo '{broken}' >&2; {ending}", HYDRA)
        check(done.returncode == code and done.stderr == f"{broken}\n", f"Hydra's own failure, and the ranks {name}",
              said(done))
    banner = "".join(f"\n{bar}\n=   RANK {rank} PID 5 RUNNING AT h\n=   KILLED BY SIGNAL: {how}\n{bar}\n"
                     for rank, how in ((0, "26 (Virtual timer expired)"), (1, "9 (Killed)")))
    done = with_mpirun(f"printf 'epoch\n%s' '{banner}'; exit 255", INTEL)
    told = "launch/run: lost rank 1 on host h, ended by signal 9 (Killed); start again with --resume\n"
    check(done.returncode == 4 and done.stderr == told and done.stdout == "epoch\n", "Intel: the first to die is named",
          said(done))
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; echo 'Abort(4) on node 0 (rank 0 in comm 480): application "
                       "called MPI_Abort(comm=0x84000006, 4) - process 0' >&2; exit 255", INTEL)
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n", "MPI_Abort's code is the exit code",
          said(done))
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; echo 'Abort(4) on node 0 (rank 0 in comm 480): application "
                       "called MPI_Abort(comm=0x84000006, 4) - process 0' >&2; exec sleep 100", INTEL)
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n", "a launcher that hangs after it is ended",
          said(done))
    done = with_mpirun("printf 'a\n\n=b'; sleep 0.3; printf 'c\n'; printf '~d'; sleep 0.3; printf '~e'", HYDRA)
    check(done.stdout == "a\n\n=bc\n~d~e", "output passes as it is", repr(done.stdout))
    done = with_mpirun("echo no", "mpirun of tomorrow 9.1")
    check(fails(done, 1, "mpirun of tomorrow 9.1", "Open MPI", "MPICH"), "a launcher that is not known is refused",
          said(done))


# --- plot ----------------------------------------------------------------------------------------------


def make_run(name, net, epochs, tail=""):
    """A run's directory as dtrain leaves it, without the weights."""
    directory = SCRATCH / name
    directory.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        line = {
            "epoch": epoch,
            "step": epoch,
            "loss": 2 / epoch,
            "lr": 0.01,
            "seconds": 1,
            "images_per_second": 9,
        }
        if epoch % 2 == 0:
            line.update(train_accuracy=40 + epoch, test_accuracy=30 + epoch, test_loss=2)
        lines.append(json.dumps(line) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines) + tail)
    if net:
        (directory / "run.json").write_text(json.dumps({"net": {"name": net}}))
    return directory


class Picture:
    """What an SVG of gnuplot's shows."""

    def __init__(self, path):
        tree = xml.parse(path)
        self.text = [
            "".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")
        ]
        uses = [
            use.get("{http://www.w3.org/1999/xlink}href")
            for use in tree.iter("{http://www.w3.org/2000/svg}use")
        ]
        self.markers, self.open_markers = uses.count("#gpPt6"), uses.count("#gpPt5") - 1  # which gpPt6 is made of


def is_png(path):
    content = path.read_bytes() if path.exists() else b""
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    return content.startswith(b"\x89PNG\r\n") and width > 1000 and height > 600


def test_plot_one():
    run = make_run("one", "B", 6)
    done = launch("plot", run)
    check(done.returncode == 0 and str(run) in done.stdout, "plot: draws a run, says where", said(done))
    loss, accuracy = Picture(run / "loss.svg"), Picture(run / "accuracy.svg")
    check(
        "Net B - fc: training loss (cross-entropy)" in loss.text, "plot: the title names the net", loss.text
    )
    check(loss.markers == 6, "plot: a loss an epoch", loss.markers)
    check(accuracy.markers == accuracy.open_markers == 3 + 1,
          "plot: accuracies at the checks, and the key, of another mark each",
          (accuracy.markers, accuracy.open_markers))
    check(
        {"training set", "test set"} <= set(accuracy.text),
        "plot: the key tells the two sets apart",
        accuracy.text,
    )
    check(is_png(run / "loss.png") and is_png(run / "accuracy.png"), "plot: PNGs as well")
    check(
        sorted(os.listdir(run))
        == ["accuracy.png", "accuracy.svg", "loss.png", "loss.svg", "metrics.jsonl", "run.json"],
        "plot: leaves nothing else",
        os.listdir(run),
    )


def test_plot_study():
    for net in "ABCD":
        make_run(f"study/{net}", net, 4)
    done = launch("plot", "--", SCRATCH / "study")
    picture = Picture(SCRATCH / "study/accuracy.svg")
    names = {"A - no dropout", "B - fc", "C - conv", "D - conv + fc"}
    check(
        done.returncode == 0 and names <= set(picture.text),
        "plot: a study's nets in one figure",
        picture.text,
    )
    shutil.rmtree(SCRATCH / "study/C")
    check(launch("plot", SCRATCH / "study").returncode == 0, "plot: a study of some of the nets")
    launch("plot", "-o", "both", SCRATCH / "one", SCRATCH / "study/B")
    picture = Picture(SCRATCH / "both/loss.svg")
    check(
        f"B - fc, {SCRATCH / 'one'}" in picture.text, "plot: two runs of a net are told apart", picture.text
    )


def test_plot_odd():
    run = make_run("torn", "D", 3, tail='{"epoch":4,"step":4,"lo')
    check(
        launch("plot", run).returncode == 0 and Picture(run / "loss.svg").markers == 3,
        "plot: a torn last line",
    )
    run = make_run("null", "D", 2, tail='{"epoch":3,"step":3,"loss":null,"lr":0.01}\n{"epoch":4,"loss":1}\n')
    check(
        launch("plot", run).returncode == 0 and Picture(run / "loss.svg").markers == 3, "plot: a loss of null"
    )
    run = make_run("first", "D", 1)
    done = launch("plot", run)
    check(done.returncode == 0 and Picture(run / "loss.svg").markers == 1, "plot: a single epoch", said(done))
    check(not (run / "accuracy.svg").exists(), "plot: no figure of accuracies that were not measured")
    for name, losses in ("flat", [2.3055]), ("nearly-flat", [2.30551,
                                                             2.30552]):  # which rounding to three digits puts below
        run = make_run(name, "D", len(losses))
        lines = [{"epoch": epoch, "step": epoch, "loss": loss, "lr": 0.01} for epoch, loss in enumerate(losses, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = launch("plot", run)
        check(done.returncode == 0 and Picture(run / "loss.svg").markers == len(losses), f"plot: losses {losses}",
              said(done))
    run = make_run(f"hostile/{HOSTILE}\n-", None, 2)
    done = launch("plot", run)
    check(done.returncode == 0 and is_png(run / "loss.png"), "plot: a hostile directory", said(done))
    title = " ".join(Picture(run / "loss.svg").text)
    check(ascii(str(run)) in title, "plot: whose name is shown", title)
    check(not list(SCRATCH.rglob("pwned")), "plot: whose name is not obeyed")
    done = launch("plot", make_run("-o", "D", 2).relative_to(SCRATCH))
    check(fails(done, 2, "-o"), "plot: a name that looks like an option", said(done))
    check(launch("plot", "--", "-o").returncode == 0, "plot: the same after --")


def test_plot_errors():
    done = launch("plot")
    check(fails(done, 2, "--help"), "plot: without a run", said(done))
    done = launch("plot", "--colour", SCRATCH / "one")
    check(fails(done, 2, "--colour"), "plot: an unknown option", said(done))
    done = launch("plot", SCRATCH / "nowhere")
    check(fails(done, 3, "nowhere"), "plot: a directory that is not there", said(done))
    done = launch("plot", make_run("empty", "A", 0))
    check(fails(done, 3, "no epoch"), "plot: a run without an epoch", said(done))
    for damage in "{}", "[1]", "7", "\0\xff", '{"epoch":null}', "[" * 100000, '{"epoch":1' + "0" * 400 + "}":
        run = make_run(f"damaged-{hash(damage)}", "A", 2, tail=damage + '\n{"epoch":4,"loss":1}\n')
        done = launch("plot", run)
        check(fails(done, 3, "line 3"), f"plot: a damaged line {damage[:20]!r}", said(done))
    foreign = make_run("läufe-ε", "A", 2)
    done = launch("plot", foreign, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    check(done.returncode == 0 and "l\\xe4ufe" in done.stdout, "plot: a name that the output's encoding lacks",
          said(done))
    tools = SCRATCH / "tools"
    tools.mkdir()
    for tool in "env", "python3":
        (tools / tool).symlink_to(os.path.realpath(f"/usr/bin/{tool}"))
    done = launch("plot", SCRATCH / "one", env={**os.environ, "PATH": str(tools)})
    check(fails(done, 1, "gnuplot-nox"), "plot: without gnuplot it names the package", said(done))
    check(launch("plot", "-o", "/proc/figures", SCRATCH / "one").returncode == 1, "plot: an unwritable place")


# --- variants ------------------------------------------------------------------------------------------


def digests(output):
    """Net to digest, of the lines at the end, or of the table of --net all."""
    return dict(re.findall(r"^(?:net )?([A-D])  .* ([0-9a-f]{16})$", output, re.MULTILINE))


def best_tests(output):
    """Net to best test accuracy, as digests."""
    table = {row[0]: row.split()[-3] for row in re.findall(r"^[A-D]  .*", output, re.MULTILINE)}
    return table or dict(re.findall(r"^net ([A-D])  epoch: .* best: ([\d.]+)%", output, re.MULTILINE))


def test_variants():
    done = launch("variants", "-np", 1, *DATA, "--epochs", 2, "--p-conv", 0.2, "--seed=7")
    out = SCRATCH / "runs/variants-7"
    check(
        done.returncode == 0 and set(digests(done.stdout)) == set("ABCD"),
        "variants: trains four nets",
        said(done),
    )
    check(is_png(out / "loss.png"), "variants: draws them", said(done))
    taken = {net: json.loads((out / net / "run.json").read_text())["options"]["p-conv"] for net in "ABCD"}
    check(taken == {"A": None, "B": None, "C": 0.2, "D": 0.2}, "variants: --p-conv is for C and D", taken)
    both = launch(
        "run", "-np", 2, *DATA, "--net", "all", "--epochs", 2, "--p-conv", 0.2, "--seed", 7, "--out", "all"
    )
    check(
        digests(both.stdout) == digests(done.stdout),
        "variants: the weights are those of --net all",
        said(done) + said(both),
    )
    check(
        set(best_tests(done.stdout)) == set("ABCD") and best_tests(both.stdout) == best_tests(done.stdout),
        "variants: so are the best accuracies",
        said(done) + said(both),
    )

    done = launch("variants", *DATA, "--out", "bad", "--lr", "fast")
    check(fails(done, 2, "A B C D", "--lr fast"), "variants: what all four say is said once", said(done))
    done = launch("variants", "--net", "A")
    check(fails(done, 2, "--net"), "variants: --net is refused", said(done))
    done = launch("variants", "--seed")
    check(fails(done, 2, "--seed"), "variants: an option without its value", said(done))
    done = launch("variants", "-np", 1, *DATA, "--seed=7", "--epochs", 3)
    check(
        done.returncode == 2 and done.stderr.count("--resume") == 4,
        "variants: runs there are kept",
        said(done),
    )


LSCPU = """#!/usr/bin/env python3
print("# eleven cores of two threads each, on two sockets")
for cpu in range(22):
    print(f"{cpu % 11 // 6},{cpu % 11},{cpu}")
"""
TASKSET = """#!/bin/bash
if [[ $1 == -cp ]]; then
    echo "pid $2's current affinity list: ${PINNED:-0,2-21}"
else
    PINNED=$2 exec "${@:3}"
fi
"""


def test_variants_cores():
    """On a machine that looks larger than this one, and of which one CPU is not ours."""
    tools = SCRATCH / "large"
    tools.mkdir()
    for tool, text in ("lscpu", LSCPU), ("taskset", TASKSET):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    large = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = launch("variants", *DATA, "--epochs", 1, "--out", "cores", env=large)
    cpus = [
        [int(cpu) for cpu in line.split(",")] for line in re.findall(r"on cores ([\d,]+), log", done.stdout)
    ]
    check(sorted(sum(cpus, [])) == [0, *range(2, 22)], "variants: every CPU is one net's", said(done))
    cores = [{cpu % 11 for cpu in share} for share in cpus]
    check(sum(map(len, cores)) == 11, "variants: threads of a core stay together", cpus)
    check(sorted(map(len, cores)) == [2, 3, 3, 3], "variants: cores are shared evenly", cpus)
    ranks = [json.loads((SCRATCH / "cores" / net / "run.json").read_text())["net"]["ranks"] for net in "ABCD"]
    check(ranks == list(map(len, cores)), "variants: a rank a core", ranks)


def test_variants_stop():
    out = SCRATCH / HOSTILE / "stopped"
    run = begin("variants", "-np", 1, *DATA, "--out", out)
    wait_for(lambda: all((out / net / "checkpoint.safetensors").exists() for net in "ABCD"))
    run.send_signal(signal.SIGTERM)
    output, errors = run.communicate(timeout=60)
    check(
        run.returncode == 75 and "--resume" in output, "variants: a signal saves and stops", output + errors
    )
    check(set(digests(output)) == set("ABCD"), "variants: all four", output + errors)
    most = max(len((out / net / "metrics.jsonl").read_text().splitlines()) for net in "ABCD") + 1
    done = launch("variants", "-np", 1, *DATA, "--out", out, "--epochs", most, "--resume")
    counts = [len((out / net / "metrics.jsonl").read_text().splitlines()) for net in "ABCD"]
    check(
        done.returncode == 0 and counts == [most] * 4, "variants: --resume goes on", f"{counts}\n{said(done)}"
    )


# --- quickstart ----------------------------------------------------------------------------------------


def test_quickstart():
    """With a make that does nothing, a gnuplot that is missing, and an apt-get that brings it."""
    if os.geteuid() != 0:
        skip("quickstart", "needs root: it would call sudo")
        return
    place, tools = SCRATCH / "clone", SCRATCH / "path"
    shutil.copytree(LAUNCH, place / "launch")
    shutil.copy(ROOT / "dtrain", place)
    tools.mkdir()
    for directory in os.environ["PATH"].split(":"):
        for tool in Path(directory).glob("*") if Path(directory).is_dir() else ():
            if tool.name not in ("gnuplot", "apt-get", "make", "sudo") and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    gnuplot = shutil.which("gnuplot")
    (tools / "make").write_text("#!/bin/sh\necho quiet\necho 'CUDA     no nvcc - building for the CPU alone'\n")
    (tools / "g++").unlink(missing_ok=True)
    (tools / "nvcc").unlink(missing_ok=True)
    (tools / "nvcc").symlink_to("/bin/true")  # with which alone nothing is built for GPUs
    (tools / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {place}/apt-get.log\n'
        f'[ "$1" = update ] && touch {place}/updated && exit\n'
        f"[ -e {place}/updated ] && ln -s {gnuplot} {tools}/gnuplot\n"
    )
    (tools / "driver").write_text("#!/bin/sh\necho 535.104.05\n")
    for tool in "make", "apt-get", "driver":
        (tools / tool).chmod(0o755)
    data = SCRATCH / "cache/dtrain/synthetic-200-100"
    environment = {**os.environ, "PATH": str(tools), "DTRAIN_DATA": os.path.relpath(data, SCRATCH)}
    (tools / "nvidia-smi").unlink(missing_ok=True)
    for number in 1, 2:
        if number == 2:
            (tools / "driver").rename(tools / "nvidia-smi")
        done = subprocess.run(
            [place / "launch/quickstart"],
            cwd=SCRATCH,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        run = place / f"runs/quickstart-{number}"
        check(done.returncode == 0 and is_png(run / "accuracy.png"), f"quickstart: time {number}", said(done))
        check(("An NVIDIA driver, but no nvcc: training on CPUs (--gpu" in done.stdout) == (number == 2),
              "quickstart: says what a driver lacks", said(done))
        check(
            ("Installing" in done.stdout) == (number == 1),
            "quickstart: says what it installs, once",
            said(done),
        )
    install = "install -y --no-install-recommends gnuplot-nox"
    calls = (place / "apt-get.log").read_text().splitlines()
    check(calls == [install, "update", install], "quickstart: asks apt-get for what is missing only", calls)
    check(
        "quiet" not in done.stdout and len(done.stdout.splitlines()) < 24,
        "quickstart: fits a screen",
        done.stdout,
    )
    (tools / "make").write_text("#!/bin/sh\necho 'CUDA     13.0'\n[ $1 = found ] || { echo CUDA=$CUDA; exit 1; }\n")
    done = subprocess.run([place / "launch/quickstart"], env=environment, capture_output=True, text=True, timeout=60)
    check("no g++" in done.stdout and "Installing" not in done.stdout and "CUDA=0" in done.stderr,
          "quickstart: with all of CUDA, but no g++, builds for the CPU alone", said(done))
    (tools / "g++").symlink_to("/bin/true")
    done = subprocess.run([place / "launch/quickstart"], env=environment, capture_output=True, text=True, timeout=60)
    check("no g++" not in done.stdout and "CUDA=\n" in done.stderr, "quickstart: and with it for GPUs", said(done))
    (tools / "make").write_text("#!/bin/sh\n")
    done = subprocess.run([place / "launch/quickstart", "--gpu"], env=environment, capture_output=True, text=True,
                          timeout=60)
    check(fails(done, 1, "535.104.05", "580") and not (place / ".cuda").exists(),
          "quickstart --gpu: a driver that is too old is named before anything is downloaded", said(done))


def test_images():
    """Docker's and Apptainer's begin with the same files."""
    ignored = {line for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] not in "#*"}
    removed = re.search("^    rm -rf (build .*?) #.*\n +make ", (LAUNCH / "dtrain.def").read_text(), re.M)
    check(removed and set(removed[1].split()) == ignored - {"compile_commands*.json"},
          "dtrain.def: removes what Dockerfile.dockerignore leaves out, before make", ignored)


try:
    hung = test_hung_mpirun()
    next(hung)
    test_images()
    test_run()
    test_binding()
    test_odd_places()
    test_settings()
    test_hostile_place()
    test_stop()
    test_early_stop()
    test_stop_of_all()
    test_hidden_errors()
    test_terminal()
    test_progress_line()
    test_lost_rank()
    test_killed_launcher()
    test_relay()
    test_relay_of_hydra()
    if shutil.which("gnuplot"):
        test_plot_one()
        test_plot_study()
        test_plot_odd()
        test_plot_errors()
    else:
        skip("plot", "no gnuplot here")
    test_variants()
    test_variants_cores()
    test_variants_stop()
    test_quickstart()
    next(hung, None)
finally:
    shutil.rmtree(SCRATCH)
finish()
