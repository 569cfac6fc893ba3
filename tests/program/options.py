#!/usr/bin/env python3
"""The command line: every option's bad values, help, version, run.json, --doctor."""
# needs: dtrain

import json
import os
import re
from pathlib import Path

from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT, content, run, run_all, start_unlike, write_data
from tap import check, finish
from terminal import Terminal

# The forms that no number has; what would be right is said with the word.
NO_NUMBERS = ["", "x", "-1", "-0", "+1", " 5", "5 ", "5x", "0x10", "0X1P3", "1e", "inf", "nan", "--", "1,5", "\u0661"]
NOT_WHOLE = [(text, "whole number") for text in [*NO_NUMBERS, "1e99", "1e1", "1.5", ".5"]]
NOT_REAL = [(text, "number") for text in [*NO_NUMBERS, "1e-400", "1e-46", "1e400", "."]]
NO_SHARE = [*NOT_REAL, ("-0.1", "0 to 1"), ("1.1", "0 to 1")]

# What each option refuses, and words of what it says would be right.
REFUSED = {
    "net": [("", "NETS"), ("E", "A, B, C, D"), ("A,", "A, B, C, D"), ("AD", "A, B, C, D"),
            ("A,A", "A, B, C, D"), ("ALL", "A, B, C, D"), (" A", "A, B, C, D"), ("A ,D", "A, B, C, D")],
    "p-conv": NO_SHARE,
    "p-fc": NO_SHARE,
    "init-from": [("", "FILE")],
    "data": [("", "DIR|FILE|synthetic"), ("synthetic:", "TRAIN+TEST"), ("synthetic:100", "TRAIN+TEST"),
             ("synthetic:101+20", "multiple of 5"), ("synthetic:0+20", "TRAIN+TEST"),
             ("synthetic:100+0", "TRAIN+TEST")],
    "seed": [*NOT_WHOLE, *((text, "9000000000000000000") for text in ("9223372036854775808", "9000000000000000001"))],
    "seeds": [*NOT_WHOLE, ("0", "1 to 32"), ("33", "1 to 32")],
    "epochs": [*NOT_WHOLE, ("99999999999999999999", "whole number")],
    "batch-size": [*NOT_WHOLE, ("0", "1 to 65536"), ("65537", "1 to 65536")],
    "lr": [*NOT_REAL, ("1000001", "0 to")],
    "momentum": NO_SHARE,
    "lr-step": [*NOT_WHOLE, ("0", "1 to")],
    "lr-gamma": NO_SHARE,
    "max-steps": NOT_WHOLE,
    "eval-every": [*NOT_WHOLE, ("0", "1 to")],
    "eval-on": [("", "rank0|all"), ("rank", "rank0|all"), ("all|", "rank0|all"), ("rank0|all", "rank0|all")],
    "out": [("", "DIR")],
    "checkpoint-every": [*NOT_WHOLE, ("0", "1 to")],
    "progress": [("", "auto|always|never"), ("sometimes", "auto|always|never"), ("Auto", "auto|always|never")],
    "engine": [("", "NAME"), ("abacus", "cpu")],
    "comm": [("", "NAME"), ("pigeon", "mpi")],
    "precision": [("", "fp32|tf32"), ("fp16", "fp32|tf32")],
    "timeout": [*NOT_REAL, ("0", "1 to"), ("-5", "1 to")],
    "verify": [*((value, "10m") for value in NO_NUMBERS), ("1d", "10m"), ("10 m", "10m"), ("99999m", "100000 s")],
}
FLAGS = {"resume", "doctor", "help", "version"}

# Other command lines that are refused, and words of the message.
WRONG = [
    (["--nonsense"], ["--nonsense"]),
    (["--nonsense=3"], ["--nonsense"]),
    (["-x"], ["-x: no such option"]),
    (["-epochs", "1"], ["-epochs: no such option"]),
    (["--epochs"], ["--epochs"]),
    (["--resume=yes"], ["--resume"]),
    (["stray"], ["stray", "--help"]),
    (["--", "stray"], ["stray", "--help"]),
    (["--verify", "--vers"], ["--vers: no such option"]),
    (["--verify", "-xyz"], ["-xyz: no such option"]),
    (["--verify", "10m"], ["10m: dtrain takes options only"]),
    (["stray", "-np", "2"], ["stray: dtrain takes options only"]),
    *((words, [words[0], "comes first: launch/run -np 2 --net D"]) for words in (
        ["-np", "2"], ["-np=2"], ["--np", "2"], ["-n", "2"], ["-H", "a"], ["--hostfile", "x"], ["--interface=x"])),
    (["--net", "A", "--p-conv", "0.3"], ["--p-conv", "net A", "C and D"]),
    (["--net", "B", "--p-conv", "0.3"], ["--p-conv", "net B", "C and D"]),
    (["--net", "A", "--p-fc", "0.3"], ["--p-fc", "net A", "B and D"]),
    (["--net", "A,C", "--p-fc", "0.3"], ["--p-fc", "net A,C", "B and D"]),
]
TINY = ["--data", "synthetic:40+10", "--batch-size", "16"]


