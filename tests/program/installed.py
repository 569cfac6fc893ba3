#!/usr/bin/env python3
"""The Makefile's settings; make install and uninstall, and what has been installed."""
# needs: dtrain

import os
import re
import subprocess
from pathlib import Path

from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT
from tap import check, finish

PREFIX = FOLDER / "staged" / "opt" / "dtrain"
PLACE = ["DESTDIR=" + str(FOLDER / "staged"), "PREFIX=/opt/dtrain"]
ENV = {key: value for key, value in ENVIRONMENT.items()
       if key != "DTRAIN"} | {"PATH": f"{PREFIX}/bin:{os.environ['PATH']}"}


def call(*words, **settings):
    settings = {"env": ENV} | settings
    return subprocess.run([str(word) for word in words], cwd=FOLDER, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=100, check=False, **settings)


def would(*words, **env):
    """What make would do with these words and these variables in the environment."""
    done = call("make", "-n", "-C", ROOT, f"BUILD={FOLDER}/elsewhere", *words,
                env=ENV | {name: str(value) for name, value in env.items()})
    return done.stdout + done.stderr


def files():
    return sorted(str(path.relative_to(PREFIX)) for path in PREFIX.rglob("*") if not path.is_dir() or path.is_symlink())


def complete(*words):
    script = f'. "$0"; COMP_WORDS=({" ".join(words)} ""); COMP_CWORD={len(words)}; _dtrain; ' \
        'printf "%s\\n" "${COMPREPLY[@]}"'
    return call("bash", "-c", script, PREFIX / "share/bash-completion/completions/dtrain").stdout.split()


done = call("make", "-s", "-C", ROOT, "install", *PLACE, umask=0o077)
check(done.returncode == 0, "make install", done.stdout + done.stderr)
shut = [path for path in PREFIX.rglob("*") if path.stat().st_mode & 0o444 != 0o444]
check(not shut, "all may read it, whatever the umask", shut)
train = ["--data", "synthetic:40+10", "--epochs", "1", "--batch-size", "16"]
done = call("dtrain-run", "-np", "2", *train, "--net", "A,D", "--out", "trained")
check(done.returncode == 0 and not done.stderr and (FOLDER / "trained" / "loss.svg").exists(),
      "dtrain-run finds the program, and that the figures", done.stdout + done.stderr)
done = call("dtrain-variants", "-np", "1", *train, "--out", "four")
check(done.returncode == 0 and (FOLDER / "four" / "loss.svg").exists(), "dtrain-variants", done.stdout + done.stderr)
done = call("dtrain-plot", "-o", "drawn", "trained")
check(done.returncode == 0 and (FOLDER / "drawn" / "loss.svg").exists(), "dtrain-plot", done.stdout + done.stderr)
done = call("dtrain-fetch-cifar10", "--help")
check(done.returncode == 0 and ENV["XDG_CACHE_HOME"] in done.stdout,
      "dtrain-fetch-cifar10 puts data into the user's cache", done.stdout)
for name in "run", "variants", "verify", "plot", "fetch-cifar10":
    done = call(f"dtrain-{name}", "--help")
    check(done.returncode == 0 and f"dtrain-{name} [" in done.stdout and
          not re.search(r"launch/(?!\w+\.sh)|\./dtrain", done.stdout),
          f"the help of dtrain-{name} calls all by the names that they have now", done.stdout)
done = call("dtrain-run", "-np", "0")
check(done.returncode == 2 and done.stderr.startswith("dtrain-run: -np 0: "), "so does a message of dtrain-run",
      done.stderr)
