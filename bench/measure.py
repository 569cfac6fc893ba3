"""What the benchmarks share: a header of facts, interleaved rounds, medians, tables, results, figures.

A benchmark is a script with a function that measures and one that reports, and ends with

    if __name__ == "__main__":
        sys.exit(measure.main(__doc__, run, report, arguments))

    arguments(parser)     adds options (optional)
    run(options)          measures; returns a record: a dictionary for JSON. record["faults"] lists what went wrong,
                          a sentence each: none is VALID. None: nothing to measure here; it has said why
    report(record)        the record as Markdown: tables (padded, so that they read well on a terminal too) and text;
                          may draw figures. It knows nothing but the record

main gives the script the options --json FILE (write the record) and --report FILE (no measurement: report a record
written before), adds record["header"], prints header, report and verdict, and returns the exit code: 0 for VALID, or
when there is nothing to measure, and 3 for INVALID. Any other code, so that of every exception and of sys.exit with
words, says that there is no record. bench/run calls every benchmark so and puts the reports together.

    launch(ranks, program, *arguments)   runs it by launch/run; CompletedProcess with stdout
    train(ranks, epochs, *options)       runs dtrain; samples a second of each epoch, and the weights' digest
    build_path("scaling")                the program that `make bench` makes of bench/scaling.c
    interleave(contenders, rounds)       every round calls each contender once, in turn: {name: [result, ...]}
    spread(values, ",.0f")               "median (least-most)"
    say(text)                            prints it, or one line of why not, and ends
    table(head, rows)                    Markdown; columns with numbers in them go right
    figure(name, script)                 draws bench/figures/NAME.svg by gnuplot, in the style of launch/plot
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("DTRAIN_BENCH") or ROOT / "bench")  # of RESULTS.md and what it is made from
RESULTS, FIGURES = FOLDER / "results", FOLDER / "figures"
plot = ModuleType("plot")
SourceFileLoader("plot", str(ROOT / "launch" / "plot")).exec_module(plot)
INVALID = 3  # the exit code; 1 is Python's own
COLORS = [*plot.COLORS.values(), *plot.MORE_COLORS]


# --- running ----------------------------------------------------------------------------------------------


def build_path(name):
    return ROOT / "build" / "gcc-native" / "bench" / name


def launch(ranks, program, *arguments, env={}, launcher=()):
    """launcher: more options of launch/run. Standard error goes where ours does."""
    with tempfile.TemporaryDirectory() as temporary:  # mpiruns that share one remove it from under each other
        command = [ROOT / "launch" / "run", "-np", ranks, *launcher, *arguments]
        return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=False,
                              env={**os.environ, "DTRAIN": str(program), "TMPDIR": temporary, **env})


def train(ranks, epochs, *options, program=ROOT / "dtrain", env={}):
    """([samples a second of each epoch], digest of the weights at the end) of dtrain, without checks."""
    with tempfile.TemporaryDirectory() as directory:
        done = launch(ranks, program, *options, "--epochs", epochs, "--eval-every", epochs + 1,
                      "--out", f"{directory}/run", env=env)
        if done.returncode != 0:
            sys.exit(f"dtrain on {ranks} ranks ended with code {done.returncode}")
        lines = Path(directory, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["images_per_second"] for line in lines], re.search(r"weights: (\w+)", done.stdout)[1]


def interleave(contenders, rounds):
    """contenders: {name: function}. What the machine does meanwhile then meets all alike."""
    results = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
    return results


# --- facts ------------------------------------------------------------------------------------------------


def first_line(*command):
    with contextlib.suppress(OSError):
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return (output.stdout.splitlines() or [""])[0].strip()
    return ""


def cores():
    return int(first_line("bash", "-c", '. "$0/launch/cores.sh"; count_cores', str(ROOT)))


def gpus():
    """A line each: name and driver."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []
    return []


