#!/usr/bin/env python3
"""A run that was interrupted, by whatever and on any number of ranks, ends as if it had not been."""
# needs: dtrain

import json
import shutil
import signal
import time
from pathlib import Path

from dtrain import FOLDER, PROGRAM, Run, content, metrics, progress, run, run_all, start
from safetensors_reader import read, write
from tap import check, finish

# 6 batches of 64 an epoch, the last of 15 pictures.
TRAIN = ["--data", "synthetic:335+70", "--batch-size", "64", "--lr", "0.05", "--eval-every", "2"]
ENDLESS = [*TRAIN, "--epochs", "1000000"]
FILES = ["checkpoint.safetensors", "checkpoint-previous.safetensors", "model-best.safetensors",
         "metrics.jsonl", "run.json"]


def tensors(directory):
    """The bytes of weights and momentum in a checkpoint."""
    data = content(directory, "checkpoint.safetensors")
    return data[8 + int.from_bytes(data[:8], "little"):]


def timeless(directory):
    """The state in a checkpoint that depends on no clock."""
    return {key: value for key, value in progress(directory).items() if key not in
            ("seconds", "epoch_seconds", "checksum")}


def same(name, result, out, whole, whole_out):
    """The run in directory `out` ended as the uninterrupted one did."""
    check(result.code == 0 and result.digest and result.digest == whole.digest, f"{name}: the digest",
          f"{result}{whole}")
    check(metrics(out) == metrics(whole_out), f"{name}: the metrics", f"{metrics(out)}\n{metrics(whole_out)}")
    check(content(out, "model-best.safetensors") == content(whole_out, "model-best.safetensors"),
          f"{name}: the best model")
    check(tensors(out) == tensors(whole_out) and timeless(out) == timeless(whole_out),
          f"{name}: the checkpoint", f"{progress(out)}\n{progress(whole_out)}")


def stopped(name, result, signal_name):
    return check(result.code == 75 and result.step and result.digest and result.messages == [] and
                 f"stopped by {signal_name}" in result.out and "--resume" in result.out,
                 f"{name}: saved, exit 75", result)


# --- stopped by --max-steps ---------------------------------------------------------------------------


def by_steps():
    whole = run(1, *TRAIN, "--epochs", "4", "--out", "whole")
    for np, begin, *options in ((2, "has no checkpoint yet: it starts at epoch 1", "--max-steps", "8"),
                                (3, "goes on in epoch 2, after step 8", "--max-steps", "12"),
                                (1, "goes on in epoch 3, after step 12", "--max-steps", "17"),
                                (4, "goes on in epoch 3, after step 17")):
        result = run(np, *TRAIN, "--epochs", "4", "--out", "split", "--resume", *options)
        step = options[1] if options else "24"
        check(result.code == 0 and progress("split")["step"] == step and not result.messages,
              f"stopped after step {step}", result)
        check(f"net D {begin}\n" in result.out, f"which said at the start that it {begin}", result)
    same("within an epoch and between two, on 2, 3, 1 and 4 ranks", result, "split", whole, "whole")
    told = json.loads(content("split", "run.json"))
    starts = [*told["earlier_starts"], told]
    check([start["net"]["ranks"] for start in starts] == [2, 3, 1, 4] and
          [start["options"]["max-steps"] for start in starts] == [8, 12, 17, 0] and
          all("revision" in start and "started" in start for start in starts), "run.json tells of every start", told)

    seed = 1234567890123456789
    for _ in range(3):
        run(0, *TRAIN, "--epochs", "0", "--seed", str(seed), "--out", "long-seed", "--resume")
    told = json.loads(content("long-seed", "run.json"))
    check([start["options"]["seed"] for start in (*told["earlier_starts"], told)] == 3 * [seed],
          "with every digit of a long seed", told)

    before = [content("split", file) for file in FILES[:4]]
    result = run(2, *TRAIN, "--epochs", "4", "--out", "split", "--resume")
    after = [content("split", file) for file in FILES[:4]]
    check(result.code == 0 and result.digest == whole.digest and before == after and
          "has its 4 epochs already" in result.out, "resuming a finished run changes nothing", result)
    run(0, *TRAIN, "--max-steps", "5", "--out", "five")
    result = run(0, *TRAIN, "--max-steps", "5", "--out", "five", "--resume")
    check(result.code == 0 and "net D has its 5 steps already\n" in result.out, "one with all of its steps says so",
          result)
    whole = run(2, *TRAIN, "--epochs", "6", "--out", "longer")
    result = run(3, *TRAIN, "--epochs", "6", "--out", "split", "--resume")
    same("a finished run given more epochs", result, "split", whole, "longer")
    result = run(2, *TRAIN, "--epochs", "6", "--out", "fresh", "--resume")
    check("no checkpoint yet" in result.out, "--resume without a checkpoint says so", result)
    same("--resume without a checkpoint starts the run", result, "fresh", whole, "longer")