done = call("dtrain", "--data", FOLDER / "staged")
check(done.returncode == 3 and ": dtrain-fetch-cifar10 gets them" in done.stderr, "and one of dtrain", done.stderr)
done = call("dtrain", "--doctor", "--data", "synthetic")
part = (PREFIX / "lib/dtrain/dtrain-cuda.so").exists() == Path(f"{PROGRAM}-cuda.so").exists()
check(done.returncode == 0 and part, "dtrain by itself, its GPU part beside it", done.stdout + done.stderr)
(FOLDER / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
done = call("dtrain", "--data", "cifar")
check(done.returncode == 3 and "lacks data_batch_1" in done.stderr, "and the script that converts data", done.stderr)

options = set(re.findall("--[a-z-]+", call("dtrain", "--help").stdout))
manual = (PREFIX / "share/man/man1/dtrain.1").read_text().replace("\\-", "-")
check({f"--{name}" for name in re.findall(r"^\\fB--([a-z-]+)\\fR", manual, re.M)} | {"--out"} == options and
      all(word in manual for word in ("EXIT STATUS", "75 stopped by a signal")), "the man page has every option",
      manual)
for name, choices in (("net", "A B C D all"), ("progress", "auto always never"), ("engine", "auto cudnn fused cpu"),
                      ("comm", "auto peers nccl mpi")):
    found = complete("dtrain", f"--{name}")
    check(found == choices.split(), f"bash completes --{name}", found)
check(set(complete("dtrain-run")) == options | {"-np", "-H", "--hostfile", "--interface"} and
      complete("dtrain-run", "-np") == [] and "trained" in complete("dtrain-run", "--hostfile"),
      "bash completes what dtrain-run takes itself", complete("dtrain-run"))
check(set(complete("dtrain")) == options and complete("dtrain", "--precision", "=") == ["fp32", "tf32"] and
      "trained" in complete("dtrain-run", "--out"), "bash completes options, choices and files", complete("dtrain"))

(FOLDER / "pc").mkdir()
(FOLDER / "pc" / "libcjson.pc").write_text("Name: cJSON\nVersion: 1\nDescription: a module's\n"
                                           "Libs: -L/opt/cjson/lib -lcjson\nCflags: -I/opt/cjson/include\n")
done = would("CUDA=0", FOLDER / "elsewhere" / "dtrain", PKG_CONFIG_PATH=FOLDER / "pc")
check("-L/opt/cjson/lib -lcjson" in done and "-Wl,-rpath,/opt/cjson/lib" in done,
      "a library of a module is found at run time too", done[-3000:])
compiled = [line for line in done.splitlines() if " -c -o " in line]
check(compiled and all("-I/opt/cjson/include" in line for line in compiled), "and its headers", done[:3000])

# A compiler that compiles nothing, for the processor that the environment names.
(FOLDER / "gcc").write_text("""#!/bin/sh
case "$*" in
*-dM*) gcc "$@" && echo "#define CPU $CPU" ;;
*) while [ "$1" != -o ]; do shift; done && : >"$2" ;;
esac
""")
(FOLDER / "gcc").chmod(0o755)
OBJECTS = [FOLDER / "stub" / name for name in ("src/base/error.o", "host/kernels/cuda/pool.cu.o")]


def compiled(**env):
    done = call("make", "-s", "-C", ROOT, "CUDA=0", f"CC={FOLDER}/gcc", f"BUILD={FOLDER}/stub", *OBJECTS,
                env=ENV | {name: str(value) for name, value in env.items()})
    return re.findall("^  C.* (.*)", done.stdout, re.M)


everything = [str(path) for path in OBJECTS]
check(compiled(CPU="new") == everything and compiled(CPU="new") == [], "make compiles once")
check(compiled(CPU="old") == everything, "and anew for another processor or by another compiler")
flags = {"CPPFLAGS": "-DA='\"b  c\"'", "CFLAGS": "-g3"}
check(compiled(CPU="old", **flags) == everything and compiled(CPU="old", **flags) == [], "and with other flags")
check(compiled(CPU="old", PKG_CONFIG_PATH=FOLDER / "pc") == everything, "and with another cJSON")

done = would("all", DEBUG="app:*", V="0", WERROR="0")
check("-debug" not in done and "-Werror" not in done and "echo '  LD " in done,
      "DEBUG, V and WERROR of the environment are somebody else's", done[-3000:])
check("-debug" in would("DEBUG=1", "all"), "those of the command line are make's")
done = would("DEBUG=0", "V=0", "WERROR=0", "all")
check("-debug" not in done and "echo '  LD " in done and "-Werror" not in done, "where 0 means no", done[-3000:])

for target in "install", "uninstall":
    done = would("CUDA=0", target, f"PREFIX={FOLDER}/my ")
    check(f"cannot have a space: '{FOLDER}/my '.  Stop." in done and "rm -rf" not in done,
          f"make {target} takes no path with a space", done[-3000:])

built = ["CUDA=0", "all", "unit", "bench", "WERROR=1"]
usual, changed = (re.sub(".*/toolchain\n", "", would(*flags, *built)).split()
                  for flags in ((), ("CPPFLAGS=-DNEW", "CFLAGS=-g3", "LDFLAGS=-Wl,-z,now")))
added = {"-DNEW", "-g3", "-Wl,-z,now"}
check([word for word in changed if word not in added] == usual and added < set(changed),
      "CPPFLAGS, CFLAGS and LDFLAGS add, and take nothing away", " ".join(changed)[-3000:])
compilations = [line for line in would("CFLAGS=-ffast-math", *built).splitlines() if "-ffast-math" in line]
check(compilations and all(-1 < line.find("-ffast-math") < line.find("-fno-fast-math") < line.find("-ffp-contract=off")
                           for line in compilations), "not even how floats are computed", compilations[:1])

done = call("make", "-s", "-C", ROOT, "CC=ccache gcc -m64", "CUDA=0", "print-unit-tests")
check("build/gcc-native/tests/unit/test_cpu" in done.stdout.split(), "CC may have several words",
      done.stdout + done.stderr)

for given, words in ("CC=/nowhere/cc", "no /nowhere/cc here"), ("MPICC=/nowhere/cc", "no /nowhere/cc on the PATH"):
    done = call("make", "-s", "-C", ROOT, f"BUILD={FOLDER}/elsewhere", "CUDA=0", given, "all")
    said = (done.stdout + done.stderr).splitlines()
    check(done.returncode == 2 and [line for line in said if "NOT FOUND" in line and words in line] and
          said[-1].startswith("make: ***") and not [line for line in said if re.match("/bin|.*fatal", line)],
          f"{given}: make says that it is not there, and stops", done.stdout + done.stderr)

broken = FOLDER / "broken"
broken.mkdir()
for part in "launch", "slurm", "install":
    (broken / part).symlink_to(ROOT / part)
(broken / "dtrain").write_text("#!/bin/sh\nexit 1\n")
(broken / "dtrain").chmod(0o755)
done = call("make", "-C", broken, "-f", ROOT / "Makefile", "-I", ROOT, "-o", "all", "CUDA=0", "install",
            f"PREFIX={broken}/there")
check(done.returncode == 2 and not list((broken / "there/share").rglob("dtrain*")),
      "make install fails with a program that does not run", done.stdout + done.stderr)

(FOLDER / "outer" / "dtrain").mkdir(parents=True)
call("git", "init", "-q", FOLDER / "outer")
call("git", "-C", FOLDER / "outer", "-c", "user.name=a", "-c", "user.email=b", "commit", "--allow-empty", "-qm", "c")
done = call("make", "-n", "-C", FOLDER / "outer" / "dtrain", "-f", ROOT / "Makefile", "-I", ROOT, "BUILD=build",
            "CUDA=0", "build/revision")
check("echo 'unknown'" in done.stdout, "the revision is not that of a repository around it", done.stdout + done.stderr)

cuda = FOLDER / "cuda"
for file in ("include/cuda_runtime.h", "include/cudnn.h", "include/cublas_v2.h", "include/nccl.h", "bin/nvcc",
             "lib64/libcudart_static.a", "lib64/libcudnn.so", "lib64/libcublas.so", "lib64/libnccl.so"):
    (cuda / file).parent.mkdir(parents=True, exist_ok=True)
    (cuda / file).write_text("#!/bin/sh\necho release 13.0\n")
(cuda / "bin/nvcc").chmod(0o755)
done = would("CUDA=0", "all", NVCC=cuda / "bin/nvcc", CUDA_HOME=cuda)
check("NVCC" not in done and "'off (CUDA=0) - building for the CPU alone'" in done,
      "CUDA=0 holds where the environment names an nvcc", done)

done = would("-p", "device", FOLDER / "elsewhere/emulated/nccl_rank", f"NVCC={cuda}/bin/nvcc", f"CUDA_HOME={cuda}")
for target, *headers in (("tests/gpu/test_cuda_loss", "tests/unit/cuda_test.h", "tests/support/shim/cuda_host.h"),
                         ("emulated/nccl_rank", "bench/sums.h")):
    rule = re.search(f"/{target}: (.*)", done)
    check(rule and set(headers) < set(rule[1].split()), f"{target} is made anew after its headers", rule)

done = call("make", "-s", "-C", ROOT, "uninstall", *PLACE)
check(done.returncode == 0 and files() == [], "make uninstall leaves no file", files())
finish()
