#!/usr/bin/env python3
"""--engine fused through the whole program on emulated GPUs: whatever the CPU engine says, to the bit, for one net and
for several at once."""
# needs: emulated

import json
import re
import signal
import time

from emulated_gpu import LIBRARIES, TRAIN, emulated
from tap import check, finish

from dtrain import FOLDER, PROGRAM, ROOT, Run, content, metrics, progress, run, start, weights


def one_net():
    for net in "AD":
        run(1, *TRAIN, "--engine", "cpu", "--net", net, "--epochs", "2", "--out", f"defined-{net}")
    for net, np, gpus, comm in ("A", 1, 1, "mpi"), ("D", 1, 1, "mpi"), ("D", 2, 2, "nccl"), ("A", 2, 1, "mpi"):
        out, name = f"fused-{net}-{np}-{comm}", f"net {net} by one kernel, {np} ranks on {gpus} GPUs"
        chosen = ["--comm", comm] if comm == "nccl" else []
        result = emulated(np, "--engine", "fused", "--net", net, "--epochs", "2", "--out", out, *chosen, gpus=gpus)
        if check(result.code == 0 and ("comm nccl" in result.out) == (comm == "nccl"), f"{name}: runs", result):
            check(weights(out) == weights(f"defined-{net}"), f"{name}: the CPU engine's weights and momentum", result)
            check(metrics(out) == metrics(f"defined-{net}"), f"{name}: its losses and accuracies", metrics(out))
    for steps, engine, np in ("2", "fused", 2), ("3", "cpu", 1), ("5", "fused", 1), ("6", "cpu", 2):
        result = emulated(np, "--epochs", "2", "--max-steps", steps, "--out", "between", "--resume", "--engine", engine)
    check(weights("between") == weights("defined-D"), "from GPUs to the CPU and back within an epoch: the same bits",
          result)
    result = run(1, "--engine", "fused", "--data", "synthetic", "--max-steps", "1", "--out", "known", env=LIBRARIES)
    check(result.code == 0 and f"\n| D | `{result.digest}` |" in (ROOT / "README.md").read_text(encoding="utf-8"),
          "the digest of README.md after a step", result)
    result = emulated(2, "--engine", "fused", "--lr", "1000000", "--epochs", "50", gpus=2)
    check(result.code == 1 and "not finite" in result.err, "a loss that is not finite ends the run", result)
    result = emulated(1, "--engine", "fused", EMULATED_SHARED=str(163 << 10))
    check(result.code == 2 and "shared memory" in result.err and "--engine cudnn" in result.err,
          "a GPU with less shared memory is refused, with a way out", result)


