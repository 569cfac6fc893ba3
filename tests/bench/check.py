#!/usr/bin/env python3
"""bench/check: what is a loss, what is not, and what cannot be compared. The numbers are made up."""

import contextlib
import io
import json
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from tap import check, finish

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "bench"))
guard = ModuleType("guard")
SourceFileLoader("guard", str(ROOT / "bench" / "check")).exec_module(guard)


def rows(instructions=1e6, speedup=2.0, compiler="gcc 12", skipped=None):
    counted = {"skipped": skipped} if skipped else {"value": instructions}
    return {"instructions": {"kind": "instructions", "better": "lower", "made_by": compiler, **counted},
            "speedup": {"kind": "ratio", "better": "higher", "made_by": "cpu", "value": speedup}}


def run(now, *arguments):
    """bench/check with these numbers: exit code and the line of each row."""
    guard.build, guard.measure_all = lambda: None, lambda: now
    guard.measure.header = lambda: ["dtrain", "a machine"]
    guard.measure.first_line = lambda *command: "dtrain 123 (gcc -march=x86-64-v3)"
    sys.argv = ["check", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = guard.main()
    return code, {line.split()[0]: line for line in output.getvalue().splitlines()[3:]}


with tempfile.TemporaryDirectory() as folder:
    guard.STORED = Path(folder) / "check.json"
    code, lines = run(rows())
    check(code == 0 and "nothing stored" in lines["instructions"], "nothing stored is no loss", lines)

    code, lines = run(rows(), "--store")
    record = json.loads(guard.STORED.read_text())
    check(code == 0 and record["rows"] == rows(), "--store writes the numbers", record)
    check(record["header"][0] == "dtrain 123 (gcc -march=x86-64-v3)", "with the build they are of", record["header"])

    code, lines = run(rows())
    check(code == 0 and all(line.endswith(" ok") for line in lines.values()), "the same again is ok", lines)
    code, lines = run(rows(instructions=1.009e6, speedup=1.8))
    check(code == 0, "a little worse is within the margin", lines)
    code, lines = run(rows(instructions=0.5e6, speedup=3.0))
    check(code == 0, "better is no loss", lines)

    code, lines = run(rows(instructions=1.02e6))
    check(code == 3 and lines["instructions"].endswith(" LOSS"), "2% more instructions are a loss", lines)
    check(lines["instructions"].split()[1:4] == ["1,000,000", "1,020,000", "1,010,000"],
          "its line: stored, now, limit", lines)
    check(lines["speedup"].endswith(" ok"), "and the other row is not", lines)
    code, lines = run(rows(speedup=1.6))
    check(code == 3 and lines["speedup"].endswith(" LOSS"), "a fifth less speedup is a loss", lines)

    code, lines = run(rows(instructions=2e6, compiler="gcc 13"))
    check(code == 0 and "skipped: stored by gcc 12, here gcc 13" in lines["instructions"],
          "another compiler's count is not compared", lines)
    code, lines = run(rows(skipped="no valgrind"))
    check(code == 0 and "skipped: no valgrind" in lines["instructions"], "what cannot be measured is skipped", lines)
finish()
