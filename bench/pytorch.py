#!/usr/bin/env python3
"""pytorch - the same training steps and dropouts in PyTorch on the same GPU: what dtrain's times are held against.

  bench/pytorch.py [steps] [dropout] [compile] [--nets AD] [--json FILE] [--compile-seconds S]
                                         all three parts, in this order, if none is named

steps: LeNet-5, batch 256 of 50,000 pictures that lie on the GPU as bytes, gathered and scaled there, SGD with
momentum 0.9, fp32 without TF32 (a convolution and a product are checked against double precision), cudnn.benchmark on.
Eager, with the fused SGD, channels_last; and with the whole step as one CUDA graph. dropout: 256 MiB of fp32 beside a
device copy; bandwidth counts each number read once and written once. compile: steps by torch.compile from an empty
cache, alone and as a CUDA graph; it runs in a process of its own that is stopped after --compile-seconds.

Times are medians over windows, with the least and the most, in microseconds; start is until the second step is done. A
variant that fails says so in its row, and the exit code is 1; one that cannot run here says why. Without a GPU: tiny
sizes on the CPU, to check this script alone.
"""

import argparse
import contextlib
import datetime
import gc
import inspect
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ModuleNotFoundError as error:
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(print(__doc__.strip()))
    sys.exit(f"pytorch.py: {error}: pip install torch")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH, PICTURES, STEPS, WINDOWS = (256, 50000, 195, 9) if GPU else (8, 64, 4, 3)
SAMPLES = 8192 if GPU else 8  # of 8192 floats each: 256 MiB
WINDOWS_SECONDS, FEWEST_WINDOWS = 4, 3  # no further window after so long
EPOCH_STEPS = 196  # dtrain's, the last of 80 pictures
TF32_ERROR = 1e-4  # of the largest result: TF32 is off by 3e-4, fp32 by 5e-7 (Winograd somewhat more)
PARTS = "steps", "dropout", "compile"


