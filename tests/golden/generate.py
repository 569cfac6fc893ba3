#!/usr/bin/python3
"""Makes the golden files of tests/unit/test_golden.c and test_dropout.c. Needs PyTorch and numpy (Debian:
python3-torch python3-numpy); the tests themselves do not, they read the committed files.

Everything random is computed here a second time, in numpy, from the layout written in include/philox.h,
masks.h, sampler.h and lenet5.h: the generator, initial weights, data set, order of the epochs, dropout
masks. PyTorch's part is the arithmetic: autograd's gradients and torch.optim.SGD.

  lenet5-A.safetensors, lenet5-D.safetensors: nets A and D, each with
    losses             (2)      mean loss of the first batch and of the tail batch, at the initial weights
    gradient.NAME               gradient of the first batch (256 samples), double rounded to float
    tail.NAME                   gradient of the tail batch (80 samples), thinned
    sgd.losses         (20)     of each of 20 SGD steps: three epochs of 6 and two steps more
    sgd.NAME                    weights after them, thinned
    predict            (2)      mean loss over the training set and correct samples, before training
    predict.after      (2)      the same after the 20 steps
  dropout.safetensors: x, keep, y, dy, dx of PyTorch's own modules, masks read off them

All of it is in double precision. The metadata tell how far PyTorch's own float32 run strays from it.
"""

import json
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))

SEED = 1
BATCH = 256
TRAIN = 5 * 256 + 80  # five whole batches and a tail; five files of 272
STEPS = 20
LEARNING_RATE, MOMENTUM = 0.01, 0.9
NETS = {"A": (0.0, 0.0), "D": (0.5, 0.5)}  # p_conv, p_fc

PARAMETERS = {  # shape, fan_in, in the order of the table
    "conv1.weight": ((6, 3, 5, 5), 75),
    "conv1.bias": ((6,), 75),
    "conv2.weight": ((16, 6, 5, 5), 150),
    "conv2.bias": ((16,), 150),
    "conv3.weight": ((120, 16, 5, 5), 400),
    "conv3.bias": ((120,), 400),
    "fc1.weight": ((84, 120), 120),
    "fc1.bias": ((84,), 120),
    "fc2.weight": ((10, 84), 84),
    "fc2.bias": ((10,), 84),
}
ELEMENTS = (6, 16, 120, 84)  # of a sample in conv1, conv2, conv3, fc1

# --- random numbers -------------------------------------------------------------------------------------

