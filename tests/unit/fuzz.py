#!/usr/bin/env python3
"""The fuzzers of tests/unit/fuzz, briefly: what reads files and options meets input nobody wrote.

tests/unit/fuzz.py SECONDS [NAME...] runs each, or those, so long, on what it found before too (build/fuzz/found)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tap import check, finish, skip_all

ROOT = Path(__file__).resolve().parents[2]
seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
names = sys.argv[2:] or sorted(source.stem for source in (ROOT / "tests" / "unit" / "fuzz").glob("*.c"))

built = subprocess.run(["make", "-s", "-j2", "-C", ROOT, "fuzz"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True)
if built.returncode != 0 and ("clang" in built.stdout and "fuzzer" in built.stdout):
    skip_all("clang or its fuzzing runtime is not here; apt-get install clang libclang-rt-14-dev")
if check(built.returncode == 0, "make fuzz", built.stdout):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as seeds:  # in memory: a checkpoint is written for each input
        subprocess.run([sys.executable, ROOT / "tests" / "unit" / "fuzz" / "seeds.py", seeds], check=True)
        found = ROOT / "build" / "fuzz" / "found" if len(sys.argv) > 1 else Path(seeds)
        running = []
        for name in names:
            own = found / name / "new"
            own.mkdir(parents=True, exist_ok=True)
            running.append((name, subprocess.Popen(
                [ROOT / "build" / "fuzz" / name, f"-max_total_time={seconds}", f"-timeout={max(60, seconds)}",
                 "-rss_limit_mb=2000", "-max_len=20000", "-print_final_stats=1", own, Path(seeds, name)], cwd=seeds,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")))
        for name, process in running:
            out, _ = process.communicate()
            runs = [line.split()[-1] for line in out.splitlines() if "number_of_executed_units" in line]
            check(process.returncode == 0 and runs and int(runs[0]) > 100,
                  f"{name}: {runs and runs[0]} inputs in {seconds} s", out[-3000:])
finish()