def peers():
    """Ranks whose GPUs reach each other sum in the kernel: three tiles a batch, one in the last, two launches."""
    odd = ["--data", "synthetic:90+20", "--batch-size", "40", "--epochs", "2"]
    for net, np in ("A", 3), ("B", 2), ("C", 4), ("D", 3):
        run(1, *TRAIN, *odd, "--engine", "cpu", "--net", net, "--out", f"odd-{net}")
        result = emulated(np, *odd, "--engine", "fused", "--net", net, "--out", f"peers-{net}")
        check(result.code == 0 and "comm peers (every GPU reaches the memory of the others)" in result.out and
              weights(f"peers-{net}") == weights(f"odd-{net}") and metrics(f"peers-{net}") == metrics(f"odd-{net}"),
              f"net {net} on {np} ranks that sum in the kernel: the CPU engine's weights and losses", result)
    check(json.loads(content("peers-D", "run.json"))["net"]["comm"] == "peers", "run.json says so")
    result = emulated(2, "--engine", "fused", "--max-steps", "1", EMULATED_PEERS="0")
    check(result.code == 0 and "comm nccl (peers: the GPU of rank 0 does not reach" in result.out,
          "GPUs that do not reach each other sum by NCCL, and a line says why", result)
    result = emulated(2, "--engine", "fused", "--max-steps", "1", gpus=1)
    check(result.code == 0 and "comm mpi (peers: ranks 0 and 1 share one GPU" in result.out, "nor do ranks on one GPU",
          result)
    result = emulated(2, "--engine", "fused", "--comm", "peers", EMULATED_PEERS="0")
    check(result.says(2, "--comm peers", "rank 0", "does not reach"), "--comm peers is refused where it cannot be",
          result)
    result = emulated(9, "--engine", "fused", "--comm", "peers", gpus=9)
    check(result.says(2, "--comm peers", "8 ranks at most"),
          "--comm peers is refused to more ranks than it has places for", result)
    result = emulated(2, "--comm", "peers")
    check(result.says(2, "--comm peers", "--engine fused"), "and to engine cudnn", result)
    result = emulated(3, "--engine", "fused", "--max-steps", "1", EMULATED_IPC="0", EMULATED_IPC_RANK="1")
    check(result.code == 0 and result.err == "" and
          "comm nccl (peers: rank 1 cannot map GPU memory of rank 0 (mapping failed;" in " ".join(result.out.split()),
          "nor do ranks of which one cannot map the memory of another", result)
    result = emulated(2, "--engine", "fused", "--comm", "peers", EMULATED_IPC="0")
    check(result.says(2, "--comm peers", "cannot map GPU memory"), "--comm peers is refused to them", result)
    for setting, hides in ("PATH", "(CUDA_VISIBLE_DEVICES, or a container)"), ("SLURM_JOB_ID=1", "--gpu-bind=none)"):
        result = Run(["mpirun", "-np", "2", "-x", setting, PROGRAM, *TRAIN, "--engine", "fused", "--comm", "peers"],
                     {**LIBRARIES, "EMULATED_GPUS": "2", "EMULATED_ALONE": "1"}, FOLDER).finish()
        check(result.says(2, "rank 0 does not see the GPU of rank 1", "CUDA_VISIBLE_DEVICES", hides),
              f"where ranks see one GPU each the line names what hides the others: {hides}", result)
    for number in signal.SIGKILL, signal.SIGSTOP:
        running = start(2, *TRAIN, "--engine", "fused", "--epochs", "100000", "--out", number.name, "--timeout", "10",
                        env={**LIBRARIES, "EMULATED_GPUS": "2"})
        check(running.wait_for("epoch: 1"), "an endless run of two ranks begins")
        running.signal(number, 1)
        result = running.finish(40)
        check(result.code == 4 and "rank 1" in result.err, f"{number.name}: the other ends in time, and names it",
              result)
    running = start(2, *TRAIN, "--engine", "fused", "--epochs", "100000", "--out", "suspended", "--timeout", "3",
                    env={**LIBRARIES, "EMULATED_GPUS": "2"})
    check(running.wait_for("epoch: 1", 100), "an endless run of two ranks begins")
    for rank in 1, 0:
        running.signal(signal.SIGSTOP, rank)
    time.sleep(4)
    last = running.out.read_text().count("epoch: ")
    for rank in 0, 1:
        running.signal(signal.SIGCONT, rank)
    check(running.wait_for(f"epoch: {last + 2} ", 60), "two ranks that are stopped for longer than the timeout go on")
    running.signal(signal.SIGUSR1)
    check(running.finish(60).code == 75, "to a normal end")


def verified():
    """Some steps of --verify: right on both ranks, no whole round; a bit of a GPU that is flipped is found there."""
    verify = ["--verify=2s", "--engine", "fused"]
    result = run(2, *verify, env={**LIBRARIES, "EMULATED_GPUS": "2"})
    steps = re.findall(r"^rank \d .*  (\d+) steps  the time was over in the first round, right until then$", result.out,
                       re.M)
    check(result.code == 6 and len(steps) == 2 and min(map(int, steps)) > 0,
          "--verify: both ranks are right, and out of time", result)
    # Picture 10 is in the first step; 250 records are filled up to whole words.
    for what, size, at in (("weights", 248024, 1000), ("a picture", 250 * 3073 + 2, 10 * 3073 + 900),
                           ("a sum", 4 << 20, 2048 + 8 * 77 + 4)):
        result = run(2, *verify, env={**LIBRARIES, "EMULATED_GPUS": "2", "EMULATED_FLIP": f"{size}:{at}",
                                      "EMULATED_FLIP_RANK": "1"})
        wrong = re.findall(r"^rank (\d) .*  WRONG \d time.*first in round 1, alone, net A in batches of 33, step 1: ",
                           result.out, re.M)
        check(result.code == 5 and "1 of 2 ranks computed wrongly" in result.err and wrong == ["1"],
              f"--verify: a bit of {what} in GPU memory, flipped on rank 1, is found there", result)


def losses(directory):
    """Of each epoch: --max-steps at an epoch's end has it checked as well."""
    return [line["loss"] for line in metrics(directory)]


def as_defined(name, result, out, defined, trials, told=metrics):
    """Each trial in directory `out` ended as in `defined`."""
    check(result.code == 0, f"{name}: runs", result)
    check(all(weights(f"{out}/{trial}") == weights(f"{defined}/{trial}") for trial in trials),
          f"{name}: the CPU engine's weights and momentum of each", result)
    check(all(told(f"{out}/{trial}") == told(f"{defined}/{trial}") for trial in trials),
          f"{name}: their losses and accuracies", result)


