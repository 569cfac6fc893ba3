"""The whole program on GPUs that are emulated (tests/support/emulated). Imported before dtrain.py, whose
program it names."""

import itertools
import os
from pathlib import Path

from tap import skip_all

FOLDER_OF_PROGRAM = Path(__file__).resolve().parents[2] / "build" / "gcc-native" / "emulated"
if not (FOLDER_OF_PROGRAM / "dtrain-cuda.so").exists():
    skip_all("it is built where nvcc, cuDNN, cuBLAS and NCCL are installed (make emulated)")
os.environ["DTRAIN"] = str(FOLDER_OF_PROGRAM / "dtrain")

from dtrain import run  # noqa: E402: after DTRAIN is set

LIBRARIES = {"LD_LIBRARY_PATH": str(FOLDER_OF_PROGRAM)}

# 3 steps an epoch, the last of 8 pictures: on 4 ranks most of them have none of those.
TRAIN = ["--data", "synthetic:40+20", "--batch-size", "16", "--lr", "0.05", "--eval-every", "2"]

_numbers = itertools.count()


def emulated(np, *options, gpus=4, models=1, **environment):
    out = [] if "--out" in options else ["--out", f"run-{next(_numbers)}"]
    return run(np, *TRAIN, *options, *out, env={**LIBRARIES, "EMULATED_GPUS": str(gpus), "EMULATED_MODELS": str(models),
                                                 **environment})
