#!/usr/bin/env python3
"""The benchmarks, tiny: that they run, what they report, and that a wrong result is INVALID."""
# needs: dtrain emulated bench

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from dtrain import BARE, ENVIRONMENT, FOLDER, PROGRAM, ROOT
from tap import check, finish, skip

BENCH = FOLDER / "bench"  # their results, figures and report
os.environ["DTRAIN_BENCH"] = str(BENCH)
sys.path.insert(0, str(ROOT / "bench"))
(BENCH / "results").mkdir(parents=True)
DATA = ["--data", "synthetic:640+16"]
TINY = {
    "layers": ["--nets", "D"],
    "scaling": [*DATA, "--np", "1,3", "--batch-size", "64", "--steps", "32", "--rounds", "1"],
    "allreduce": ["--np", "2,3", "--max-bytes", "4096", "--rounds", "2"],
    "network": [*DATA, "--hosts", "2", "--mbits", "1000", "--delays", "0,50", "--algorithms", "halving,doubling",
                "--rounds", "2"],
}


def bench(name, *arguments):
    done = subprocess.run([sys.executable, ROOT / "bench" / name, *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, cwd=FOLDER, check=False,
                          env={**ENVIRONMENT, "DTRAIN_BENCH": str(BENCH)})
    return done.returncode, done.stdout


def load(name):
    """A benchmark as a module."""
    module = ModuleType(name)
    SourceFileLoader(name, str(ROOT / "bench" / name)).exec_module(module)
    return module


def record_of(name):
    return json.loads((BENCH / "results" / f"{name}.json").read_text())


def tables(text):
    """The cells of every row of numbers."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|") and not line.startswith("|-")]


def measure(name):
    """Runs one; False where it cannot run here."""
    code, output = bench(name, *TINY[name], "--json", BENCH / "results" / f"{name}.json")
    if output.startswith("SKIPPED"):
        skip(f"{name} measures", output.strip())
        return False
    check(code == 0 and output.endswith("\nVALID\n"), f"{name} measures, VALID", output)
    check(output.startswith("```\n# dtrain ") and re.search(r"^# \d{4}-\d\d-\d\d \d\d:\d\d UTC$", output, re.M),
          f"{name} says what was measured, where and when", output)
    again = bench(name, "--report", BENCH / "results" / f"{name}.json")
    check(again == (code, output), f"{name} reports its record in the same words", f"{output}\n{again}")
    return True


def spoiled(name, spoil, what):
    """A record that has been changed is no longer VALID."""
    record = record_of(name)
    spoil(record)
    record["faults"] = load(name).find_faults(record)
    path = FOLDER / f"spoiled-{name}.json"
    path.write_text(json.dumps(record))
    code, output = bench(name, "--report", path)
    check(code == 3 and "\nINVALID:\n- " in output and "\nVALID" not in output, f"{name}: {what} is INVALID", output)


# --- each benchmark -----------------------------------------------------------------------------------


def scaling():
    measure("scaling")
    record = record_of("scaling")
    run = record["strong"]["3"][0]
    parts = [sum(run[part][rank] for part in ("compute", "wait", "sum", "update")) for rank in range(3)]
    check(all(len(run[part]) == 3 and min(run[part]) > 0 for part in ("step", "compute", "sum", "update")),
          "scaling: every part of a step on every rank", run)
    check(all(0.2 < part / step < 5 for part, step in zip(parts, run["step"])), "scaling: the parts make up the step",
          run)
    check(record["weak"]["3"][0]["batch"] == 192 and run["batch"] == 64,
          "scaling: weak grows the batch, strong does not")
    check(record["weak"]["3"][0]["digest"] != run["digest"], "scaling: another batch, another digest")

    def change(kind):
        def spoil(record_):
            record_[kind]["3"][0]["digest"] = "0123456789abcdef"
        return spoil

    spoiled("scaling", change("strong"), "another digest in a strong row")
    spoiled("scaling", change("weak"), "another digest in a weak row")
    spoiled("scaling", change("epochs"), "another digest after whole epochs")
    spoiled("scaling", lambda record_: record_["strong"]["3"][0].update(same=False), "ranks that differ")
    on_gpu = record_of("scaling") | {"gpus": 1}
    for run in [run for kind in ("strong", "weak") for runs in on_gpu[kind].values() for run in runs]:
        run.update(engine="cudnn", **{part: [0] * run["ranks"] for part in ("compute", "wait", "sum", "update")})
    path = FOLDER / "on-gpu.json"
    path.write_text(json.dumps(on_gpu))
    code, output = bench("scaling", "--report", path)
    check(code == 0 and "| 3 on 1 GPUs |" in output and "compute |" not in output,
          "scaling: a GPU engine's steps have no parts, and its ranks share GPUs, not cores", output)


def allreduce():
    measure("allreduce")
    record = record_of("allreduce")
    kinds = {(row["by"], row["type"], row["in_place"], row["count"]) for row in record["ranks"]["3"]}
    wanted = {("MPI", kind, place, 4096 // size) for kind, size in (("float", 4), ("int64", 8))
              for place in (True, False)}
    wanted |= {("MPI", "float", place, 62006) for place in (True, False)}
    check(wanted <= kinds and any(kind[0] == "dtrain" for kind in kinds), "allreduce: every kind of sum", kinds)
    table = load("allreduce").table(4, [{"by": "MPI", "type": "float", "count": 1000000, "bytes": 4000000,
                                         "in_place": True, "p50_us": 2000, "p50_range": [1000, 3000],
                                         "p99_us": 5000, "wrong": 7}])
    check(tables(table)[1] == ["4000000", "1000000", "float", "sum", "MPI", "in", "2000.0", "1000.0-3000.0", "5000.0",
                               "2.00", "3.00", "7"], "allreduce: bandwidths as nccl-tests defines them", table)
    spoiled("allreduce", lambda record_: record_["ranks"]["2"][-1].update(wrong=1), "one wrong number")


SWITCHED = """
import json, socket, subprocess, sys, time
ports = []
for name in "abc":
    subprocess.run(f"ip link add name {name} type veth peer name {name}1; ip link set dev {name} up; "
                   f"ip link set dev {name}1 up", shell=True, check=True)
    ports.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    ports[-1].bind((name, 0x88B5))  # for experiments
    ports[-1].settimeout(5)
switch = subprocess.Popen([sys.argv[1], "50000", "a1", "b1", "c1"])
while open("/proc/net/packet").read().count("\\n") < 1 + 2 * len(ports):
    time.sleep(0.01)
time.sleep(0.05)
a, b, c = ports
all_, first, second = bytes([255] * 6), bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
seconds = []
for where, to, whose, seen in (a, all_, first, (b, c)), (b, first, second, (a,)):
    frame = to + whose + bytes([0x88, 0xB5]) + bytes(range(50))
    began = time.monotonic()
    where.send(frame)
    right = all(port.recv(1000) == frame for port in seen)
    seconds.append(right and time.monotonic() - began)
time.sleep(0.01)
c.setblocking(False)
try:
    c.recv(1000)
    seconds.append("seen by all")
except BlockingIOError:
    pass
switch.kill()
print(json.dumps(seconds))
"""


def network():
    if not measure("network"):
        return
    netdelay = ROOT / "build" / "gcc-native" / "bench" / "netdelay"
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", SWITCHED, netdelay], capture_output=True,
                          text=True, check=False)
    seconds = json.loads(done.stdout or "[]")
    check(len(seconds) == 2 and min(seconds) >= 0.05, "network: netdelay holds a frame for as long as it is told, and "
          "sends it where its address is", done)
    check([(p["delay_us"], p["algorithm"]) for p in record_of("network")["points"]]
          == [(0, "halving"), (0, "doubling"), (50, "halving"), (50, "doubling")], "network: every point",
          record_of("network"))
    check(all(len(p["sums"]) == 2 and min(p["sums"]) <= p["sum"] <= max(p["sums"])
              for p in record_of("network")["points"]), "network: the median of two rounds", record_of("network"))
    spoiled("network", lambda record: record["points"][1].update(digest="0123456789abcdef"), "another digest somewhere")
    run = {part: 1 for part in ("step", "compute", "wait", "sum", "update")}
    merged = load("network").merge([{**run, "same": same, "digest": digest}
                                    for same, digest in ((True, "a"), (False, "b"))])
    check(not merged["same"] and merged["digest"] == "a, b", "network: rounds that differ are told", merged)


def model():
    """Data made from known constants give these constants back."""
    import formulas

    known = {"fixed": 0.2, "per_tile": 0.3, "update": 0.05, "imbalance": 0.1, "shared_start": 0.002,
             "shared_byte": 2e-7, "latency": 0.05, "slowness": 1.1}
    size = load("model").CPU_BYTES

    def runs(batch, ranks):
        compute = known["fixed"] + known["per_tile"] * batch / formulas.TILE / ranks
        step = formulas.cpu_step(known, batch, ranks, 2, size)
        return [{"engine": "cpu", "batch": batch, "ranks": ranks, "step": [step], "compute": [compute], "sum": [0],
                 "wait": [known["imbalance"] * compute], "update": [known["update"]]}]

    header = {"header": ["dtrain", "date"], "faults": []}
    made = {
        "scaling": {**header, "cores": 2, "net": "D", "strong": {str(n): runs(256, n) for n in (1, 2)},
                    "weak": {str(n): runs(256 * n, n) for n in (1, 2)}},
        "allreduce": {**header, "ranks": {"2": [{"by": "dtrain", "bytes": count, "p50_us": 1e3 * formulas.shared_sum(
            known, count, 2)} for count in (1024, 65536, 1 << 20)]}},
        "network": {**header, "points": [
            {"hosts": hosts, "mbits": mbits, "delay_us": delay, "algorithm": algorithm,
             "sum": formulas.network_sum(known, algorithm, hosts, size, mbits, delay)}
            for hosts in (2, 4) for mbits in (100, 1000) for delay in (0, 200)
            for algorithm in ("ring", "tree", "halving", "doubling")]},
    }
    paths = {name: BENCH / "results" / f"{name}.json" for name in made}
    kept = {name: path.read_bytes() for name, path in paths.items() if path.exists()}
    for name, record in made.items():
        paths[name].write_text(json.dumps(record))
    code, output = bench("model", "--json", BENCH / "results" / "model.json")
    found = record_of("model")["constants"]
    check(code == 0 and all(abs(found[key] / value - 1) < 1e-6 for key, value in known.items()),
          "model: finds the constants that the points were made from", f"{found}\n{output}")
    errors = [row[3] for row in tables(output) if row[0].startswith(("sum", "step,"))]
    check(len(errors) == 4 + 3 + 32 and set(errors) <= {"+0%", "-0%"}, "model: and no errors then", output)
    for point in made["network"]["points"]:
        point["sum"] *= 3 if point["hosts"] == 2 else 0.2
    paths["network"].write_text(json.dumps(made["network"]))
    code, output = bench("model")
    check(code == 3 and "INVALID" in output, "model: points that no constants explain are INVALID", output)
    for name, path in paths.items():
        path.write_bytes(kept[name]) if name in kept else path.unlink()


def unheard():
    """Standard output is full."""
    env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    for path in sorted(path for path in (ROOT / "bench").iterdir() if path.is_file() and os.access(path, os.X_OK)):
        if path.name == "pytorch.py":  # it begins with torch
            continue
        done = subprocess.run(["sh", "-c", 'exec "$1" --help >/dev/full', "sh", path], capture_output=True, text=True,
                              env=env, check=False)
        check(done.returncode == 1 and done.stderr == f"{path.name}: standard output: No space left on device\n",
              f"{path.name} --help: standard output is full: 1, and told", done)


def alone():
    program = ROOT / "build" / "gcc-native" / "bench" / "scaling_rank"
    done = subprocess.run([program, *DATA, "--batch-size", "64", "--max-steps", "10"], env=BARE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, cwd=FOLDER, check=False)
    check(done.returncode == 0, "scaling_rank without mpirun where there is no ssh", done.stdout)


def whole():
    """RESULTS.md from the records alone."""
    code, output = bench("run", "--report")
    text = (BENCH / "RESULTS.md").read_text()
    parts = [path.stem for path in (BENCH / "results").iterdir()]
    check(code == 0 and text.count("\nVALID\n") == text.count("\n## ") == len(parts),
          "run --report: a section a record", f"{output}{text}")
    figures = re.findall(r"\]\((figures/\w+\.svg)\)", text)
    check(figures and all((BENCH / figure).read_text().rstrip().endswith("</svg>") for figure in figures),
          "run --report: every figure is drawn", figures)
    path = BENCH / "results" / "scaling.json"
    good = path.read_bytes()
    path.write_text(json.dumps({**json.loads(good), "faults": ["something"]}))
    code, output = bench("run", "--report")
    path.write_bytes(good)
    check(code == 1 and "INVALID" in output, "run --report: one INVALID result is the exit code's too", output)
    record = (BENCH / "results" / "layers.json").read_bytes()
    code, output = bench("run", "layers", "--", "--nets", "X")
    check(code == 1 and "layers failed" in output and (BENCH / "results" / "layers.json").read_bytes() == record,
          "run: a part that fails is told, is the exit code's too, and leaves its record", output)
    code, output = bench("run", "speed")
    check(code != 0 and "speed" in output and "scaling" in output, "run: an unknown part is refused, the known named",
          output)


def emulated():
    """What needs a GPU, on the emulated one."""
    parts, built = ROOT / "build" / "gcc-native" / "emulated", ROOT / "build" / "gcc-native" / "bench"
    if not (parts / "dtrain-cuda.so").exists():
        skip("the GPU's benchmarks", "the emulation is built where nvcc, cuDNN, cuBLAS and NCCL are installed")
        return
    place = FOLDER / "emulated"
    place.mkdir()
    shutil.copy(built / "scaling_rank", place)
    shutil.copy(parts / "dtrain-cuda.so", place / "scaling_rank-cuda.so")

    def run(program, *arguments):
        done = subprocess.run([ROOT / "launch" / "run", "-np", "2", *arguments], stdout=subprocess.PIPE, text=True,
                              check=False, cwd=FOLDER, env={**ENVIRONMENT, "DTRAIN": str(program), "EMULATED_GPUS": "2",
                                                            "LD_LIBRARY_PATH": str(parts)})
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    code, output = run(place / "scaling_rank", *DATA, "--batch-size", "32", "--max-steps", "32", "--engine", "cudnn")
    check(code == 0 and output[0]["engine"] == "cudnn" and output[0]["same"] and min(output[0]["step"]) > 0,
          "scaling_rank times whole steps of the GPU engine", output)
    dropout = load("dropout")
    dropout.measure.build_path = lambda name: place / name
    for name in "dropout", "dropout-cuda.so":
        shutil.copy(parts / name, place)
    os.environ["LD_LIBRARY_PATH"] = str(parts)
    record = dropout.run(argparse.Namespace(mib=1, rounds=2))
    del os.environ["LD_LIBRARY_PATH"]
    check(not record["faults"] and len(record["rows"]) == 13 and all(
        len(row["us"]) == 2 and min(row["us"]) > 0 for row in record["rows"]), "dropout: a copy and six kinds", record)
    rows = {(row[0], row[1]): row for row in tables(dropout.report({**record, "bytes": 2 << 20, "rows": [
        {"name": "copy", "pass": "", "us": [9.0, 10.0, 30.0], "wrong": 0},
        {"name": "Dropout", "pass": "forward", "us": [20.0, 20.0, 30.0], "wrong": 3}]}))}
    check(rows["Dropout", "forward"][2:] == ["20.0 (20.0-30.0)", "210", "50%", "3"],
          "dropout: bandwidth, and what share of a copy's in the same round", rows)
    record["rows"][5]["wrong"] = 1
    check(len(dropout.find_faults(record)) == 1, "dropout: one wrong number is INVALID", record)
    subprocess.run(["make", "-s", "-C", ROOT, "build/gcc-native/emulated/nccl_rank"], check=True,
                   stdout=subprocess.DEVNULL)
    code, rows = run(parts / "nccl_rank", "4096")
    kinds = {(row["type"], row["in_place"], row["bytes"]) for row in rows}
    check(code == 0 and {(kind, place_, 4096) for kind in ("float", "int64") for place_ in (True, False)} <= kinds
          and all(row["by"] == "NCCL" and row["wrong"] == 0 < row["p50_us"] for row in rows),
          "nccl_rank: every kind of sum", rows)


if Path(PROGRAM).name != "dtrain":
    from tap import skip_all
    skip_all("the benchmarks are built for speed alone")
measure("layers")
code_, output_ = bench("dropout")
check(code_ == 0 and (output_.startswith("SKIPPED: ") or output_.endswith("\nVALID\n")),
      "dropout measures a GPU, or says why it does not", output_)
spoiled("layers", lambda record: record["nets"][0]["layers"][3].update(ms=0), "a layer that was not timed")
scaling()
allreduce()
network()
model()
emulated()
unheard()
alone()
whole()
finish()