DROPOUT, WEIGHTS, SHUFFLE, TEST_PICTURES = 1, 2, 3, 200  # purposes
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(c0, c1, c2, c3, seed):
    """Philox4x32-10: four arrays of 32-bit words in, an array (..., 4) of 32-bit numbers out."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in (c0, c1, c2, c3)))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = ((p1 >> HALF) ^ c1 ^ np.uint64(k0), p1 & LOW,
                          (p0 >> HALF) ^ c3 ^ np.uint64(k1), p0 & LOW)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def numbers(purpose, layer, step, positions, count):
    """(len(positions), count) numbers: elements 0..count-1 of each position's stream."""
    blocks = np.arange((count + 3) // 4)[None, :]
    words = philox(blocks, np.asarray(positions)[:, None], step & 0xFFFFFFFF,
                   purpose << 24 | layer << 16 | step >> 32, SEED)
    return words.reshape(len(positions), -1)[:, :count]


def initial_weights():
    weights = {}
    for index, (name, (shape, fan_in)) in enumerate(PARAMETERS.items()):
        count = int(np.prod(shape))
        uniform = (numbers(WEIGHTS, index, 0, [0], count)[0] >> np.uint64(8)).astype(np.float32) / 2**24
        bound = np.float32(1 / np.sqrt(fan_in))
        weights[name] = (bound * (2 * uniform - 1)).astype(np.float32).reshape(shape)
    return weights


def data_set():
    """Pictures half noise, half their class's pattern of 3x4x4 even squares. Purpose 200, layer 0: noise
    (position: the sample), 1: label, 2: patterns (position: the class); a byte is a number's high bits."""
    labels = (numbers(TEST_PICTURES, 1, 0, np.arange(TRAIN), 1)[:, 0] * np.uint64(10) >> HALF).astype(int)
    noise = numbers(TEST_PICTURES, 0, 0, np.arange(TRAIN), 3072) >> np.uint64(24)
    squares = numbers(TEST_PICTURES, 2, 0, np.arange(10), 48) >> np.uint64(24)
    patterns = squares.reshape(10, 3, 4, 4).repeat(8, 2).repeat(8, 3)
    return (noise.reshape(TRAIN, 3, 32, 32) + patterns[labels]) // np.uint64(2), labels


def epoch_order(epoch):
    """Fisher-Yates inside out; the place is the high half of the product with a 64-bit number."""
    words = numbers(SHUFFLE, 0, epoch, [0], 2 * TRAIN)[0]
    order = []
    for i in range(TRAIN):
        place = (i + 1) * (int(words[2 * i]) << 32 | int(words[2 * i + 1])) >> 64
        order.append(i)
        order[i], order[place] = order[place], i
    return np.array(order)


def masks(net, step, samples):
    """What activations of conv1..conv3 and fc1 are multiplied by: (samples, elements), 0 or 1/(1-p)."""
    p_conv, p_fc = NETS[net]
    factors = []
    for layer, elements in enumerate(ELEMENTS):
        p = p_fc if layer == 3 else p_conv
        keep = numbers(DROPOUT, layer, step, np.arange(samples), elements) >= p * 2**32
        factors.append(torch.tensor(keep / (1 - p)))
    return factors


# --- the net --------------------------------------------------------------------------------------------


def forward(weights, images, factors=None):
    """Outputs of the net; factors None is predict mode."""
    x = images
    for layer in range(3):
        name = f"conv{layer + 1}"
        x = F.relu(F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"]))
        if factors:
            x = x * factors[layer].to(x.dtype)[:, :, None, None]
        if layer < 2:
            x = F.max_pool2d(x, 2)
    x = F.relu(F.linear(x.flatten(1), weights["fc1.weight"], weights["fc1.bias"]))
    if factors:
        x = x * factors[3].to(x.dtype)
    return F.linear(x, weights["fc2.weight"], weights["fc2.bias"])


class Run:
    """One net in one precision."""

    def __init__(self, net, dtype):
        self.net = net
        pictures, labels = data_set()
        self.images = torch.tensor(pictures.astype(np.float64)).to(dtype) / 127.5 - 1
        self.labels = torch.tensor(labels)
        self.orders = [epoch_order(e) for e in range(4)]
        self.weights = {name: torch.tensor(value, dtype=dtype, requires_grad=True)
                        for name, value in initial_weights().items()}

    def batch(self, step):
        epoch, k = divmod(step, (TRAIN + BATCH - 1) // BATCH)
        return self.orders[epoch][k * BATCH:(k + 1) * BATCH]

    def loss(self, step):
        chosen = self.batch(step)
        outputs = forward(self.weights, self.images[chosen], masks(self.net, step, len(chosen)))
        return F.cross_entropy(outputs, self.labels[chosen])

    def gradient(self, step):
        loss = self.loss(step)
        gradient = torch.autograd.grad(loss, list(self.weights.values()))
        return loss.item(), {name: g.numpy() for name, g in zip(self.weights, gradient)}

    def train(self):
        optimizer = torch.optim.SGD(self.weights.values(), lr=LEARNING_RATE, momentum=MOMENTUM)
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    def predict(self):
        with torch.no_grad():
            outputs = forward(self.weights, self.images)
            loss = F.cross_entropy(outputs, self.labels).item()
            return np.array([loss, (outputs.argmax(1) == self.labels).sum().item()])

    def values(self):
        return {name: w.detach().double().numpy().copy() for name, w in self.weights.items()}


def difference(got, want):
    return float(np.linalg.norm((got - want).ravel()) / np.linalg.norm(want.ravel()))


def thin(tensor):
    """Every 16th number of a large tensor: enough to notice, small enough to commit."""
    flat = tensor.ravel()
    return flat[::16] if flat.size > 1000 else flat


def golden_net(net):
    run, single = Run(net, torch.float64), Run(net, torch.float32)
    start = run.values()
    (loss, gradient), (tail_loss, tail) = run.gradient(0), run.gradient(5)
    predict = run.predict()
    single_gradient = single.gradient(0)[1]
    losses, single_losses = run.train(), single.train()
    end, single_end = run.values(), single.values()

    tensors = {"losses": np.array([loss, tail_loss]), "sgd.losses": losses,
               "predict": predict, "predict.after": run.predict()}
    for name in PARAMETERS:
        tensors["gradient." + name] = gradient[name]
        tensors["tail." + name] = thin(tail[name])
        tensors["sgd." + name] = thin(end[name])
    spread = {
        "float32 gradient": max(difference(single_gradient[n], gradient[n]) for n in PARAMETERS),
        "float32 sgd.losses": float(np.max(np.abs(single_losses / losses - 1))),
        "float32 sgd updates": max(difference(single_end[n] - start[n], end[n] - start[n])
                                   for n in PARAMETERS),
    }
    write(f"lenet5-{net}", tensors, {key: f"{value:.2e}" for key, value in spread.items()})


# --- the dropout family ---------------------------------------------------------------------------------

DROPOUTS = [  # case, module, shape
    ("Dropout", torch.nn.Dropout(0.5), (7, 13)),
    ("Dropout-line", torch.nn.Dropout(0.1), (61,)),
    ("Dropout1d", torch.nn.Dropout1d(0.2), (5, 6, 9)),
    ("Dropout2d", torch.nn.Dropout2d(0.5), (4, 7, 3, 5)),
    ("Dropout3d", torch.nn.Dropout3d(0.3), (3, 6, 2, 3, 2)),
    ("AlphaDropout", torch.nn.AlphaDropout(0.2), (6, 11)),
    ("FeatureAlphaDropout", torch.nn.FeatureAlphaDropout(0.4), (3, 9, 2, 1, 3)),
    ("Dropout-all", torch.nn.Dropout(1.0), (3, 5)),
    ("AlphaDropout-all", torch.nn.AlphaDropout(1.0), (3, 5)),
    ("AlphaDropout-none", torch.nn.AlphaDropout(0.0), (3, 5)),
]


def golden_dropout():
    torch.manual_seed(SEED)
    tensors = {}
    for case, module, shape in DROPOUTS:
        x = torch.randn(shape, dtype=torch.float64).float().double().requires_grad_()
        dy = torch.randn(shape, dtype=torch.float64).float().double()
        y = module(x)  # modules are made in train mode
        (dx,) = torch.autograd.grad(y, x, dy)
        keep = dx != 0  # a dropped element passes no gradient
        assert module.p in (0, 1) or 0 < keep.sum() < keep.numel()
        for name, value in (("x", x), ("keep", keep), ("y", y), ("dy", dy), ("dx", dx)):
            tensors[f"{case}.{name}"] = value.detach().numpy().ravel()
    write("dropout", tensors, {})


# --- the file -------------------------------------------------------------------------------------------


def write(name, tensors, metadata):
    """The safetensors format: length of the header, header in JSON, numbers."""
    header = {"__metadata__": {"torch": torch.__version__, **metadata}}
    data = b""
    for key, value in tensors.items():
        numbers_ = np.ascontiguousarray(value, "<f4").tobytes()
        header[key] = {"dtype": "F32", "shape": list(value.shape),
                       "data_offsets": [len(data), len(data) + len(numbers_)]}
        data += numbers_
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, name + ".safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    print(name, len(text) + len(data), "bytes", metadata)


assert [int(n) for n in philox(0, 0, 0, 0, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
for golden in NETS:
    golden_net(golden)
golden_dropout()