class LeNet5(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.fc1, self.fc2 = nn.Linear(120, 84), nn.Linear(84, 10)
        self.pool = nn.MaxPool2d(2)
        self.channels = nn.Dropout2d(0.5) if net in "CD" else nn.Identity()
        self.units = nn.Dropout(0.5) if net in "BD" else nn.Identity()

    def forward(self, x):
        x = self.pool(self.channels(F.relu(self.conv1(x))))
        x = self.pool(self.channels(F.relu(self.conv2(x))))
        x = self.channels(F.relu(self.conv3(x))).flatten(1)
        return self.fc2(self.units(F.relu(self.fc1(x))))


class Skip(Exception):
    """A variant cannot run here, and that is no failure."""


# --- the clock and the record -------------------------------------------------------------------------------


def synchronize():
    if GPU:
        torch.cuda.synchronize()


def time_windows(work, times):
    """Microseconds of one work(i), of each window of `times` after one to warm up."""
    windows, start = [], time.perf_counter()
    while len(windows) <= FEWEST_WINDOWS or (len(windows) <= WINDOWS and time.perf_counter() - start < WINDOWS_SECONDS):
        synchronize()
        begin = time.perf_counter()
        for i in range(times):
            work(i)
        synchronize()
        windows.append((time.perf_counter() - begin) * 1e6 / times)
    return windows[1:]


class Record:
    """Rows, each printed as it comes, and all in FILE (if there is one), which is whole at any time."""

    def __init__(self, file, **facts):
        self.file, self.content = file, {**facts, "rows": []}
        self.write()

    @property
    def rows(self):
        return self.content["rows"]

    def write(self):
        if self.file:
            with open(f"{self.file}.new", "w", encoding="utf-8") as file:
                file.write(json.dumps(self.content, indent=1) + "\n")
            os.replace(f"{self.file}.new", self.file)

    def add(self, row):
        self.rows.append(row)
        self.write()

    def measure(self, row, work):
        """Adds and prints the row with what work() adds to it: "us", the windows' times, and what else is known."""
        try:
            row = {**row, **work()}
        except Skip as reason:
            row = {**row, "skipped": str(reason)}
        except Exception as error:  # whatever it is, the others go on
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            row = {**row, "failed": f"{type(error).__name__}: {lines[0][:300]}"}
        if "us" in row:
            row |= {"median_us": statistics.median(row["us"]), "least_us": min(row["us"]), "most_us": max(row["us"])}
            if row["part"] != "dropout":
                row["epochs_1000_seconds"] = row["median_us"] * EPOCH_STEPS * 1e-3
        self.add(row)
        print(describe(row), flush=True)
        return row


TIMES_HEAD = f"{'us':>9} {'least':>9} {'most':>9}"
STEPS_HEAD = f"{'net':<3}  {'PyTorch, a step':<28} {TIMES_HEAD}  {'1000 epochs':>11}  {'start':>7}"
DROPOUT_HEAD = f"{'PyTorch':<20}  {'pass':<10} {TIMES_HEAD}  {'GB/s':>6}"


def describe(row):
    if row["part"] == "dropout":
        text = f"{row['name']:<20}  {row['pass']:<10}"
    else:
        text = f"{row['net']:<3}  {row['name']:<28}"
    if "said" in row:
        return f"{text} {row['said']}"
    if "us" not in row:
        return text + next(f" {word}: {row[word]}" for word in ("failed", "skipped") if word in row)
    text += f" {row['median_us']:9.1f} {row['least_us']:9.1f} {row['most_us']:9.1f}"
    if row["part"] == "dropout":
        return f"{text}  {row['bytes'] / row['median_us'] * 1e-3:6.0f}"
    return f"{text}  {row['epochs_1000_seconds']:9.1f} s  {row['start_seconds']:5.1f} s"


# --- steps --------------------------------------------------------------------------------------------------


class Training:
    """One net with its data, and a step on a batch of indices."""

    def __init__(self, net, fused=False, channels_last=False, compiled=False):
        if fused and "fused" not in inspect.signature(torch.optim.SGD).parameters:
            raise Skip(f"no fused SGD in torch {torch.__version__}")
        torch.manual_seed(1)
        self.channels_last = channels_last
        shape = (32, 32, 3) if channels_last else (3, 32, 32)
        self.images = torch.randint(256, (PICTURES, *shape), dtype=torch.uint8, device=DEVICE)
        self.labels = torch.randint(10, (PICTURES,), device=DEVICE)
        self.order = torch.randperm(PICTURES, device=DEVICE)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = LeNet5(net).to(device=DEVICE, memory_format=layout)
        self.first = self.model.fc2.weight.detach().clone()
        options = {"fused": True} if fused else {}
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, **options)
        self.loss_of = torch.compile(Training.loss) if compiled else Training.loss  # unbound: no cycle of references

    def batch(self, i):
        first = i % (PICTURES // BATCH) * BATCH
        return self.order[first:first + BATCH]

    def loss(self, indices):
        x = self.images[indices] / 127.5 - 1
        return F.cross_entropy(self.model(x.permute(0, 3, 1, 2) if self.channels_last else x), self.labels[indices])

    def step(self, indices):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_of(self, indices).backward()
        self.optimizer.step()

    def eager(self):
        return lambda i: self.step(self.batch(i))

    def captured(self):
        """The step as a CUDA graph, of whatever indices lie in its batch."""
        if not GPU:
            raise Skip("no GPU")
        indices, graph, side = self.batch(0).clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(5):
                self.step(indices)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # the graph has gradients of its own
        with torch.cuda.graph(graph):
            self.step(indices)

        def replay(i):
            indices.copy_(self.batch(i))
            graph.replay()

        return replay

    def check(self):
        if not all(torch.isfinite(weights).all() for weights in self.model.parameters()):
            raise ArithmeticError("weights are not finite")
        if torch.equal(self.model.fc2.weight, self.first):
            raise ArithmeticError("weights are as they were")


def time_steps(open_training, way):
    """way: "eager" or "captured"."""
    gc.collect()  # what earlier variants left goes now, not while a graph is captured
    begin = time.perf_counter()
    training = open_training()
    work = getattr(training, way)()
    for i in range(2):
        work(i)
    synchronize()
    start = time.perf_counter() - begin
    windows = time_windows(work, STEPS)
    training.check()
    return {"us": windows, "start_seconds": start}


def set_precision():
    """By the older of two interfaces: every version has it, and the two must not be mixed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def check_precision():
    torch.manual_seed(1)
    convolution = F.conv2d, torch.randn(BATCH, 6, 14, 14), torch.randn(16, 6, 5, 5)
    product = torch.matmul, torch.randn(BATCH, 120), torch.randn(120, 84)
    errors = []
    for function, one, other in (convolution, product):
        wanted = function(one.double(), other.double())
        got = function(one.to(DEVICE), other.to(DEVICE)).double().cpu()
        errors.append(((got - wanted).abs().max() / wanted.abs().max()).item())
    told = f"off by {errors[0]:.1e} (convolution) and {errors[1]:.1e} (product) of the largest result"
    if not max(errors) < TF32_ERROR:
        raise ArithmeticError(f"{told}: not fp32")
    return {"said": told}


VARIANTS = {  # by name: what the training is, and the way of its step
    "eager": ({}, "eager"),
    "eager, fused": ({"fused": True}, "eager"),
    "eager, channels_last": ({"channels_last": True}, "eager"),
    "graph": ({}, "captured"),
    "graph, fused": ({"fused": True}, "captured"),
    "graph, fused, channels_last": ({"fused": True, "channels_last": True}, "captured"),
}


def steps(record, options):
    print(STEPS_HEAD)
    record.measure({"part": "steps", "net": "", "name": "fp32"}, check_precision)
    for net in options.nets:
        for name, (how, way) in VARIANTS.items():
            record.measure({"part": "steps", "net": net, "name": name},
                           lambda how=how, way=way: time_steps(lambda: Training(net, **how), way))


# --- dropout ------------------------------------------------------------------------------------------------


def dropout(record, _):
    print(DROPOUT_HEAD)
    to, dy = (torch.randn(SAMPLES, 8, 32, 32, device=DEVICE) for _ in range(2))
    tensor_bytes = dy.numel() * 4

    def measure(name, which, tensors, work):
        row = {"part": "dropout", "name": name, "pass": which, "bytes": tensors * tensor_bytes}
        record.measure(row, lambda: {"us": time_windows(work, 10)})

    measure("device copy", "", 2, lambda i: to.copy_(dy))
    for kind in (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout):
        shape = (SAMPLES, 8, 4, 16, 16) if kind is nn.Dropout3d else dy.shape
        module, x, slope = kind(0.5), torch.randn(shape, device=DEVICE, requires_grad=True), dy.view(shape)
        kept = []  # the pass back needs one forward, of which it keeps what it reads

        def backward(i):
            if not kept:
                kept.append(module(x))
            torch.autograd.grad(kept[0], x, slope, retain_graph=True)

        measure(kind.__name__, "forward", 2, lambda i: module(x))
        measure(kind.__name__, "backward", 2, backward)
        kept.clear()
        measure(kind.__name__, "both", 4, lambda i: torch.autograd.grad(module(x), x, slope))


# --- compile ------------------------------------------------------------------------------------------------

COMPILED = {"compiled, fused": "eager", "compiled, fused, graph": "captured"}


def check_compiler():
    """Raises Skip where torch.compile lacks what it needs."""
    if not hasattr(torch, "compile"):
        raise Skip(f"no torch.compile in torch {torch.__version__}")
    compilers = ("clang", "gcc") if GPU else ("g++",)
    if not any(map(shutil.which, compilers)) and not os.environ.get("CC" if GPU else "CXX"):
        raise Skip(f"no {' or '.join(compilers)}")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does, for Debian
    if not os.path.exists(os.path.join(sysconfig.get_paths(scheme)["include"], "Python.h")):
        raise Skip("no Python.h")


def compile_here(record, options):
    """In the process that can be stopped. Both ways share what was compiled."""
    for net in options.nets:
        torch._dynamo.reset()
        trainings = []

        def open_training():
            if not trainings:
                trainings.append(Training(net, fused=True, compiled=True))
            return trainings[0]

        for name, way in COMPILED.items():
            record.measure({"part": "compile", "net": net, "name": name},
                           lambda way=way: time_steps(open_training, way))


def compile_apart(record, options):
    """In a process that can be stopped, and may crash; it prints and writes rows of its own."""
    print(STEPS_HEAD, flush=True)
    rows = [{"part": "compile", "net": net, "name": name} for net in options.nets for name in COMPILED]

    def leave_out(rows, how):
        def work():
            raise how

        for row in rows:
            record.measure(row, work)

    try:
        check_compiler()
    except Skip as reason:
        return leave_out(rows, reason)
    with tempfile.TemporaryDirectory() as cache:
        file = os.path.join(cache, "rows.json")
        command = [sys.executable, os.path.abspath(__file__), "compile", "--here", "--nets", options.nets,
                   "--json", file]
        empty = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
        child = subprocess.Popen(command, env={**os.environ, **empty}, start_new_session=True)
        try:
            code = child.wait(options.compile_seconds)
            how = RuntimeError(f"its process ended with code {code}")
        except subprocess.TimeoutExpired:
            how = Skip(f"not done within {options.compile_seconds:g} s")
        finally:
            with contextlib.suppress(ProcessLookupError):  # its compiling processes too
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        done = []
        with contextlib.suppress(FileNotFoundError), open(file, encoding="utf-8") as written:
            done = json.load(written)["rows"]
    for row in done:
        record.add(row)
    leave_out(rows[len(done):], how)


# --- the command line ---------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--nets", default="AD", metavar="NETS")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    parser.add_argument("--compile-seconds", type=float, default=45, metavar="S",
                        help="for all of compile (default: 45)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # compile in this process
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {' '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if not options.nets or set(options.nets) - set("ABCD"):
        parser.error("--nets: of A, B, C and D")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the process of compile goes too
    sys.stdout.reconfigure(line_buffering=True)
    facts = {
        "device": torch.cuda.get_device_name() if GPU else "no GPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if GPU else None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        # Of a path from the root its last part: the rest is of one machine alone.
        "command": " ".join(["bench/pytorch.py", *(os.path.basename(word) if os.path.isabs(word) else word
                                                   for word in sys.argv[1:])]),
        "batch": BATCH, "windows_of_steps": STEPS, "cudnn_benchmark": True, "tf32": False,
    }
    if not options.here:
        print(f"# torch {facts['torch']}, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}, {facts['device']}")
        print(f"# fp32 without TF32, cudnn.benchmark on; {facts['date']}; {facts['command']}")
    set_precision()
    record = Record(options.json, **facts)
    measures = {"steps": steps, "dropout": dropout, "compile": compile_here if options.here else compile_apart}
    for part in parts:
        begin = time.perf_counter()
        measures[part](record, options)
        if not options.here:
            print(f"# {part}: {time.perf_counter() - begin:.1f} s")
    return 1 if any("failed" in row for row in record.rows) and not options.here else 0


if __name__ == "__main__":
    sys.exit(main())