def without_checkpoint():
    """What a kill before the first checkpoint leaves is done again; anything else stays, and is refused."""
    options = [*TRAIN, "--eval-every", "1", "--epochs", "4", "--checkpoint-every", "3"]
    files = [file for file in FILES if not file.startswith("checkpoint")]

    def left(out, epochs):
        """Of the run in directory `early`, without its checkpoints, after so many epochs."""
        shutil.copytree(FOLDER / "early", FOLDER / out)
        for file in FILES[:2]:
            (FOLDER / out / file).unlink(missing_ok=True)
        lines = content(out, "metrics.jsonl").splitlines(keepends=True)
        (FOLDER / out / "metrics.jsonl").write_bytes(b"".join(lines[:epochs]))

    whole = run(1, *options, "--out", "early")
    left("killed-early", 3)
    result = run(2, *options, "--out", "killed-early", "--resume")
    same("killed just before the first checkpoint", result, "killed-early", whole, "early")
    for out, epochs, *change in (("kept-4", 4), ("kept-B", 3, "--net", "B"), ("kept-lr", 0, "--lr", "0.01"),
                                 ("kept-init", 3, "--init-from", FOLDER / "early" / "model-best.safetensors")):
        left(out, epochs)
        before = [content(out, file) for file in files]
        result = run(2, *options, *change, "--out", out, "--resume")
        told = change[0] if change else "one should be there"
        check(result.says(2, out, "no checkpoint", "another --out") and before == [content(out, f) for f in files],
              f"{epochs} epochs without a checkpoint, and {told}: refused", result)
    (FOLDER / "kept-4" / "run.json").unlink()
    result = run(0, *options, "--out", "kept-4", "--resume")
    check(result.says(2, "kept-4") and len(metrics("kept-4")) == 4, "so where no run.json is there", result)


# --- stopped by signals -------------------------------------------------------------------------------


def go_on(np, out, *options):
    """An endless run that has made steps: its first epoch may have been stopped at its last step."""
    running = start(np, *ENDLESS, "--out", out, "--resume", *options)
    running.wait_for("epoch: ", times=2)
    return running


def without_a_reader():
    """`dtrain ... | head`, without launch/run, which sees to it that dtrain does not notice."""
    command = [PROGRAM, *ENDLESS, "--out", "piped"]
    piped = Run(["bash", "-c", '"$@" | head -6; exit "${PIPESTATUS[0]}"', "bash", *command], {}, FOLDER).finish()
    check(piped.code == 75 and "standard output: Broken pipe" in piped.err, "a reader that ends: saved, 75", piped)
    result = run(0, *ENDLESS, "--out", "piped", "--resume", "--max-steps", "1")
    check(result.code == 0 and " steps already" in result.out, "and it can be gone on with", result)


