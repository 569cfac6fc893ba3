#!/usr/bin/env python3
"""The files of a run, read by independent code: safetensors, JSON lines, TensorBoard events; and files of
others, or damaged ones, read by dtrain."""
# needs: dtrain

import array
import json
import math
import struct
import tempfile

import events_reader
import safetensors_reader
from dtrain import FOLDER, run
from tap import check, finish, skip

SHAPES = {
    "conv1.weight": (6, 3, 5, 5), "conv1.bias": (6,), "conv2.weight": (16, 6, 5, 5), "conv2.bias": (16,),
    "conv3.weight": (120, 16, 5, 5), "conv3.bias": (120,), "fc1.weight": (84, 120), "fc1.bias": (84,),
    "fc2.weight": (10, 84), "fc2.bias": (10,),
}
EPOCH_KEYS = ["epoch", "step", "loss", "lr", "seconds", "images_per_second"]
CHECK_KEYS = ["train_accuracy", "test_accuracy", "test_loss"]
TAGS = {
    "train/loss": "loss", "train/learning_rate": "lr", "train/images_per_second": "images_per_second",
    "check/train_accuracy": "train_accuracy", "check/test_accuracy": "test_accuracy",
    "check/test_loss": "test_loss",
}
RUN = FOLDER / "it's \"a\" run of *"  # a name to trip over
CURRENT, PREVIOUS = RUN / "checkpoint.safetensors", RUN / "checkpoint-previous.safetensors"
BEST = RUN / "model-best.safetensors"


def train(*options, out=RUN):
    return run(0, "--net", "D", "--data", "synthetic:1000+200", "--batch-size", 100, "--lr", 0.05,
               "--eval-every", 2, "--out", out, *options)


def digest_of(path):
    """Of the weights that --init-from reads: no training follows."""
    result = train("--init-from", path, "--epochs", 0, out=tempfile.mkdtemp(dir=FOLDER))
    assert result.digest, result
    return result.digest


# --- logs ----------------------------------------------------------------------------------------------


def metrics_lines():
    return [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]


def same_scalars(found, wanted):
    """{tag: {step: value}} twice; event files hold floats."""
    return found.keys() == wanted.keys() and all(
        found[tag].keys() == wanted[tag].keys() and
        all(math.isclose(found[tag][step], wanted[tag][step], rel_tol=1e-7) for step in wanted[tag])
        for tag in wanted)