def refusals():
    calls, wanted = [], []
    for name, values in REFUSED.items():
        for value, right in values:
            data = [] if name == "data" else TINY
            calls.append((0, *data, f"--{name}={value}"))
            wanted.append((f"--{name}", right))
    for options, words in WRONG:
        calls.append((0, *TINY, *options))
        wanted.append(words)
    for call, words, result in zip(calls, wanted, run_all(calls)):
        options = [word for word in call[1:] if word not in TINY]
        check(result.says(2, *words) and result.err.count("\n") == 1 and result.out == "",
              f"{' '.join(options)} is refused in one line that says {' and '.join(words)}", result)
    check(not (FOLDER / "runs").exists(), "what is refused leaves no files")


def abbreviated():
    """A name stands in full, or scripts that look for it would miss it."""
    names = [*REFUSED, *FLAGS]
    calls = [(0, *TINY, f"--{name[:-1]}", *([] if name in FLAGS else ["1"])) for name in names
             if name[:-1] not in names]
    calls += [(0, *TINY, "--ou=x"), (0, *TINY, "--o", "x"), (0, *TINY, "--Out", "x"),
              (0, *TINY, "--epochs", "1", "--re")]
    results = run_all(calls)
    check(len(calls) > len(names) and all(result.says(2, "no such option") for result in results),
          "no option's name may be shortened", "\n".join(str(result) for result in results if not result.says(2)))
    result = run(0, *TINY, "--out", "--ou", "--epochs", "0", "--help", "--ou")
    check(result.code == 0 and "Usage" in result.out, "a value may look like one; after --help nothing is looked at",
          result)


def once():
    """A line a job, not a line a rank."""
    for name, *options in ("--epochs", "=ten"), ("--nonsense", ""), ("stray", ""), ("--engine", "=abacus"), \
                          ("--p-fc", "=1", "--net=A"):
        result = run(2, *TINY, name + options[0], *options[1:])
        check(result.says(2, name), f"2 ranks say once what is wrong with {name}", result)
    result = start_unlike(TINY, [*TINY, "--epochs", "x"]).finish()
    check(result.says(2, "--epochs"), "a bad option of one rank ends the job", result)


def exit_codes():
    """Those of include/error.h; those of the README's table must be the same."""
    codes = re.findall(r"^ +EXIT_\w+ = (\d+),", (ROOT / "include/error.h").read_text(encoding="utf-8"), re.MULTILINE)
    readme = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return codes if readme == codes else ["the README's", *readme]


def help_and_version():
    result = run(3, "--net", "A", "--help")
    listed = set(re.findall(r"^ +--([a-z-]+)", result.out, re.MULTILINE))
    check(result.code == 0 and listed == set(REFUSED) | FLAGS, "--help lists every option", (listed, result))
    check(result.out.count("Usage:") == 1 and result.err == "", "3 ranks print the help once", result)
    codes = re.findall(r"(\d+) [a-z]", result.out.partition("Exit codes:")[2])
    check(codes == exit_codes(), "--help names the exit codes of include/error.h, and so does the README", result)
    check(all(len(line) <= 80 for line in result.out.splitlines()), "--help fits 80 columns", result)
    result = run(2, "--version", "--data", "/nowhere")
    check(result.code == 0 and re.fullmatch(r"dtrain \d+\.\d+\.\d+, revision \S+, .+\n", result.out),
          "2 ranks print the version once", result)


# Every option that takes a value, but --init-from.
GIVEN = {"net": "D", "p-conv": 0.25, "p-fc": 0.125, "data": "synthetic:40+10", "seed": 9000000000000000000,
         "seeds": 1, "epochs": 2, "batch-size": 7, "lr": 0.0625, "momentum": 0, "lr-step": 3, "lr-gamma": 1,
         "max-steps": 3, "eval-every": 4, "eval-on": "all", "out": "given", "checkpoint-every": 5,
         "progress": "never", "engine": "cpu", "comm": "mpi", "precision": "fp32", "timeout": 12.5}


def description():
    result = run(2, *[f"--{name}={value}" for name, value in GIVEN.items()], "--resume")
    text = content("given", "run.json")
    check(result.code == 0 and text, "every option can be given", result)
    check(text.endswith(b"}\n"), "run.json ends as a text does", text[-9:])
    described = json.loads(text or "{}")
    options = described.get("options", {})
    wanted = {**GIVEN, "resume": True, "init-from": None}
    check(options == wanted, "run.json has every option, as given", options)
    check(sum(described.get("hosts", {}).values()) == 2 and described["data"]["train"] == 40,
          "and the hosts and the data", described)
    result = run(0, *TINY, "--epochs", "1", "--max-steps", "1")
    options = json.loads(content("runs", "D-1", "run.json") or "{}").get("options", {})
    check(result.code == 0 and result.digest, "without mpirun one process trains", result)
    check([options.get(name, "") for name in ("seed", "lr", "p-conv")] == [1, 0.01, None],
          "into runs/NET-SEED, whose run.json has the defaults", options)


