#!/usr/bin/env python3
"""The CPU engine agrees with its reference whatever compiler and vector width it is built with."""

import os
import platform
import subprocess

from tap import check, finish, skip_all

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTS = ("test_cpu", "test_definition", "test_exact_sum", "test_golden")
# tests/run has made (gcc, native) for the other tests, and the program by clang.
BUILDS = (
    ("gcc", "x86-64-v2", "build/gcc-x86-64-v2"),
    ("gcc", "x86-64-v3", "build/gcc-x86-64-v3"),
    ("clang", "native", "build/clang"),
)

if platform.machine() != "x86_64":
    skip_all("these are widths of x86-64")


def runs_here(march):
    flags = open("/proc/cpuinfo").read()
    return march != "x86-64-v3" or all(flag in flags for flag in ("avx2", "fma", "bmi2"))


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
finish()
