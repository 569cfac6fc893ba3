#!/usr/bin/env python3
"""Every build computes the digests of README.md's table: both compilers, three vector widths, with optimisation and
without, on one rank and on several. Without fused multiply-adds (x86-64-v2) they are computed, slowly."""
# needs: dtrain dtrain-clang dtrain-debug widths

import platform
import re
import subprocess

from dtrain import FOLDER, PROGRAM, ROOT, Run, run
from tap import check, finish

UNTIL = {"1 step": ("--max-steps", 1), "1 epoch": ("--epochs", 1), "20 epochs": ("--epochs", 20)}
ROW = re.compile(r"^\| ([ABCD]) \|" + r" `([0-9a-f]{16})` \|" * len(UNTIL) + "$", re.MULTILINE)
TABLE = {row[0]: dict(zip(UNTIL, row[1:])) for row in ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))}


def compare(build, program, ranks, nets, until):
    for net in nets:
        ended = run(ranks, "--engine", "cpu", "--data", "synthetic", "--net", net, *UNTIL[until], "--out",
                    f"{build} {ranks} {net} {until}", env={"DTRAIN": str(program), "ASAN_OPTIONS": "detect_leaks=0"})
        check(ended.code == 0 and ended.digest == TABLE[net][until] and "drawn anew" not in ended.err,
              f"{build}, -np {ranks}: net {net} after {until}",
              f"README.md: {TABLE[net][until]}\n{ended}")


def mixed(program):
    """Ranks of one job whose programs are unlike."""
    ranks = ":".join(f" -np 1 {path} --engine cpu --data synthetic --net D --max-steps 1 --out {program.parent.name} "
                     for path in (PROGRAM, ROOT / "dtrain-clang", program)).split()
    ended = Run(["mpirun", *ranks], {}, FOLDER).finish()
    check(ended.code == 0 and ended.digest == TABLE["D"]["1 step"],
          f"ranks by gcc, by clang and {program.parent.name} in one job", ended)


def make(march):
    """The program for another processor; None where this one cannot run it."""
    flags = open("/proc/cpuinfo", encoding="ascii").read().split()
    if platform.machine() != "x86_64" or march == "x86-64-v3" and not {"avx2", "fma", "bmi2"} <= set(flags):
        print(f"# {march} does not run on this machine")
        return None
    folder = f"build/gcc-{march}"
    built = subprocess.run(["make", "-s", "-j2", "WERROR=1", "CUDA=0", "CC=gcc", f"MARCH={march}", f"{folder}/dtrain"],
                           cwd=ROOT, capture_output=True, text=True, check=False)
    check(built.returncode == 0, f"it builds for {march}", built.stderr)
    return ROOT / folder / "dtrain"


check("".join(TABLE) == "ABCD", "README.md has the table", TABLE)
compare("gcc", PROGRAM, 1, "ABCD", "1 epoch")
compare("gcc", PROGRAM, 3, "ABCD", "1 step")
compare("gcc", PROGRAM, 2, "D", "20 epochs")
compare("clang", ROOT / "dtrain-clang", 1, "ABCD", "1 epoch")
compare("gcc -O1, sanitized", ROOT / "dtrain-debug", 1, "AD", "1 step")
for march, nets, until in (("x86-64-v3", "ABCD", "1 epoch"), ("x86-64-v2", "AD", "1 step")):
    program = make(march)
    if program is not None:
        compare(march, program, 1, nets, until)
        mixed(program)
finish()