def describe_gpus():
    """Names and driver, and the libraries that the GPU part uses."""
    names = gpus()
    if not names:
        return "no GPU"
    doctor = subprocess.run([ROOT / "dtrain", "--doctor"], stdout=subprocess.PIPE, text=True, check=False).stdout
    return "; ".join([*names, *re.findall(r"^gpu +(.*)$", doctor, re.M)])


def describe_cpu():
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fact = lambda key: (re.search(rf"^{key}\s*: (.*)$", text, re.M) or ["", "unknown"])[1]
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in fact("flags").split()), "no AVX")
    return f"{fact('model name')} (family {fact('cpu family')}, model {fact('model')}, {vectors}), {cores()} cores"


def header():
    """The facts every result carries, a line each."""
    versions = [first_line("mpirun", "--version").replace("mpirun (", "").replace(")", ""),
                first_line("gcc", "--version"), f"Linux {os.uname().release}", f"Python {sys.version.split()[0]}"]
    # Of a path from the root its last part: the rest is of one machine alone.
    arguments = [os.path.basename(word) if os.path.isabs(word) else word for word in sys.argv[1:]]
    command = " ".join([os.path.relpath(sys.argv[0], ROOT), *arguments])
    return [first_line(str(ROOT / "dtrain"), "--version"), ", ".join(versions),
            f"{describe_cpu()}, load {os.getloadavg()[0]:.1f} at the start", describe_gpus(), command,
            datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")]


# --- telling ----------------------------------------------------------------------------------------------


def say(text):
    """On standard output; where that cannot be written, one line and exit code 1."""
    try:
        print(text, flush=True)
    except OSError as error:
        sys.stdout = None  # else Python tries again, and ends with 120
        sys.exit(f"{Path(sys.argv[0]).name}: standard output: {error.strerror}")


class Parser(argparse.ArgumentParser):
    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def print_help(self, file=None):
        say(self.format_help().rstrip())


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def table(head, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    right = [all(re.match(r"[-+.\d]|$", row[i]) for row in rows) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(cell.rjust(w) if r else cell.ljust(w)
                                         for cell, w, r in zip(row, widths, right)) + " |"
    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)]) + "\n"


def figure(name, script):
    """script: gnuplot's, from `set xlabel` to `plot`."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    plot.write(FIGURES / f"{name}.svg", plot.render(f"{plot.TERMINALS['svg']}\n{plot.STYLE}\n{script}\n"))


def title(text):
    """The line of a figure's script that names it."""
    return (f"set label 1 {plot.quoted(text)} at graph 0,1 offset 0,1.3 noenhanced font ',17' "
            "textcolor rgb '#222222'\n")


# --- the command line -------------------------------------------------------------------------------------


def show(record, report):
    """The whole text of a record."""
    faults = record["faults"]
    verdict = "INVALID:\n" + "\n".join(f"- {fault}" for fault in faults) if faults else "VALID"
    head = "\n".join("# " + line for line in record["header"])
    return f"```\n{head}\n```\n\n{report(record)}\n{verdict}\n"


def has_objects(value):
    """Whether any lie in it."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(child, dict) or has_objects(child) for child in children)


def to_json(value, indent=""):
    """A line each for objects that have none in them, for lists of numbers, and for the lines of the header."""
    texts = indent == " " and isinstance(value, list) and any(isinstance(child, str) for child in value)
    if not has_objects(value) and not texts:
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {to_json(child, indent + ' ')}" for key, child in value.items()]
    else:
        lines = [to_json(child, indent + " ") for child in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + ",".join(f"\n{indent} {line}" for line in lines) + f"\n{indent}{end}"


def main(doc, run, report, arguments=lambda parser: None):
    parser = Parser(doc)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing, report that record")
    arguments(parser)
    options = parser.parse_args()
    if options.report:
        record = json.loads(options.report.read_text(encoding="utf-8"))
    else:
        facts = header()
        record = run(options)
        if record is None:
            return 0
        record = {"header": facts, **record}
        if options.json:
            options.json.write_text(to_json(record) + "\n", encoding="utf-8")
    say(show(record, report).rstrip("\n"))
    return INVALID if record["faults"] else 0