def own_times(name, result, out, *teams):
    """Nets that are trained at once share their time, but no other's: all is within the program's."""
    seconds = [[float(progress(f"{out}/{trial}")["seconds"]) for trial in team] for team in teams]
    check(sum(map(max, seconds)) < result.seconds and min(map(min, seconds)) > 0, f"{name}: no time is counted twice",
          f"{seconds} {result}")


def several_nets():
    """In one launch, in several, and over ranks, as the program says; and how the time is shared."""
    trials = [f"seed{seed}/{net}" for seed in (1, 2) for net in "AD"]
    study = ["--net", "A,D", "--seeds", "2", "--epochs", "2"]
    run(1, *TRAIN, *study, "--engine", "cpu", "--out", "study")
    result = emulated(1, "--engine", "fused", *study, "--out", "study-1", EMULATED_MULTIPROCESSORS="24")
    as_defined("two seeds of two nets, in two launches", result, "study-1", "study", trials)
    check("4 nets take turns, up to 3 at once in one kernel" in result.out, "as it says", result)
    own_times("in two launches", result, "study-1", trials[:3], trials[3:])

    four = ["--net", "all", "--max-steps", "4"]
    run(1, *TRAIN, *four, "--engine", "cpu", "--out", "four")
    result = emulated(2, "--engine", "fused", *four, "--out", "four-2", gpus=2, EMULATED_MULTIPROCESSORS="32")
    as_defined("four nets, two ranks", result, "four-2", "four", "ABCD")
    check("all 4 nets are trained at once, in one kernel" in result.out, "as it says", result)
    four = ["--net", "all", "--max-steps", "3", "--batch-size", "32"]  # two tiles at most
    run(1, *TRAIN, *four, "--engine", "cpu", "--out", "few")
    result = emulated(3, "--engine", "fused", *four, "--out", "few-3", "--comm", "nccl", gpus=3)
    as_defined("four nets, three ranks, one of them without a tile", result, "few-3", "few", "ABCD")
    result = emulated(2, "--engine", "fused", "--net", "A,D,B", "--max-steps", "2", "--out", "turns", gpus=1)
    check(result.code == 0 and "3 nets take turns, as their sums go by way of the host" in result.out,
          "ranks that sum by MPI take the nets in turn, and say why", result)
    own_times("in turn", result, "turns", "A", "B", "D")


def ends_of_several():
    """Each of several nets has an end of its own, and a run that goes on from unlike steps is as never interrupted."""
    options = ["--net", "A,B,D", "--epochs", "100000", "--out", "stopped"]
    end = 0
    for np in 1, 2:
        running = start(np, *TRAIN, *options, "--engine", "fused", "--resume", env={**LIBRARIES, "EMULATED_GPUS": "2"})
        check(running.wait_for("net: D epoch: ", times=2), "three endless nets begin")
        running.signal(signal.SIGUSR1, np - 1)
        result = running.finish()
        steps = [int(progress(f"stopped/{net}")["step"]) for net in "ABD"]
        check(result.code == 75 and min(steps) > end, f"a signal to the last of {np} ranks stops all, saved", result)
        end = max(steps) + 2
        emulated(1, "--engine", "fused", "--net", "D", *options[2:4], "--out", "stopped/D", "--resume", "--max-steps",
                 str(end))
    options += ["--max-steps", str(end + 2)]
    result = emulated(2, "--engine", "fused", *options, "--resume", gpus=2)
    run(1, *TRAIN, *options[:4], *options[6:], "--engine", "cpu", "--out", "whole")
    as_defined("stopped twice, then from unlike steps on", result, "stopped", "whole", "ABD", losses)

    lost = ["--net", "A,B,D", "--p-conv", "0.9999", "--lr", "0.5", "--epochs", "2"]
    results = [run(1, *TRAIN, *lost, "--engine", "cpu", "--out", "lost"),
               emulated(1, "--engine", "fused", *lost, "--out", "lost-1"),
               emulated(2, "--engine", "fused", *lost, "--out", "lost-2", gpus=2)]
    check(all(result.code == 1 and result.messages == [results[0].messages[0].replace("lost/", f"{out}/")]
              for result, out in zip(results, ("lost", "lost-1", "lost-2"))),
          "a net whose loss is not finite ends alone, at the step at which the CPU engine refuses it", results)
    check(metrics("lost-1/A") == metrics("lost-2/A") == metrics("lost/A") != [], "and the others go on to their ends")


one_net()
peers()
verified()
several_nets()
ends_of_several()
finish()
