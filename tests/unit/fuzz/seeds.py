#!/usr/bin/env python3
"""seeds.py FOLDER: inputs for the fuzzers to start from, in FOLDER/NAME/, one a kind of content."""

import json
import sys
from pathlib import Path


def safetensors(header, data=bytes(28)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


TENSORS = {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
           "bias": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]}}
CHECKPOINT = """dtrain-checkpoint=1
net=D
p_conv=0.5
p_fc=0.5
seed=1
batch_size=64
train_count=335
data_hash=0000000000001234
learning_rate=0.05
momentum=0.9
lr_step=150
lr_gamma=0.5
precision=fp32
epoch=3
step=20
in_epoch=128
loss=123456789
seconds=1.5
epoch_seconds=0.25
best_train=-1
best_test=12.5"""
SEEDS = {
    "safetensors": [safetensors(TENSORS), safetensors({"__metadata__": {"key": "value \u00e9"}, **TENSORS}),
                    safetensors({"__metadata__": {"checksum": "0" * 16}, **TENSORS}),
                    safetensors({"h": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}}, bytes(2)),
                    safetensors(b"[" * 1000), safetensors(b"{}", b""), b"", bytes(8), b"\xff" * 16],
    "checkpoint": [CHECKPOINT.encode(), CHECKPOINT.replace("-1", "99999999999999999999").encode(),
                   b"dtrain-checkpoint=2"],
    "dataset": [bytes(6 * 3073), bytes(6 * 3073 + 1), bytes(5), b"\x09" * 6 * 3073, b""],
    "options": [b"--net\nA,D\n--epochs\n5\n--lr=0.1\n--resume", b"--data\nsynthetic:335+70\n--p-fc\n1",
                b"--net\nall\n--eval-on\nall",
                b"--lr\nnan\n--seed\n18446744073709551616", b"--he\n-x\n--\nword",
                b"--timeout\n0x1p3\n--comm\nmpi\n--version"],
}

for name, inputs in SEEDS.items():
    folder = Path(sys.argv[1], name)
    folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(inputs):
        (folder / str(i)).write_bytes(data)
