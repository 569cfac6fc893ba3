#!/usr/bin/env python3
"""launch/run, with nets that train for a second: what it takes, where it runs, how it stops."""
# needs: dtrain
# timed: signals come at moments of a start

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from launching import (DATA, HOSTILE, LAUNCH, ROOT, SCRATCH, begin, children, fails, launch, parent, place_mpirun, said,
                       stand_in, wait_for)
from tap import check, finish, skip
from terminal import Terminal

CORES = len(os.sched_getaffinity(0))


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
    done = launch("run", "-np", 2, "./dtrain", "--net", "D")
    check(fails(done, 2, "./dtrain: ", "launch/run -np 2 --net D"), "run: refuses a program's name", said(done))
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


def test_waits():
    """bash before 5.1 can wait only for the last >(...) of a shell: for another its `wait` says 127, at once."""
    waited = re.findall(r">\((\w+).*\n +\w+=\$!", (LAUNCH / "run").read_text())
    check(waited == ["kill_after"], "run: waits for no >(...) but the only one of relay_errors", waited)


def test_hosts():
    """What is wrong with the words about hosts is one line that names it, before anything starts."""
    (SCRATCH / "garbage").write_bytes(b"node1 slots=2\nfoo bar ///\n\0\1")
    (SCRATCH / "empty").write_text("\n# nobody\n")
    (SCRATCH / "wrong").write_text("node1 slots=two\n")
    for words, *told in (
            (["--hostfile", "nowhere"], "nowhere: cannot be read: No such file"),
            (["--hostfile", "/tmp"], "/tmp: cannot be read: Is a directory"),
            (["--hostfile", "garbage"], "garbage: line 2: ", "node1 slots=8"),
            (["--hostfile", "wrong"], "wrong: line 1: ", "node1 slots=8"),
            (["--hostfile", "empty"], "empty: names no host"), (["-H", ",,"], "-H ,,: "), (["-H", "a,"], "-H a,: "),
            (["-H", "localhost:x"], "-H localhost:x: ", "HOST:RANKS"), (["-H", "localhost:0"], "-H localhost:0: "),
            (["-H", "localhost:1", "-np", 4], "-np 4: ", "HOST:N"),
            (["--interface", "nosuch"], "--interface nosuch: ", "lo"), (["--interface", "lo,no"], "--interface no: "),
            (["--interface", "10.0.0.0/99"], "--interface 10.0.0.0/99: ", "10.0.0.0/8")):
        done = launch("run", *words, *DATA, "--epochs", 0)
        check(fails(done, 2, "launch/run: ", *told) and not done.stdout, f"run: refuses {words}", said(done))
    _, env = place_mpirun('while [ "$1" != --hostfile ]; do shift; done; cat "$2"')
    text = "# ours\n  node1 slots=4 max_slots = 8 # caf\u00e9\r\nme@node-2.org:2\n\n[fe80::1]\n"
    done = subprocess.run(["bash", "-c", '"$0" --hostfile <(cat) --interface lo,127.0.0.0/8', LAUNCH / "run"],
                          input=text, env=env, capture_output=True, text=True, timeout=60, check=False)
    check(done.stdout == text.replace("\r", "") and not done.stderr, "run: takes a hostfile as it is, by a pipe too",
          said(done))
    _, env = place_mpirun('while [ "$1" != -machinefile ]; do shift; done; cat "$2"', "HYDRA build details:")
    (SCRATCH / "hosts").write_text("  n1 slots = 4 max_slots = 8 # ours\nn2\tmax-slots=3\tslots=2\nn3:5\nn4\n")
    done = launch("run", "--hostfile", "hosts", env={**env, "POSIXLY_CORRECT": "1"})
    check(done.stdout == "n1:4\nn2:2\nn3:5\nn4\n", "run: and tells Hydra the same in its words", said(done))
    done = launch("run", "-H", "a:2,me@node-2.org,[fe80::1]:4,+n1,b:*", env=place_mpirun("echo well")[1])
    check(done.stdout == "well\n", "run: takes hosts as Open MPI writes them", said(done))


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