def by_signals():
    for np, number, rank in (
        (2, signal.SIGUSR1, None),
        (3, signal.SIGUSR2, None),
        (2, signal.SIGTERM, 1),
        (4, signal.SIGINT, 0),
        (3, signal.SIGUSR1, 2),
    ):
        running = go_on(np, "signals", "--checkpoint-every", "1000000")
        running.signal(number, rank)
        result = running.finish()
        whom = "mpirun" if rank is None else f"rank {rank} of {np}"
        name = "a signal" if number == signal.SIGUSR1 else number.name  # launch/run hands others on as SIGUSR1, too
        stopped(f"{number.name} to {whom}", result, "" if rank else name)
        check(progress("signals")["step"] == str(result.step), "with the checkpoint of that step", result)

    running = go_on(2, "signals")
    running.signal(signal.SIGKILL, 1)
    result = running.finish()
    check(result.code == 4 and "lost rank 1" in result.err and result.seconds < 20, "a rank killed ends the job",
          result)
    killed = metrics("signals")[-1]["step"] + 6  # no model-best is of a later epoch than the next one

    running = go_on(0, "signals", "--checkpoint-every", "1000000")
    running.signal(signal.SIGTERM)
    result = running.finish()
    stopped("SIGTERM to a process without mpirun", result, "SIGTERM")

    before = int(progress("signals")["step"])
    running = go_on(2, "signals", "--checkpoint-every", "1000000")
    running.signal(signal.SIGTERM)
    result = running.finish()
    after = int(progress("signals")["step"])
    check(result.code not in (0, None) and after > before, "SIGTERM to mpirun: saved before it kills", result)

    end = str(max(after, killed) + 9)  # where the best model of both runs is of an epoch that both have done
    result = run(2, *ENDLESS, "--out", "signals", "--resume", "--max-steps", end)
    whole = run(1, *ENDLESS, "--out", "no-signals", "--max-steps", end)
    same("nine interruptions in one run", result, "signals", whole, "no-signals")


def in_evaluation():
    """Most of the time of these runs goes into evaluating 8,000 pictures."""
    for eval_on, rank in ("rank0", 0), ("all", 1):
        out = f"evaluating-{eval_on}"
        options = ["--data", "synthetic:320+8000", "--eval-every", "1", "--eval-on", eval_on]
        for attempt in range(9):
            running = go_on(2, out, *options)
            time.sleep(0.02 * 2 ** attempt)
            running.signal(signal.SIGUSR1, rank)
            result = running.finish()
            if result.code != 75 or progress(out)["in_epoch"] == "320":
                break
        check(progress(out)["in_epoch"] == "320",
              f"--eval-on {eval_on}: stopped between an epoch's steps and its end", progress(out))
        stopped(f"--eval-on {eval_on}: SIGUSR1 to rank {rank} while it evaluates", result, "")
        if rank == 0:
            closed = run(1, *ENDLESS, *options, "--out", out, "--resume", "--max-steps", str(result.step))
            check(closed.code == 0 and (progress(out)["step"], progress(out)["in_epoch"]) == (str(result.step), "0"),
                  "resumed for no more steps: the epoch is closed, and that is saved", f"{progress(out)}{closed}")
        end = str(result.step + 7)
        result = run(3, *ENDLESS, *options, "--out", out, "--resume", "--max-steps", end)
        whole = run(2, *ENDLESS, *options, "--out", f"{out}-whole", "--max-steps", end)
        same(f"--eval-on {eval_on}: then resumed", result, out, whole, f"{out}-whole")


# --- what is refused ----------------------------------------------------------------------------------


def refusals():
    files = [content("whole", file) for file in FILES]
    result = run(2, *TRAIN, "--epochs", "9", "--out", "whole")
    check(result.says(2, "--resume", "whole") and files == [content("whole", file) for file in FILES],
          "without --resume a run is not overwritten", result)

    changes = {
        ("--net", "C"): "--net D C",
        ("--p-conv", "0.25"): "--p-conv 0.5 0.25",
        ("--p-fc", "0"): "--p-fc 0.5 0",
        ("--seed", "2"): "--seed 1 2",
        ("--batch-size", "65"): "--batch-size 64 65",
        ("--lr", "0.01"): "--lr 0.05 0.01",
        ("--momentum", "0.8"): "--momentum 0.9 0.8",
        ("--lr-step", "151"): "--lr-step 150 151",
        ("--lr-gamma", "1"): "--lr-gamma 0.5 1",
        ("--data", "synthetic:340+70"): "--data 335 340",
        ("--data", "synthetic:335+71"): "--data",
    }
    directories = [shutil.copytree(FOLDER / "whole", FOLDER / f"whole{i}") for i in range(len(changes))]
    calls = [(0, *TRAIN, "--epochs", "9", "--out", directory, "--resume", *change)
             for directory, change in zip(directories, changes)]
    for (change, words), result in zip(changes.items(), run_all(calls)):
        said = [word.rstrip(":,;") for line in result.messages for word in line.split()]
        check(result.code == 3 and len(result.messages) == 1 and all(word in said for word in words.split()),
              f"{' '.join(change)} may not change: the message has {words}", result)
    check(all(files == [content(directory, file) for file in FILES] for directory in directories),
          "and the files stay as they are")


