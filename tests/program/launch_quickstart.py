#!/usr/bin/env python3
"""launch/quickstart, what the container images begin with, and how tests/run and tests/exec start."""
# needs: dtrain

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from launching import DATA, LAUNCH, ROOT, SCRATCH, fails, is_png, launch, said
from tap import check, finish, skip


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
    launch("run", "-np", 1, *DATA, "--epochs", 1, "--out", "drawn")
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
        check("% of the test pictures after" in done.stdout and "CIFAR" not in done.stdout,
              "quickstart: does not take the data of DTRAIN_DATA for CIFAR-10", said(done))
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
    for name in "data_batch_1.bin", "test_batch.bin":
        path = place / "cache/dtrain/cifar-10-batches-bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (place / "runs").rename(place / "kept")
    for made, why in (lambda: (place / "runs").touch(), "runs: cannot be made: File exists"), (
            lambda: (place / "runs").symlink_to("/proc/self"), "runs/quickstart-1: cannot be made: No such file"):
        made()
        done = subprocess.run([place / "launch/quickstart"], env=environment, capture_output=True, text=True,
                              timeout=60)
        check(fails(done, 1, why), f"quickstart: {why}", said(done))
        (place / "runs").unlink()
    (place / "launch/run").write_text("#!/bin/sh\nexit 9\n")
    for cache, absent in ("cache", True), (str(place / "cache"), False):
        done = subprocess.run([place / "launch/quickstart"], env={**environment, "DTRAIN_DATA": "",
                                                                  "XDG_CACHE_HOME": cache},
                              cwd=place, capture_output=True, text=True, timeout=60)
        check(done.returncode == 9 and ("No CIFAR-10 here" in done.stdout) == absent,
              f"quickstart: XDG_CACHE_HOME={cache[:5]}: a relative one does not count", said(done))
    (place / "launch/run").write_text("#!/bin/sh\necho \"$@\"\nexit 75\n")
    done = subprocess.run([place / "launch/quickstart"], env=environment, capture_output=True, text=True, timeout=60)
    words, told = done.stdout.splitlines()[-2:]
    check(done.returncode == 75 and told == f"Go on in {place}: launch/run {words} --resume",
          "quickstart: stopped, it says by which command to go on", said(done))


def test_images():
    """Docker's and Apptainer's begin with the same files."""
    ignored = {line for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] not in "#*"}
    removed = re.search("^    rm -rf (build .*?) #.*\n +make ", (LAUNCH / "dtrain.def").read_text(), re.M)
    check(removed and set(removed[1].split()) == ignored - {"compile_commands*.json"},
          "dtrain.def: removes what Dockerfile.dockerignore leaves out, before make", ignored)


def test_sudo():
    """Packages are installed without questions though sudo drops the environment; by tests/run, too. Both are called by
    relative names, with an exported CDPATH, in which `cd` looks for such first."""
    place, tools = Path(tempfile.mkdtemp(dir=SCRATCH)), Path(tempfile.mkdtemp(dir=SCRATCH))
    for folder in SCRATCH, place, tools:
        folder.chmod(0o755)
    shutil.copytree(LAUNCH, place / "launch")
    (place / "tests").mkdir()
    shutil.copy(ROOT / "tests/run", place / "tests")
    for folder in "tests", "launch":
        (tools / "elsewhere" / folder).mkdir(parents=True)
    for tool, script in {
        "sudo": f'exec env -i PATH="{tools}:$PATH" "$@"',
        "apt-get": '[ "$1" = update ] || { echo "asks: ${DEBIAN_FRONTEND-yes} in $PWD" >&2; exit 1; }',
        "id": "echo 4242",
        "pkg-config": "exit 1",
    }.items():
        (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tools / tool).chmod(0o755)
    user = ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"] if os.geteuid() == 0 else []
    for script in "launch/quickstart", "tests/run":
        done = subprocess.run([*user, script], cwd=place, text=True, capture_output=True, timeout=60, check=False, env={
            "PATH": f"{tools}:{os.environ['PATH']}", "CDPATH": str(tools / "elsewhere")})
        check(done.returncode == 1 and f"asks: noninteractive in {place}\n" in done.stderr,
              f"{script}: sudo, and no questions", said(done))


def test_cdpath():
    """With an exported CDPATH `cd` looks elsewhere first, and says where it went."""
    for folders in ".", ROOT:
        env = {**os.environ, "CDPATH": str(folders), "PYTHONPATH": ""}
        done = subprocess.run(["tests/exec", "printenv", "PYTHONPATH"], cwd=ROOT, env=env, capture_output=True,
                              text=True, check=False)
        check(done.stdout == f"{ROOT}/tests/support\n", f"tests/exec: CDPATH={folders}", said(done))


def test_help():
    done = subprocess.run(["tests/run", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    check(done.returncode == 0 and "  tests/run NAME..." in done.stdout, "tests/run: --help tells of NAME", said(done))


def test_half_a_list():
    """Where make cannot name all tests none is run, as the others would pass for all."""
    tools = Path(tempfile.mkdtemp(dir=SCRATCH))
    (tools / "make").write_text('#!/bin/sh\ncase "$*" in *DEBUG*) exit 2 ;; *print*) echo tests/unit/none ;; esac\n')
    (tools / "make").chmod(0o755)
    done = subprocess.run([ROOT / "tests/run", "unit/none"], text=True, capture_output=True, timeout=60, check=False,
                          env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
    check(done.returncode == 2 and not done.stdout, "tests/run: half a list of tests is none", said(done))


test_images()
test_help()
test_cdpath()
test_half_a_list()
test_sudo()
test_quickstart()
finish()
