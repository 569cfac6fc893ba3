#!/usr/bin/env python3
"""program.py [PART...] - the GPU engine on a real GPU, through the whole program: as the CPU engine computes, with
NCCL, and in trouble. PART: parity, one_kernel, checkpoints, ranks, four_nets, verify, trouble, study; all if none is
named.
What needs no GPU of it is in tests/gpu/emulated.py; tests/gpu/run runs this among all that needs one."""
# needs: dtrain

import ctypes
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from tap import check, finish, skip, skip_all  # noqa: E402: after the path to it


def gpus():
    """How many there are, by the driver alone."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


if not gpus():
    skip_all("there is no GPU here: no driver, or no device")

import dtrain  # noqa: E402: after the look for a GPU
from dtrain import FOLDER, PROGRAM, ROOT, content, metrics, progress, start, weights  # noqa: E402

# 5 full batches and one of 10 an epoch; and an epoch that is one step.
TRAIN = ["--data", "synthetic:1290+500", "--epochs", "10", "--eval-every", "5", "--timeout", "10"]
STEPS = ["--data", "synthetic:250+50", "--epochs", "100", "--eval-every", "100"]
SECONDS = 40  # a run takes at most

# What is drawn and what is chosen is found again by the next part.
dtrain.ENVIRONMENT["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(ROOT / "build" / "gpu" / "cache")
os.environ.setdefault("OMPI_MCA_btl_vader_single_copy_mechanism", "none")

# Several ranks on one GPU: each poses as a host of its own, so NCCL takes them (slow, but NCCL's own path).
POSE = FOLDER / "pose"
POSE.write_text(f"""#!/bin/sh
export NCCL_HOSTID=pose-$OMPI_COMM_WORLD_RANK NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_SOCKET_FAMILY=AF_INET
export NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0 NCCL_NVLS_ENABLE=0 NCCL_CUMEM_ENABLE=0 NCCL_RAS_ENABLE=0
export NCCL_NET_PLUGIN=none NCCL_MAX_CTAS=1 NCCL_ALGO=Ring NCCL_PROTO=Simple
exec {PROGRAM} "$@"
""")
POSE.chmod(0o755)
POSING = {"env": {"DTRAIN": str(POSE)}}


def run(np, *options, seconds=SECONDS, **where):
    return dtrain.run(np, *options, seconds=seconds, **where)


def values(directory, key):
    return [line[key] for line in metrics(directory) if key in line]


@functools.cache
def reference(engine, net):
    """The directory of a run of TRAIN on one rank."""
    out = f"{engine}-{net}"
    result = run(1, *TRAIN, "--net", net, "--engine", engine, "--out", out)
    if not check(result.code == 0, f"net {net} on the {engine} engine", result):
        finish()  # nothing to hold the others against
    return out


def check_close(name, result, out, other, limit=1e-4, accuracy=1.0):
    """Losses within a relative limit, accuracies within points of a percent."""
    if not check(result.code == 0, f"{name}: runs", result):
        return
    losses = values(out, "loss"), values(other, "loss")
    apart = max(abs(a - b) / b for a, b in zip(*losses))
    check(len(losses[0]) == len(losses[1]) and apart < limit, f"{name}: losses within {limit} ({apart:.1e})", losses)
    for key in "train_accuracy", "test_accuracy":
        ours, theirs = values(out, key), values(other, key)
        apart = max(abs(a - b) for a, b in zip(ours, theirs))
        check(len(ours) == len(theirs) > 0 and apart <= accuracy, f"{name}: {key} within {accuracy} ({apart:.2f})",
              (ours, theirs))


def parity():
    for net in "AD":
        for engine in "cpu", "cudnn":
            result = run(1, *STEPS, "--net", net, "--engine", engine, "--out", f"{engine}-steps-{net}")
        check_close(f"net {net}: 100 steps as on the CPU", result, f"cudnn-steps-{net}", f"cpu-steps-{net}",
                    accuracy=2.0)
    for net in "ABCD":
        out = reference("cudnn", net)
        check_close(f"net {net}: full and short batches", dtrain.Result(0, "", "", 0), out, reference("cpu", net))
    again = run(1, *TRAIN, "--engine", "cudnn", "--out", "again")
    check(weights("again") == weights("cudnn-D"), "the same run twice gives the same bits", again)
    result = run(1, *TRAIN, "--precision", "tf32", "--out", "tf32")
    check_close("tf32", result, "tf32", "cpu-D", 0.02, 4.0)


def one_kernel():
    """--engine fused: to the last bit what the CPU engine computes."""
    fused = [*TRAIN, "--engine", "fused"]
    for net in "ABCD":
        result = run(1, *fused, "--net", net, "--out", f"fused-{net}")
        check(result.code == 0 and weights(f"fused-{net}") == weights(reference("cpu", net)) and
              values(f"fused-{net}", "loss") == values(reference("cpu", net), "loss"),
              f"net {net} by one kernel: the CPU engine's weights, momentum and losses", result)
    for comm, where in ("mpi", {}), ("nccl", POSING):
        result = run(2, *fused, "--comm", comm, "--out", f"fused-{comm}", **where)
        check(result.code == 0 and weights(f"fused-{comm}") == weights(reference("cpu", "D")),
              f"two ranks by one kernel each on one GPU, by {comm}: the same", result)
    for engine, steps in ("fused", 20), ("cpu", 33), ("fused", 60):
        result = run(1, *TRAIN, "--max-steps", str(steps), "--engine", engine, "--resume", "--out", "fused-split")
    check(weights("fused-split") == weights(reference("cpu", "D")), "from GPU to CPU and back: the same", result)
    running = start(1, "--data", "synthetic:25000+500", "--engine", "fused", "--epochs", "100000", "--out", "stop")
    check(running.wait_for("epoch: 2"), "an endless run begins")
    running.signal(signal.SIGUSR1)
    result = running.finish(30)
    check(result.code == 75, "a signal stops it, saved", result)


def checkpoints():
    for engine, steps in ("cpu", 9), ("cudnn", 20), ("cpu", 33), ("cudnn", 60):
        result = run(1, *TRAIN, "--max-steps", str(steps), "--engine", engine, "--resume", "--out", "mixed")
        check(result.code == 0 and progress("mixed")["step"] == str(steps), f"the {engine} engine goes on to {steps}",
              result)
    check_close("checkpoints go from engine to engine", result, "mixed", reference("cpu", "D"))
    for steps in 7, 28, 60:
        result = run(1, *TRAIN, "--max-steps", str(steps), "--engine", "cudnn", "--resume", "--out", "split")
    check(weights("split") == weights(reference("cudnn", "D")), "interrupted twice: the same bits", result)


def ranks():
    result = run(1, *TRAIN, "--comm", "nccl", "--out", "nccl-1")
    check_close("NCCL with one rank", result, "nccl-1", reference("cpu", "D"))
    for np in 2, 4:
        result = run(np, *TRAIN, "--out", f"nccl-{np}", **POSING)
        if not check(result.code == 0, f"NCCL with {np} ranks that pose as hosts", result):
            continue
        check_close(f"NCCL with {np} ranks", result, f"nccl-{np}", reference("cpu", "D"))
        check("comm nccl" in result.out, f"and it is NCCL, on {np}", result)
        ways = json.loads(content(f"nccl-{np}", "run.json"))["net"].get("comm_ways", "")
        check("the first 0 1" in ways and "NET/Socket" in ways, f"its rings and transports are in run.json: {ways}")
        again = run(np, *TRAIN, "--out", f"nccl-{np}-again", **POSING)
        check(weights(f"nccl-{np}-again") == weights(f"nccl-{np}"), f"twice on {np} ranks: the same bits", again)
        again = run(np, *TRAIN, "--comm", "mpi", "--out", f"mpi-{np}")
        check(weights(f"mpi-{np}") == weights(f"nccl-{np}"), f"MPI and NCCL sum to the same bits on {np}", again)
    np = gpus() + 1
    result = run(np, *TRAIN, "--out", "shared")
    check_close(f"{np} ranks on {gpus()} GPUs, by MPI", result, "shared", reference("cpu", "D"))
    check("comm mpi" in result.out and "share one GPU" in " ".join(result.out.split()), "and says why", result)
    result = run(np, *TRAIN, "--comm", "nccl", "--out", "refused")
    check(result.code == 2 and "ranks 0 and" in result.err and "--comm mpi" in result.err,
          "--comm nccl with two ranks on one GPU is refused", result)
    if gpus() > 1:
        result = run(gpus(), *TRAIN, "--out", "each")
        check_close(f"{gpus()} ranks with a GPU each", result, "each", reference("cpu", "D"))
        check("comm nccl (every rank" in result.out, "by NCCL", result)


def four_nets():
    result = run(1, *TRAIN, "--net", "all", "--out", "all")
    check(result.code == 0 and all(weights(f"all/{net}") == weights(reference("cudnn", net)) for net in "ABCD"),
          "four nets at once: the same bits as each alone", result)


def trouble():
    result = run(1, *TRAIN, "--lr", "1000000", "--out", "hot")
    check(result.code == 1 and "not finite" in result.err, "a loss that is not finite ends the run", result)
    for np, more in (1, {}), (2, POSING):
        running = start(np, "--data", "synthetic:25000+500", "--epochs", "100000", "--out", f"stop-{np}", **more)
        check(running.wait_for("epoch: 2"), "an endless run begins")
        running.signal(signal.SIGUSR1, np - 1)
        began = time.monotonic()
        result = running.finish(30)
        check(result.code == 75 and time.monotonic() - began < 5, f"a signal stops {np} ranks, saved", result)
    for number in signal.SIGKILL, signal.SIGSTOP:
        running = start(2, *TRAIN, "--epochs", "100000", "--out", number.name, **POSING)
        check(running.wait_for("epoch: 2"), "an endless run begins")
        running.signal(number, 1)
        began = time.monotonic()
        result = running.finish(60)
        check(result.code == 4 and time.monotonic() - began < 25, f"{number.name} under NCCL: the other ends", result)
        check("rank 1" in result.err, "and names the rank that is lost", result)


def verify():
    """The engine's answers are not known, but they repeat, and are the same for all ranks."""
    for np, how in (1, {}), (2, POSING):
        result = run(np, "--verify=5s", "--engine", "cudnn", **how)
        check(result.code == 0 and result.out.count("no known answer; the same") == np, f"--verify on {np} ranks",
              result)


def study():
    """Real images, which check_close's small drawn sets are not."""
    if not os.environ.get("DTRAIN_DATA"):
        skip("net A on real images as accurate as on the CPU", "DTRAIN_DATA names no images")
        return
    real = ["--data", os.environ["DTRAIN_DATA"], "--net", "A", "--epochs", "20", "--eval-every", "10"]
    result = run(8, *real, "--engine", "cpu", "--eval-on", "all", "--out", "real-cpu", seconds=60)
    check(result.code == 0, "20 epochs on the CPU", result)
    result = run(1, *real, "--engine", "cudnn", "--out", "real-cudnn")
    check_close("net A, 20 epochs of real images", result, "real-cudnn", "real-cpu", limit=0.1, accuracy=3.0)


asked = sys.argv[1:]
for part in parity, one_kernel, checkpoints, ranks, four_nets, verify, trouble, study:
    if not asked or part.__name__ in asked:
        part()
finish()