def damaged():
    shutil.copytree(FOLDER / "whole", FOLDER / "damaged")
    checkpoint, previous = (FOLDER / "damaged" / file for file in FILES[:2])
    data = bytearray(checkpoint.read_bytes())
    data[-1000] ^= 1
    checkpoint.write_bytes(data)
    epoch = read(previous)[1]["epoch"]
    result = run(2, *TRAIN, "--epochs", "6", "--out", "damaged", "--resume")
    check(result.says(3, "damaged/checkpoint.safetensors", previous.name, f"epoch {epoch}", "rename"),
          "a damaged checkpoint is refused and the previous one is named", result)
    check(checkpoint.read_bytes() == data, "and left as it is")
    previous.rename(checkpoint)
    result = run(2, *TRAIN, "--epochs", "6", "--out", "damaged", "--resume")
    longer = run(0, *TRAIN, "--epochs", "6", "--out", "longer", "--resume")
    same("renamed as the message proposes, the previous one", result, "damaged", longer, "longer")


def best_model():
    """The file of the best check, gone or changed, is noticed and replaced."""
    options = [*TRAIN, "--epochs", "6"]
    run(1, *TRAIN, "--epochs", "4", "--out", "best")
    for how, words in (("gone", "No such file"), ("changed", "damaged"),
                       ("another net's", "--net A, but this one has D"), ("PyTorch's", "no checksum")):
        out = "best-" + how.split("'")[0]
        shutil.copytree(FOLDER / "best", FOLDER / out)
        best = FOLDER / out / "model-best.safetensors"
        if how == "gone":
            best.unlink()
        elif how == "changed":
            best.write_bytes(best.read_bytes()[:-1] + b"?")
        elif how == "another net's":
            run(1, *TRAIN, "--net", "A", "--epochs", "2", "--out", "other-net")
            shutil.copy(FOLDER / "other-net" / "model-best.safetensors", best)
        else:
            write(best, read(best)[0], {"format": "pt"})
        result = run(2, *options, "--out", out, "--resume")
        check(result.code == 0 and len(result.messages) == 1 and words in result.err and "model-best" in result.err,
              f"the best model is {how}: said", result)
        kept = read(best)[1]
        check(how == "PyTorch's" or kept.get("net") == "D" and
              abs(float(kept["test_accuracy"]) - metrics(out)[5]["test_accuracy"]) < 1e-6,
              f"{how}: the next check's takes its place", kept)


def best_of_killed():
    """A model of a check after the last checkpoint stays the best, though --eval-every is another since."""
    run(1, *TRAIN, "--eval-every", "1", "--epochs", "8", "--out", "each")
    trained = [line["train_accuracy"] for line in metrics("each")]
    check(abs(float(progress("each")["best_train"]) - max(trained)) < 1e-6 < max(trained) - trained[-1],
          "the best accuracy in training is not that of the last check", trained)
    accuracy = [line["test_accuracy"] for line in metrics("each")]
    worst = accuracy.index(min(accuracy[1:]), 1)
    options = [*TRAIN, "--eval-every", "1000", "--epochs", str(worst + 1), "--out", "killed"]
    run(1, *options, "--max-steps", "7")  # within epoch 2
    best = Path(shutil.copy(FOLDER / "each" / "model-best.safetensors", FOLDER / "killed"))
    result = run(2, *options, "--resume")
    last = metrics("killed")[-1]["test_accuracy"]
    check(result.code == 0 and not result.messages and last < max(accuracy) and
          content(best) == content("each", "model-best.safetensors"), f"better than {last}%: kept", result)
    shutil.copytree(FOLDER / "each", FOLDER / "killed-at-once")  # before its first checkpoint
    for file in FILES[:2]:
        (FOLDER / "killed-at-once" / file).unlink()
    lines = content("each", "metrics.jsonl").splitlines(keepends=True)
    (FOLDER / "killed-at-once" / "metrics.jsonl").write_bytes(lines[0])
    result = run(2, *options[:-1], "killed-at-once", "--resume")
    check(result.code == 0 and not result.messages and metrics("killed-at-once")[-1]["test_accuracy"] == last and
          content("killed-at-once", best.name) == content("each", best.name), "also where the run starts anew", result)