def test_ranks_on_gpus():
    """How many ranks are started where nobody says it: one a GPU that they see, but no more than cores."""
    place, env = place_mpirun('echo "given $@"')
    for tool in "dtrain", "dtrain-cuda.so", "nvidia-smi":
        (place / tool).touch(0o755)
    many = ",".join(map(str, range(CORES + 3)))
    for listed, seen, *options, expected in (
            (1, None, 1), (CORES + 3, None, CORES), (CORES + 3, "GPU-1", 1), (CORES + 3, many, CORES),
            (CORES + 3, "2,-1," + many, 1), (1, many, 1), (1, "", CORES), (1, "-1", CORES), (0, None, CORES),
            (1, None, "--engine", "cpu", CORES)):
        lines = [f"echo 'GPU {i}: NVIDIA H100 (UUID: GPU-{i})'\necho '  MIG 1g.10gb'" for i in range(listed)]
        (place / "nvidia-smi").write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        settings = {**env, "DTRAIN": str(place / "dtrain")} | ({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen})
        done = launch("run", *options, env=settings)
        check(done.stdout.startswith(f"given -n {expected} "),
              f"run: ranks where {listed} GPUs are listed, CUDA_VISIBLE_DEVICES={seen}: {expected}", said(done))


def test_handed_on():
    """What Open MPI is told to give to other hosts."""
    _, env = place_mpirun('echo "$@"')
    done = launch("run", "-np", 2, *DATA, env={**env, "NCCL_DEBUG": "INFO", "NCCL_IB_HCA": "a b",
                                               "CUDA_VISIBLE_DEVICES": "", "CUDA_MODULE_LOADING": "EAGER"})
    told = re.findall(r"-x (\S+)", done.stdout)
    check({"NCCL_DEBUG", "NCCL_IB_HCA", "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES"} <= set(told),
          "run: other hosts get all settings of NCCL and CUDA, an empty one as well", said(done))
    _, env = place_mpirun('echo "SLURM_EXPORT_ENV: ${SLURM_EXPORT_ENV-}"')
    done = launch("run", "-np", 2, *DATA, env={**env, "SLURM_EXPORT_ENV": "NONE"})
    check(done.stdout == "SLURM_EXPORT_ENV: \n", "run: and srun is not to take the environment away", said(done))


