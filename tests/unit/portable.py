#!/usr/bin/env python3
"""The CPU engine agrees with its reference and its definition whatever compiler and vector width it is built with, and
on aarch64; and says so where it cannot run."""
# needs: dtrain dtrain-clang widths

import glob
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tap import check, finish, skip, skip_all

ROOT = str(Path(__file__).resolve().parents[2])
TESTS = ("test_cpu", "test_definition", "test_exact_sum", "test_golden")
# tests/run has made (gcc, native) for the other tests, and the program by clang.
BUILDS = (
    ("gcc", "x86-64-v2", "build/gcc-x86-64-v2"),
    ("gcc", "x86-64-v3", "build/gcc-x86-64-v3"),
    ("gcc", "x86-64-v4", "build/gcc-x86-64-v4"), # without VNNI
    ("clang", "native", "build/clang"),
)

if platform.machine() != "x86_64":
    skip_all("these are widths of x86-64")


NEEDED = {"x86-64-v3": ("avx2", "fma", "bmi2"), "x86-64-v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl")}


def runs_here(march):
    flags = open("/proc/cpuinfo").read().split()
    return all(flag in flags for flag in NEEDED.get(march, ()))


for compiler, march, folder in BUILDS:
    programs = [f"{folder}/tests/unit/{test}" for test in TESTS]
    settings = ["WERROR=1", "CUDA=0", f"CC={compiler}", f"MARCH={march}", f"BUILD={folder}"]
    built = subprocess.run(["make", "-s", "-j2", *settings, *programs], cwd=ROOT, capture_output=True, text=True)
    check(built.returncode == 0, f"it builds with {compiler} for {march}", built.stderr)
    for test, program in zip(TESTS, programs):
        if not runs_here(march):
            print(f"# {march} does not run on this machine: built only")
            continue
        run = subprocess.run([os.path.join(ROOT, program)], cwd=ROOT, capture_output=True, text=True)
        check(run.returncode == 0, f"{test} passes with {compiler} for {march}", run.stdout + run.stderr)

OLDER = "a processor that lacks what the program was built for is told so in one line"
if shutil.which("qemu-x86_64-static"):
    run = subprocess.run(["qemu-x86_64-static", "-cpu", "Nehalem", os.path.join(ROOT, "dtrain"), "--version"],
                         capture_output=True, text=True)
    lines = [line for line in run.stderr.splitlines() if not line.startswith("qemu")]
    check(run.returncode == 1 and len(lines) == 1 and "AVX" in lines[0] and "MARCH=" in lines[0], OLDER, run.stderr)
else:
    skip(OLDER, "there is no qemu-user-static here")


def run_on_aarch64(nets, options):
    """What tests/unit/first_step.c prints there, by an emulator."""
    sources = ["tests/unit/first_step.c", "kernels/definition/definition.c", "src/model/exact_sum.c",
               "src/model/masks.c", "src/model/lenet5.c", "src/data/sampler.c", "src/data/synthetic_draw.c",
               *sorted(glob.glob("kernels/cpu/*.c", root_dir=ROOT))]
    flags = ["-std=c11", "-ffp-contract=off", "-static", "-Iinclude", "-I.", "-DXXH_INLINE_ALL", "-idirafter",
             "/usr/include"]
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "first_step")
        built = subprocess.run([CROSS, *options, *flags, "-o", program, *sources, "-lm"], cwd=ROOT, capture_output=True,
                               text=True)
        if not check(built.returncode == 0, f"it builds for aarch64 with {' '.join(options)}", built.stderr):
            return ""
        return subprocess.run([EMULATOR, program, nets], capture_output=True, text=True).stdout


CROSS, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
if CROSS and EMULATOR:
    readme = open(os.path.join(ROOT, "README.md"), encoding="utf-8").read()
    table = re.findall(r"^\| ([ABCD]) \| `([0-9a-f]{16})` \|", readme, re.MULTILINE)
    # Without optimisation the same lines as for all four: no dropout, and all of it.
    for nets, options in ("ABCD", ("-O3",)), ("AD", ("-O1",)):
        printed = run_on_aarch64(nets, options)
        expected = [" ".join(row) for row in table if row[0] in nets]
        check(len(table) == 4 and printed.split("\n")[:-1] == expected,
              f"the first step's digests on aarch64, {' '.join(options)}", printed)
else:
    skip("the first step's digests on aarch64",
         "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static")
finish()