def interrupted_writes():
    """What a crash between two of the file system's steps leaves."""
    shutil.copytree(FOLDER / "whole", FOLDER / "crashed")
    (FOLDER / "crashed" / FILES[0]).unlink()  # no hard links, and killed between the two renames
    (FOLDER / "crashed" / f"{FILES[0]}.tmp-77").write_bytes(b"half")
    (FOLDER / "crashed" / "run.json").write_text("{ damaged")
    result = run(2, *TRAIN, "--epochs", "6", "--out", "crashed", "--resume")
    longer = run(0, *TRAIN, "--epochs", "6", "--out", "longer", "--resume")
    same("the previous checkpoint alone", result, "crashed", longer, "longer")
    for words in (f"goes on from {FILES[1]} (epoch ", f"{FILES[0]}.tmp-77, left by",
                  "run.json cannot be read as JSON: kept as"):
        check(sum(words in line for line in result.messages) == 1, f"said: {words}", result)
    check(content("crashed", "run-damaged.json") == b"{ damaged" and not content("crashed", f"{FILES[0]}.tmp-77"),
          "and done")
    (FOLDER / "crashed" / FILES[0]).rename(FOLDER / "crashed" / f"{FILES[0]}.tmp-77")
    (FOLDER / "crashed" / "run.json").write_text("[ 1 ]")
    result = run(1, *TRAIN, "--epochs", "6", "--out", "crashed", "--resume")
    check(content("crashed", "run-damaged.json") == b"{ damaged" and
          content("crashed", "run-damaged-2.json") == b"[ 1 ]" and
          any("kept as run-damaged-2.json" in line for line in result.messages), "and another one beside it", result)
    check(result.digest == longer.digest and "takes its place" in result.err and f"{FILES[1]} (" not in result.err,
          "a whole checkpoint that an interrupted write left: used, and said", result)
    lines = content("crashed", FILES[3]).split(b"\n")
    lines[2:2] = [b"damaged", b'{"epoch": 99, "note": "of a user"}']
    (FOLDER / "crashed" / FILES[3]).write_bytes(b"\n".join(lines) + b'{"epoch":7,"st')
    result = run(1, *TRAIN, "--epochs", "7", "--out", "crashed", "--resume")
    after = content("crashed", FILES[3]).split(b"\n")
    check(result.code == 0 and after[:len(lines) - 1] == lines[:-1] and
          after[-2].startswith(b'{"epoch":7,"step":42') and
          any("lines that are not dtrain's are kept: 2, from line 3 on" in line for line in result.messages),
          "damaged and foreign lines among the metrics stay, and nothing behind them goes", result)


def from_file():
    """--init-from starts a new run; a checkpoint of the run itself goes first."""
    options = [*TRAIN, "--epochs", "2", "--init-from", FOLDER / "whole" / "checkpoint.safetensors"]
    one = run(1, *options, "--out", "from1")
    seeded = run(0, *TRAIN, "--epochs", "2", "--out", "seeded")
    check(one.code == 0 and one.digest != seeded.digest, "--init-from starts elsewhere than the seed", one)
    run(2, *options, "--out", "from2", "--max-steps", "7")
    two = run(3, *options, "--out", "from2", "--resume")
    check(two.messages and "--init-from" in two.messages[0] and "not read" in two.messages[0],
          "--init-from beside a checkpoint is ignored aloud", two)
    same("--init-from, interrupted and resumed with the same options", two, "from2", one, "from1")
    measured = run(2, *TRAIN, "--epochs", "1", "--lr", "0", "--init-from", FOLDER / "from1" / FILES[0],
                   "--out", "from0")
    accuracies = [[metrics(out)[-1].get(f"{split}_accuracy") for split in ("train", "test")]
                  for out in ("from0", "from1")]
    check(measured.digest == one.digest and None not in accuracies[0] and accuracies[0] == accuracies[1],
          "--init-from with --epochs 1 --lr 0 tells what the weights know, and keeps them", measured)
    result = run(2, *TRAIN, "--epochs", "2", "--init-from", "nowhere.safetensors", "--out", "from3")
    check(result.says(3, "nowhere.safetensors"),
          "--init-from names the file that is not there", result)


by_steps()
without_checkpoint()
refusals()
damaged()
interrupted_writes()
best_model()
best_of_killed()
from_file()
by_signals()
without_a_reader()
in_evaluation()
finish()