def test_cores_in_translation():
    """taskset of util-linux in Chinese has a colon of its own."""
    place = SCRATCH / "chinese"
    place.mkdir()
    for tool, script in {
        "taskset": 'if [ "$LC_ALL" = C ]; then echo "pid 1\'s current affinity list: 2-3"; '
        'else echo "pid 1 的当前亲和力列表：2-3"; fi',
        "lscpu": "for cpu in 0 1 2 3; do echo 0,$cpu,$cpu; done",
    }.items():
        (place / tool).write_text(f"#!/bin/sh\n{script}\n")
        (place / tool).chmod(0o755)
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", '. "$0"; list_cpus', LAUNCH / "cores.sh"], env=env, capture_output=True,
                          text=True, check=False)
    check(done.stdout == "0.2 2\n0.3 3\n", "run: the CPUs allowed, whatever language taskset speaks", said(done))


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
    for script, options, code in (("run", ["-np", 0], 2), ("variants", ["-np", 0], 2), ("quickstart", ["--no"], 2),
                                  ("plot", [], 2), ("plot", ["nowhere"], 3), ("convert-cifar10", ["no", "out"], 3)):
        for place in ">/dev/full", ">&-":
            done = shell(f'exec "$1" "${{@:2}}" 2{place}', LAUNCH / script, *options)
            check(done.returncode == code, f"{script} {' '.join(map(str, options))}: {code}, with 2{place}", said(done))
    for script in sorted(path for path in LAUNCH.iterdir() if os.access(path, os.X_OK)):
        done = shell('exec "$1" --help >/dev/full', script)
        check(done.returncode == 1 and done.stderr.count("\n") == 1,
              f"{script.name} --help: standard output is full: 1, and told", said(done))
    done = shell('exec "$0" "$@" >out.txt', *train, "--out", "to-a-file")
    check(done.returncode == 0 and not done.stderr and (SCRATCH / "out.txt").read_text().count("\n") == 7,
          "run: standard output may be a file", said(done))
    _, env = place_mpirun('echo "HOME=$HOME"')
    done = launch("run", env=env | {"HOME": ""})
    check(done.stdout == f"HOME={pwd.getpwuid(os.geteuid()).pw_dir}\n", "run: HOME is there and empty", said(done))
    _, env = place_mpirun("exit 9")
    done = launch("run", env=env | {"SHELLOPTS": "braceexpand:monitor"})
    check(done.returncode == 9, "run: with bash's monitor option on, by an exported SHELLOPTS", said(done))
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

    done = launch("run", *train, "--out", "relative", env={**os.environ, "TMPDIR": "temporary"})
    check(done.returncode == 0 and not done.stderr, "run: a TMPDIR that is relative", said(done))
    place = SCRATCH / "unasked"
    place.mkdir()
    (place / "taskset").write_text("#!/bin/sh\necho taskset: cannot determine NR_CPUS >&2; exit 1\n")
    (place / "taskset").chmod(0o755)
    done = launch("run", *train, env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"})
    check(fails(done, 1, "sched_getaffinity"), "run: where sched_getaffinity is refused, as by seccomp", said(done))
    done = launch("run", *train, "--out", "locale", env={**os.environ, "LC_ALL": "xx_YY.UTF-8"})
    check(done.returncode == 0 and f"{LAUNCH}/run" not in done.stderr, "run: a locale that is not there", said(done))

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
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", asking, LAUNCH, prefix / "bin" / "mpirun"], text=True,
                              env={"PATH": os.environ["PATH"], "HOME": str(home), **env}, capture_output=True,
                              check=False)
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
    """systemd, and qdel of PBS, send SIGTERM to every process of a job; systemd may be told to send SIGHUP, too."""
    for number in signal.SIGTERM, signal.SIGHUP:
        directory = f"all-{number.name}"
        running = begin("run", "-np", 2, *DATA, "--epochs", 100000, "--checkpoint-every", 100000, "--eval-every",
                        100000, "--out", directory)
        wait_for(lambda: (SCRATCH / directory / "metrics.jsonl").exists())
        time.sleep(0.5)
        for pid in tree(running.pid)[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        out, err = running.communicate(timeout=60)
        check(running.returncode == 75 and f"stopped by {number.name}" in out,
              f"run: {number.name} to all its processes at once saves and ends with 75",
              f"exit {running.returncode}\n{out}{err}")


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
        if number == signal.SIGINT:  # as from a terminal and from who watches it
            time.sleep(0.05)
            run.send_signal(number)
        output, errors = run.communicate(timeout=60)
        check(
            run.returncode == 75 and "stopped by a signal after step" in output,
            f"run: {number.name} saves and stops, exit 75",
            f"exit {run.returncode}\n{output[-500:]}{errors}",
        )
        check(errors == "", f"run: {number.name}: without a banner", errors)

    done_epochs = len((SCRATCH / "stopped-SIGINT/metrics.jsonl").read_text().splitlines())
    done = launch("run", "-np", 1, *DATA, "--out", "stopped-SIGINT", "--epochs", done_epochs + 2, "--resume")
    check(done.returncode == 0, "run: --resume goes on", said(done))


def place_job(script):
    """A folder with the batch scripts and this shell script as launch/run, and the environment of a job there."""
    home = Path(tempfile.mkdtemp(dir=SCRATCH))
    shutil.copytree(ROOT / "slurm", home / "slurm")
    shutil.copytree(LAUNCH, home / "launch")
    (home / "launch/run").write_text(f"#!/bin/sh\n{script}\n")
    return home, {"SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}


def fake_clock(file):
    """The environment in which the wall clock is wrong by the seconds in this file. libfaketime cannot do that to bash,
    which has a getenv of its own."""
    source = """
        #include <stdio.h>
        #include <sys/time.h>
        #include <time.h>
        static time_t now(struct timespec *time) {
            FILE *file = fopen(PLACE, "r");
            long wrong = 0;
            if (file != NULL) { (void)!fscanf(file, "%ld", &wrong); fclose(file); }
            clock_gettime(CLOCK_REALTIME, time);
            return time->tv_sec += wrong;
        }
        time_t time(time_t *told) {
            struct timespec time;
            return told != NULL ? (*told = now(&time)) : now(&time);
        }
        int gettimeofday(struct timeval *told, void *zone) {
            struct timespec time;
            told->tv_sec = now(&time), told->tv_usec = time.tv_nsec / 1000;
            return 0;
        }"""
    library = file.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", f'-DPLACE="{file}"', "-o", library, "-x", "c", "-"], check=True,
                   input=source.encode())
    return {"LD_PRELOAD": str(library)}


def stop_deaf(name, number, place, *command, **env):
    """A script that was started with such signals ignored stops all the same, and has saved below `place`."""
    running = subprocess.Popen(["sh", "-c", "trap '' INT TERM USR1 USR2; exec \"$@\"", "sh", *map(str, command)],
                               cwd=SCRATCH, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    begun = wait_for((SCRATCH / place / "metrics.jsonl").exists)
    running.send_signal(number)
    try:
        out, err = running.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        for pid in tree(running.pid):
            os.kill(pid, signal.SIGKILL)
        out, err = running.communicate()
    saved = (SCRATCH / place / "checkpoint.safetensors").exists()
    check(begun and running.returncode == 75 and saved and not err,
          f"{name}: {number.name}, which it was started to ignore, stops it, saved, exit 75",
          f"exit {running.returncode}\n{out[-500:]}{err}")


def test_ignored_signals():
    """bash traps none that was ignored when it started."""
    endless = ["-np", 1, *DATA, "--epochs", 10000000, "--checkpoint-every", 10000000, "--eval-every", 10000000, "--out"]
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2:
        stop_deaf("run", number, f"deaf-{number.name}", LAUNCH / "run", *endless, f"deaf-{number.name}")
    stop_deaf("variants", signal.SIGTERM, "deaf/D", LAUNCH / "variants", *endless, "deaf")
    home, env = place_job("trap 'touch job/checkpoint.safetensors; exit 75' USR1\nmkdir job\ntouch job/metrics.jsonl\n"
                          "while :; do sleep 0.1; done")
    stop_deaf("a batch job", signal.SIGUSR1, "job", "bash", home / "slurm/verify.sbatch", **env)


def test_job_clock():
    """A job that was requeued tries for three minutes, not by the wall clock."""
    clock = fake_clock(SCRATCH / "job-clock")
    home, env = place_job(f"echo 3600 >{SCRATCH}/job-clock\n[ ! -e twice ] || exit 0\ntouch twice\nexit 2")
    (home / "sleep").symlink_to("/bin/true")
    env |= {**clock, "SLURM_JOB_NAME": "job", "SLURM_RESTART_COUNT": "1", "PATH": f"{home}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", home / "slurm/train.sbatch"], cwd=SCRATCH, env=os.environ | env, check=False,
                          capture_output=True, text=True)
    check(done.returncode == 0, "a batch job tries again where its directory is held, also if the clock is set on",
          said(done))


def run_job(script, tools, *options, **env):
    """A batch job in whose PATH these tools tell what they were given, and end with the code."""
    home, job = place_job(script)
    for tool, code in tools.items():
        (home / tool).write_text(f'#!/bin/sh\necho "{tool}:" "$@"\nexit {code}\n')
        (home / tool).chmod(0o755)
    env = {"SLURM_JOB_NAME": "gpus", "SLURM_JOB_PARTITION": "main", "PATH": f"{home}:{os.environ['PATH']}", **env}
    return subprocess.run(["bash", home / "slurm/train.sbatch", *options], cwd=SCRATCH, env=os.environ | job | env,
                          check=False, capture_output=True, text=True)


def test_job_on_gpus():
    """A job without requeue that is stopped, on GPUs that it asked for in one way or another."""
    tools = {"sbatch": 0, "scontrol": 0, "squeue": 0}
    for asked, wanted in (({"SLURM_GPUS_PER_NODE": "h100:4", "SLURM_GPUS_ON_NODE": "4"}, " --gpus-per-node=h100:4 "),
                          ({"SLURM_GPUS_ON_NODE": "3"}, " --gpus-per-node=3 "), ({}, "")):
        done = run_job("exit 75", tools, **asked)
        told = next((line for line in done.stdout.splitlines() if line.startswith("sbatch: ")), "")
        check(done.returncode == 75 and told and (wanted in told if wanted else "--gpus" not in told),
              f"a job's successor asks for its GPUs: {asked}", said(done))
    done = run_job("exit 75", tools, SLURM_NTASKS="3", SLURM_NTASKS_PER_NODE="4", SLURM_MEM_PER_CPU="500")
    check(" --ntasks=3 " in done.stdout and " --mem-per-cpu=500 " in done.stdout,
          "a job's successor asks for as many tasks, and as much memory for each core", said(done))
    for asked in {"SLURM_GPUS_ON_NODE": "4"}, {}:
        done = run_job("", {"srun": 0}, LAUNCHER="srun", **asked)
        check(done.returncode == 0 and ("--cpu-bind=none" in done.stdout) == bool(asked),
              f"srun binds ranks on GPUs, and them alone, to no core: {asked}", said(done))


def test_job_without_place():
    """scaling.sbatch where its directory, or a log in it, cannot be made: nothing is run, and the job fails."""
    home, env = place_job("echo started >&2")
    (home / "dtrain").symlink_to("/bin/true")
    (home / "taken/strong-1.log").mkdir(parents=True)
    for out in "/proc/nowhere", "taken":
        done = subprocess.run(["bash", home / "slurm/scaling.sbatch"], cwd=home, check=False, capture_output=True,
                              text=True, env=os.environ | env | {"SLURM_JOB_NAME": "scaling", "OUT": out})
        check(done.returncode == 1 and "%" not in done.stdout and "started" not in done.stderr,
              f"scaling.sbatch: {out} cannot be written", said(done))


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
    check(running.returncode == 75 and "stopped by a signal after step" in out and not err,
          "run: a script that hides standard error", f"exit {running.returncode}\n{out}{err}")


def test_terminal():
    """Ctrl-C on a terminal, where it reaches everything in the foreground."""
    terminal = Terminal([LAUNCH / "run", "-np", 2, *DATA, "--out", "terminal"], SCRATCH, os.environ)
    wait_for((SCRATCH / "terminal/checkpoint.safetensors").exists)
    terminal.press(b"\x03")
    code, output = terminal.finish()
    check(code == 75 and "run again with --resume" in output, "run: Ctrl-C on a terminal saves and stops, exit 75",
          f"exit {code}\n{output[-500:]}")


def run_on_terminal(columns, kind, *options):
    """The exit code of a run, and what it writes on a terminal of that width and TERM."""
    return Terminal([LAUNCH / "run", "-np", 2, *options], SCRATCH, os.environ | {"TERM": kind}, columns).finish()


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


def begin_with_mpirun(script, **more):
    """launch/run under way with this shell script in mpirun's place."""
    folder, env = place_mpirun(f"touch {SCRATCH}/$PPID\n{script}")
    running = subprocess.Popen([LAUNCH / "run", "-np", "2"], env=env | more, cwd=SCRATCH, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (SCRATCH / str(running.pid)).exists())
    return running


def test_hung_mpirun():
    """It has no rank, or cannot end; half a minute, beside the other tests."""
    mark = 'echo "$DTRAIN_MARK" >&2\n'
    deaf = "trap '' TERM INT USR1 USR2; while :; do sleep 1; done"
    idle = {"begun": begin_with_mpirun(f"{mark}exec sleep 1000"), "not begun": begin_with_mpirun("exec sleep 1000")}
    early = {"heeds TERM alone": begin_with_mpirun("trap : USR1 USR2; while :; do sleep 0.2; done"),
             "heeds no signal": begin_with_mpirun(deaf)}
    twice = begin_with_mpirun(mark + deaf, **fake_clock(SCRATCH / "clock"))
    time.sleep(0.5)
    for running in *early.values(), twice:
        running.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    (SCRATCH / "clock").write_text("-3600\n")
    twice.send_signal(signal.SIGTERM)
    yield
    for name, running in early.items():
        out, err = running.communicate(timeout=60)
        check(running.returncode == 75 and err == "launch/run: stopped before the ranks had begun: run again\n",
              f"run: stopped before the ranks have begun, and mpirun {name}: 75, one line",
              f"exit {running.returncode}\n{out}{err}")
    out, err = twice.communicate(timeout=60)
    check(twice.returncode == 4 and err.count("\n") == 1 and "mpirun was killed" in err,
          "run: a second signal ends mpirun that heeds none, also after the clock was set back",
          f"exit {twice.returncode}\n{out}{err}")
    for name, code in ("begun", 4), ("not begun", 1):
        out, err = idle[name].communicate(timeout=60)
        check(idle[name].returncode == code and
              re.fullmatch(r"launch/run: mpirun had no rank for half a minute.*\n", err) and
              ("--resume" in err) == (code == 4),
              f"run: mpirun that has no rank, the ranks had {name}: {code}, one line",
              f"exit {idle[name].returncode}\n{out}{err}")


def test_slow_tools():
    """What is asked before anything starts takes seconds, or hangs: a signal is heeded meanwhile."""
    place = SCRATCH / "slow"
    place.mkdir()
    for tool in "dtrain", "dtrain-cuda.so":
        (place / tool).write_text("#!/bin/sh\n")
        (place / tool).chmod(0o755)
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "DTRAIN": str(place / "dtrain")}
    slow = f"#!/bin/sh\ntouch {place}/asked\nexec sleep 20\n"
    for tool, number in (("ompi_info", signal.SIGINT), ("ompi_info", signal.SIGTERM), ("ompi_info", signal.SIGUSR1),
                         ("nvidia-smi", signal.SIGHUP), ("nvidia-smi", signal.SIGINT), ("nvidia-smi", signal.SIGUSR1),
                         ("nvidia-smi", signal.SIGUSR2), ("mpirun", signal.SIGTERM)):
        (place / "mpirun").write_text(stand_in("exit 1"))  # ompi_info is looked for beside it
        (place / tool).write_text(slow)
        for name in "mpirun", tool:
            (place / name).chmod(0o755)
        running = subprocess.Popen([LAUNCH / "run"], env=env, cwd=SCRATCH, stdin=subprocess.DEVNULL, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        asked = wait_for((place / "asked").exists)
        began = time.monotonic()
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
        check(asked and running.returncode == 75 and time.monotonic() - began < 10 and
              err == "launch/run: stopped before the ranks had begun: run again\n",
              f"run: {number.name} while {tool} is asked: 75, one line, at once",
              f"exit {running.returncode}\n{out}{err}")
        for name in "asked", tool:
            (place / name).unlink(missing_ok=True)


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


hung = test_hung_mpirun()
next(hung)
test_run()
test_waits()
test_hosts()
test_binding()
test_ranks_on_gpus()
test_handed_on()
test_cores_in_translation()
test_odd_places()
test_settings()
test_hostile_place()
test_stop()
test_slow_tools()
test_early_stop()
test_stop_of_all()
test_ignored_signals()
test_job_clock()
test_job_on_gpus()
test_job_without_place()
test_hidden_errors()
test_terminal()
test_progress_line()
test_lost_rank()
test_killed_launcher()
next(hung, None)
finish()
