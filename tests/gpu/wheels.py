#!/usr/bin/env python3
"""launch/quickstart --gpu where there is no CUDA: pip brings it, make builds the part for GPUs with it, and that loads.

A download of 1.4 GB, 2.3 GB on disk and two minutes or four, so it has to be asked for: DTRAIN_TEST_WHEELS=1 tests/run
wheels. No GPU is needed.
"""
# needs: dtrain

import os
import re
import subprocess
from pathlib import Path

from dtrain import FOLDER, ROOT, run
from tap import check, finish, skip_all

TOOLKIT = Path("/usr/local/cuda")

if not os.environ.get("DTRAIN_TEST_WHEELS"):
    skip_all("downloads 1.4 GB: ask for it by DTRAIN_TEST_WHEELS=1")
if TOOLKIT.exists() and os.geteuid() != 0:
    skip_all("needs root, to hide the toolkit of this machine")

place = FOLDER / "clone"
files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
place.mkdir()
subprocess.run(["cp", "--parents", "-t", place, *files.decode().rstrip("\0").split("\0")], cwd=ROOT, check=True)
drawn = run(1, "--data", "synthetic:200+100", "--epochs", "1", "--out", "drawn")
path = ":".join(folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "nvcc").exists())
hidden = f'mount -t tmpfs none {TOOLKIT.resolve()} && exec "$@"'
hide = ["unshare", "-m", "sh", "-c", hidden, "hide"] if TOOLKIT.exists() else []


def there(*command):
    """Runs a command in the clone, where no toolkit is seen. Exit code and output."""
    env = {**os.environ, "PATH": path, "DTRAIN_DATA": str(FOLDER / "cache" / "dtrain" / "synthetic-200-100")}
    env["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # pip's
    done = subprocess.run([*hide, *command], cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=580, check=False)
    return done.returncode, done.stdout


code, said = there("launch/quickstart", "--gpu")
check(code == 0 and "Setting CUDA 13.0 up in .cuda (no nvcc)" in said and (place / "dtrain-cuda.so").exists(),
      "quickstart --gpu sets CUDA up, builds with it and trains", said)
code, said = there("./dtrain", "--doctor")
libraries = re.findall(r"^ {11}(/.*)$", said, re.M)
VERSIONS = r"^gpu +CUDA 13\.0 .*, cuDNN 9\.\d+\.\d+, cuBLAS 13\.\d+\.\d+, NCCL 2\.\d+\.\d+$"
check(code == 0 and re.search(VERSIONS, said, re.M) and
      len(libraries) == 3 and all(library.startswith(f"{place}/.cuda/") for library in libraries),
      "the part loads, and --doctor says what from and where that lies", said)
missing = subprocess.run(["sh", "-c",
                          f"find {place}/.cuda -name '*.so.*' | xargs ldd 2>/dev/null | grep 'not found' | sort -u"],
                         capture_output=True, text=True, check=False).stdout
check(not re.search("cudnn|cublas|nvrtc|nccl|cudart", missing), "cuDNN's parts find each other and cuBLAS", missing)
code, said = there("launch/quickstart", "--gpu")
check(code == 0 and "Setting" not in said, "the second time it is used as it is", said)
finish()