def other_bytes():
    """run.json is UTF-8, whatever bytes paths have."""
    for name, kept in (b"caf\xe9", "caf?"), ("\u00e9\u20ac\U0001f600".encode(), "\u00e9\u20ac\U0001f600"), \
                      (b"\xed\xa0\x80\xc0\xaf\xf4\x90\x80\x80\xe2\x82", 11 * "?"), (b"\xe2\xe2\x82\xac", "?\u20ac"):
        out = os.fsdecode(name)
        data = write_data(os.fsdecode(b"of-" + name))
        result = run(0, "--data", data, "--epochs", "0", "--out", out)
        try:
            described = json.loads(content(out, "run.json") or b"")
        except ValueError as error:
            described = {"error": str(error)}
        found = described.get("options", {}).get("out"), Path(described.get("data", {}).get("directory", "")).name
        check(result.code == 0 and found == (kept, f"of-{kept}"), f"a name of the bytes {name!r} in run.json",
              (found, described.get("error")))


def one_name():
    """A list of nets in any order and case is one study."""
    for nets, name in (("d", "D"), ("d,a", "A,D"), ("D,C,b,a", "all")):
        result = run(0, *TINY, "--net", nets, "--epochs", "0", "--seed", "5")
        check(result.code == 0 and f"files in runs/{name}-5\n" in result.out, f"--net {nets} is --net {name}", result)


def progress_line():
    drawn = run(2, *TINY, "--epochs", "3", "--progress", "always", "--out", "drawn")
    plain = run(2, *TINY, "--epochs", "3", "--out", "plain")
    check("\033[K" in drawn.out and "###" in drawn.out, "--progress always draws to a file", drawn)
    check("\033" not in plain.out and plain.digest, "by default nothing is drawn there", plain)
    for columns, bar in (100, True), (60, True), (53, False):
        _, screen = Terminal([PROGRAM, *TINY, "--epochs", "3", "--out", f"narrow{columns}"], FOLDER,
                             ENVIRONMENT | {"TERM": "xterm"}, columns).finish()
        lines = re.findall("\033\\[K(epoch [^\033\r]*)", screen)
        lines = [line for line in lines if "time: " not in line]
        check(lines and all(len(line) < columns and "  ETA " in line and ("[" in line) == bar for line in lines),
              f"{columns} columns hold the line, {'and' if bar else 'without'} a bar", screen)
    for most, of in (3, "1/1"), (4, "2/2"):  # of three an epoch, the last half full
        steps = run(0, *TINY, "--max-steps", most, "--progress", "always", "--out", f"steps{most}")
        last = steps.out.split("\033[K")[-2]
        check(f"epoch {of} " in last and (most != 3 or "[####" in last and "-]" not in last),
              f"--max-steps {most}: at the end epoch {of}", f"{last}\n{steps}")
    check(plain.digest and drawn.out.endswith(f"weights: {plain.digest}\n"), "drawing changes nothing", drawn)


def doctor():
    result = run(3, "--doctor", *TINY)
    check(result.code == 0 and result.err == "" and not (FOLDER / "runs" / "D-7").exists(),
          "--doctor ends well", result)
    for words in ("would choose cpu", "would choose mpi", "3 on 1 host", "40 + 10 pictures", "Open MPI",
                  "launcher   mpirun"):
        check(result.out.count(words) == 1, f"--doctor says '{words}' once", result)
    data = write_data("torn")
    (data / "data_batch_3.bin").write_bytes(b"\1" * 3000)
    for options, code, words in (
        (["--data", data], 3, "data_batch_3.bin"),
        (["--data", "/nowhere"], 3, "/nowhere"),
        ([*TINY, "--engine", "abacus"], 2, "abacus"),
        ([*TINY, "--comm", "pigeon"], 2, "pigeon"),
    ):
        result = run(2, "--doctor", *options)
        problems = [line for line in result.out.splitlines() if line.startswith("PROBLEM")]
        check(result.code == code and len(problems) == 1 and words in problems[0],
              f"--doctor with {words} says so and exits {code}", result)
    result = run(0, "--doctor", *TINY)
    check(result.code == 0 and "1 on 1 host" in result.out, "--doctor works without mpirun", result)
    check("launch/run -np N ... for more" in result.out, "and says how to have more ranks", result)


refusals()
abbreviated()
once()
help_and_version()
description()
other_bytes()
one_name()
progress_line()
doctor()
finish()