def check_logs(epochs, name):
    lines = metrics_lines()
    check([line["epoch"] for line in lines] == list(range(1, epochs + 1)), f"{name}: a line an epoch", lines)
    check(all(line["step"] == 10 * line["epoch"] for line in lines), f"{name}: steps go with epochs", lines)
    check(all(list(line) == EPOCH_KEYS + (CHECK_KEYS if line["epoch"] % 2 == 0 else []) for line in lines),
          f"{name}: each line has its keys", lines)

    wanted = {tag: {line["epoch"]: line[key] for line in lines if key in line} for tag, key in TAGS.items()}
    found = events_reader.read(RUN)
    check(same_scalars(found, wanted), f"{name}: the events say the same", f"{found}\n{wanted}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        skip(f"{name}: TensorBoard reads the same", "no Python package tensorboard")
        return
    accumulator = EventAccumulator(str(RUN)).Reload()
    found = {tag: {event.step: event.value for event in accumulator.Scalars(tag)}
             for tag in accumulator.Tags()["scalars"]}
    check(same_scalars(found, wanted), f"{name}: TensorBoard reads the same", f"{found}\n{wanted}")


# --- weights -------------------------------------------------------------------------------------------


def shapes_of(tensors):
    return {name: shape for name, (shape, _) in tensors.items()}


def check_weights(digest):
    tensors, metadata = safetensors_reader.read(CURRENT)
    momentum = {f"momentum.{name}": shape for name, shape in SHAPES.items()}
    check(shapes_of(tensors) == {**SHAPES, **momentum}, "a checkpoint has PyTorch's names and shapes",
          shapes_of(tensors))
    stands = {"dtrain-checkpoint": "1", "net": "D", "batch_size": "100", "epoch": "4", "step": "40"}
    check({**metadata, **stands} == metadata, "a checkpoint says where the run stands", metadata)
    check(digest_of(CURRENT) == digest, "a checkpoint holds the weights of the last line")

    tensors, metadata = safetensors_reader.read(BEST)
    check(shapes_of(tensors) == SHAPES, "the best model is weights alone", shapes_of(tensors))
    check({**metadata, "format": "pt", "net": "D"} == metadata and "checksum" in metadata,
          "the best model says that it is PyTorch's, and of what run", metadata)
    for path in CURRENT, BEST:
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        check(length % 8 == 0, f"{path.name}: the data is aligned", length)


def check_foreign_models():
    tensors, _ = safetensors_reader.read(BEST)
    foreign = FOLDER / "foreign.safetensors"
    extra = {"bn.running_mean": ((3, 1), array.array("f", [1, 2, 3]))}
    safetensors_reader.write(foreign, {**extra, **dict(reversed(tensors.items()))})
    check(digest_of(foreign) == digest_of(BEST), "--init-from reads any order, and past other tensors")

    for prefix in "module.", "_orig_mod.", "module._orig_mod.":
        safetensors_reader.write(foreign, {prefix + name: tensor for name, tensor in tensors.items()})
        check(digest_of(foreign) == digest_of(BEST),
              f"--init-from reads names that begin with {prefix}, as wrappers save them")
    for name, begin in ("zip", b"PK\3\4"), ("pickle", b"\x80\2\x8a\nl\xfc"):
        (FOLDER / f"{name}.pt").write_bytes(begin + bytes(100))
        result = train("--init-from", FOLDER / f"{name}.pt", "--epochs", 1, out=FOLDER / f"{name}-run")
        check(result.says(3, f"{name}.pt: a file of torch.save", "save_file"),
              f"--init-from a {name} of torch.save: how to convert", result)

    def refused(name, words, other, dtype="F32"):
        path = FOLDER / f"{name}.safetensors"
        safetensors_reader.write(path, {**tensors, **other}, {"format": "pt"}, dtype)
        result = train("--init-from", path, "--epochs", 1, out=FOLDER / f"{name}-run")
        check(result.code == 3 and len(result.messages) == 1 and
              f"{path.name}: {words}" in result.messages[0], f"--init-from refuses a file: {name}", result)

    shape, values = tensors["conv1.weight"]
    refused("gray", "tensor 'conv1.weight' has shape [6,1,5,5], but [6,3,5,5] is needed",
            {"conv1.weight": ((6, 1, 5, 5), values[:150])})
    refused("nan", "weight 0 is nan", {"conv1.weight": (shape, array.array("f", [math.nan]) + values[1:])})
    refused("half", "tensor 'conv1.weight' is F16, but only F32 is read",
            {name: (shape, array.array("h", bytes(2 * len(values))))
             for name, (shape, values) in tensors.items()}, "F16")
    del tensors["fc2.bias"]
    refused("poor", "has no tensor 'fc2.bias'", {})


def check_pytorch():
    names = ["PyTorch loads the best model and finds its test loss", "--init-from reads what PyTorch wrote"]
    try:
        import torch
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        for name in names:
            skip(name, f"no Python package {error.name}")
        return

    class LeNet5(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 5), torch.nn.Conv2d(6, 16, 5)
            self.conv3 = torch.nn.Conv2d(16, 120, 5)
            self.fc1, self.fc2 = torch.nn.Linear(120, 84), torch.nn.Linear(84, 10)

        def forward(self, x):
            x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
            x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
            x = torch.relu(self.conv3(x)).flatten(1)
            return self.fc2(torch.relu(self.fc1(x)))

    model = LeNet5()
    model.load_state_dict(load_file(BEST))
    test = (FOLDER / "cache/dtrain/synthetic-1000-200/test_batch.bin").read_bytes()
    records = torch.frombuffer(bytearray(test), dtype=torch.uint8).reshape(-1, 3073)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32) / 127.5 - 1
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(pixels), records[:, 0].long()).item()
    checks = [line for line in metrics_lines() if "test_loss" in line]
    best = max(checks, key=lambda line: line["test_accuracy"])
    check(math.isclose(loss, best["test_loss"], rel_tol=1e-5), names[0], f"{loss}\n{best}")

    path = FOLDER / "pytorch.safetensors"
    save_file(model.state_dict(), path)
    check(digest_of(path) == digest_of(BEST), names[1])


# --- checkpoints that cannot be resumed ------------------------------------------------------------------


def refused(name, words, *options):
    result = train("--epochs", 6, "--resume", *options)
    check(result.code == 3 and len(result.messages) == 1 and words in result.messages[0], name, result)


def check_refusals():
    whole, (tensors, metadata) = CURRENT.read_bytes(), safetensors_reader.read(CURRENT)
    refused("other terms are refused", "--momentum 0.9, but this one has 0.8", "--momentum", 0.8)
    safetensors_reader.write(CURRENT, tensors, metadata)
    refused("a checkpoint that others rewrote is refused",
            "checksum cannot be verified, as it is not the first entry of the header: who rewrites a file is to")
    del metadata["checksum"]
    safetensors_reader.write(CURRENT, tensors, {**metadata, "dtrain-checkpoint": "2"})
    refused("a checkpoint of another version is refused", "of format 2, this dtrain reads format 1")

    CURRENT.write_bytes(whole[:300000] + bytes([whole[300000] ^ 1]) + whole[300001:])
    refused("a flipped bit is found, and the way out is named",
            "checkpoint-previous.safetensors (epoch 3) is whole: rename it to checkpoint.safetensors")
    PREVIOUS.rename(CURRENT)
    result = train("--epochs", 4, "--resume")
    check(result.code == 0, "the way out is one", result)
    check(safetensors_reader.read(CURRENT)[0] == tensors, "and leads to the same weights and momentum")


def main():
    result = train("--epochs", 2)
    check(result.code == 0, "a run into a directory with an awkward name", result)
    check_logs(2, "a run")
    early = CURRENT.read_bytes()
    train("--epochs", 4, "--resume")
    check_logs(4, "a resumed run")
    CURRENT.write_bytes(early)  # as if killed before it could save more
    result = train("--epochs", 4, "--resume")
    check_logs(4, "a run that goes back")
    check_weights(result.digest)
    check_foreign_models()
    check_pytorch()
    check_refusals()
    check_logs(4, "a run with a past")
    finish()


main()
