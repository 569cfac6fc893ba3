#!/usr/bin/python3
"""Makes the golden files of tests/unit/test_golden.c and test_dropout.c. Needs PyTorch and numpy (Debian:
python3-torch python3-numpy) and some minutes; the tests need neither, they read the committed files.

Everything random is computed here a second time, in numpy, from the layout written in include/philox.h,
masks.h, sampler.h and lenet5.h: the generator, initial weights, data set, order of the epochs, dropout
masks. PyTorch's part is the arithmetic: autograd's gradients and torch.optim.SGD, in double precision.

  lenet5-A.safetensors, lenet5-D.safetensors: nets A and D, each with
    losses             (2)      mean loss of the first batch and of the tail batch, at the initial weights
    gradient.NAME               gradient of the first batch (256 samples), double rounded to float
    tail.NAME                   gradient of the tail batch (80 samples, step 5), thinned
    predict            (2)      mean loss over the training set and correct samples, at the initial weights
    sgd.losses         (20)     of 20 SGD steps of 32 samples; short epochs of 8 steps and a tail of 20
    sgd.NAME                    weights after them, thinned
    sgd.predict        (2)      as predict, after them
  dropout.safetensors: x, keep, y, dy, dx of PyTorch's own modules, masks read off them

ReLU and max-pooling decide: a winner by less than a rounding error may rightly be another one in single
precision, and the gradient then jumps. So both runs take the first seed that leaves every decision a MARGIN,
and write it in the metadata; there too, how far PyTorch's own float32 run strays from its double one.
"""

import itertools
import json
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))

MARGIN = 5e-7  # five times the usual error of an fp32 activation
DATA_SEED = 1
TRAIN = 5 * 256 + 80  # five whole batches of 256 and a tail; five files of 272
TAIL_STEP = 5
SGD_BATCH, SGD_EPOCH, SGD_STEPS = 32, 8 * 32 + 20, 20  # an epoch is the first 276 samples of its order
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


def numbers(seed, purpose, layer, step, positions, count):
    """(len(positions), count) numbers: elements 0..count-1 of each position's stream."""
    blocks = np.arange((count + 3) // 4)[None, :]
    words = philox(blocks, np.asarray(positions)[:, None], step & 0xFFFFFFFF,
                   purpose << 24 | layer << 16 | step >> 32, seed)
    return words.reshape(len(positions), -1)[:, :count]


def initial_weights(seed):
    weights = {}
    for index, (name, (shape, fan_in)) in enumerate(PARAMETERS.items()):
        count = int(np.prod(shape))
        words = numbers(seed, WEIGHTS, index, 0, [0], count)[0]
        uniform = (words >> np.uint64(8)).astype(np.float32) / 2**24
        bound = np.float32(1 / np.sqrt(fan_in))
        weights[name] = (bound * (2 * uniform - 1)).astype(np.float32).reshape(shape)
    return weights


def data_set():
    """Pictures half noise, half their class's pattern of 3x4x4 even squares. Purpose 200, layer 0: noise
    (position: the sample), 1: label, 2: patterns (position: the class); a byte is a number's high bits."""
    def draw(layer, positions, count):
        return numbers(DATA_SEED, TEST_PICTURES, layer, 0, np.arange(positions), count)

    labels = (draw(1, TRAIN, 1)[:, 0] * np.uint64(10) >> HALF).astype(int)
    noise = draw(0, TRAIN, 3072) >> np.uint64(24)
    squares = draw(2, 10, 48) >> np.uint64(24)
    patterns = squares.reshape(10, 3, 4, 4).repeat(8, 2).repeat(8, 3)
    return (noise.reshape(TRAIN, 3, 32, 32) + patterns[labels]).astype(int) // 2, labels


def epoch_order(seed, epoch):
    """Fisher-Yates inside out; the place is the high half of the product with a 64-bit number."""
    words = numbers(seed, SHUFFLE, 0, epoch, [0], 2 * TRAIN)[0]
    order = []
    for i in range(TRAIN):
        place = (i + 1) * (int(words[2 * i]) << 32 | int(words[2 * i + 1])) >> 64
        order.append(i)
        order[i], order[place] = order[place], i
    return np.array(order)


def masks(seed, net, step, samples):
    """What activations of conv1..conv3 and fc1 are multiplied by: (samples, elements), 0 or 1/(1-p)."""
    p_conv, p_fc = NETS[net]
    factors = []
    for layer, elements in enumerate(ELEMENTS):
        p = p_fc if layer == 3 else p_conv
        keep = numbers(seed, DROPOUT, layer, step, np.arange(samples), elements) >= p * 2**32
        factors.append(torch.tensor(keep / (1 - p)))
    return factors


# --- the net --------------------------------------------------------------------------------------------


def margin(z, factor, pooled):
    """The smallest distance of a ReLU's input from 0, or of a pool's winner from the second. Dropped
    channels decide nothing, nor do windows of exactly equal numbers (all inputs dropped: bias alone)."""
    if pooled:
        z = z.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        first, second = z.topk(2).values.unbind(-1)
        distance = torch.where(first > 0, torch.minimum(first, first - second), -first)
        distance[first == second] = np.inf
    else:
        distance = z.abs()
    return distance[(factor > 0).expand_as(distance)].min().item()


def forward(weights, images, factors=None, margins=None):
    """Outputs of the net; factors None is predict mode. Appends to margins, if given, those of each layer."""
    x = images
    for layer, name in enumerate(("conv1", "conv2", "conv3", "fc1")):
        conv = layer < 3
        z = (F.conv2d if conv else F.linear)(x, weights[name + ".weight"], weights[name + ".bias"])
        x = F.relu(z)
        if factors:
            factor = factors[layer].to(x.dtype)[(...,) + (None,) * (2 * conv)]
            x = x * factor
            if margins is not None:
                margins.append(margin(z.detach(), factor, pooled=layer < 2))
        if layer < 2:
            x = F.max_pool2d(x, 2)
        elif layer == 2:
            x = x.flatten(1)
    return F.linear(x, weights["fc2.weight"], weights["fc2.bias"])


PICTURES, LABELS = map(torch.tensor, data_set())
IMAGES = {dtype: PICTURES.to(dtype) / 127.5 - 1 for dtype in (torch.float32, torch.float64)}


class Run:
    """One net from its initial weights on, in one precision. `margins` are those of all losses so far."""

    def __init__(self, net, seed, dtype):
        self.net, self.seed = net, seed
        self.images = IMAGES[dtype]
        self.weights = {name: torch.tensor(value, dtype=dtype, requires_grad=True)
                        for name, value in initial_weights(seed).items()}
        self.margins = []

    def loss(self, step, samples):
        factors = masks(self.seed, self.net, step, len(samples))
        outputs = forward(self.weights, self.images[samples], factors, self.margins)
        return F.cross_entropy(outputs, LABELS[samples])

    def gradient(self, step, samples):
        loss = self.loss(step, samples)
        gradient = torch.autograd.grad(loss, list(self.weights.values()))
        return loss.item(), {name: g.numpy() for name, g in zip(self.weights, gradient)}

    def train(self, least_margin):
        """The losses; None as soon as a decision is closer than least_margin."""
        optimizer = torch.optim.SGD(self.weights.values(), lr=LEARNING_RATE, momentum=MOMENTUM)
        losses = []
        per_epoch = -(-SGD_EPOCH // SGD_BATCH)
        for step in range(SGD_STEPS):
            epoch, k = divmod(step, per_epoch)
            if k == 0:
                order = epoch_order(self.seed, epoch)[:SGD_EPOCH]
            optimizer.zero_grad()
            loss = self.loss(step, order[k * SGD_BATCH:(k + 1) * SGD_BATCH])
            if min(self.margins) < least_margin:
                return None
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    def predict(self):
        with torch.no_grad():
            outputs = forward(self.weights, self.images)
            loss = F.cross_entropy(outputs, LABELS).item()
            return np.array([loss, (outputs.argmax(1) == LABELS).sum().item()])

    def values(self):
        return {name: w.detach().double().numpy().copy() for name, w in self.weights.items()}


def difference(got, want):
    return float(np.linalg.norm((got - want).ravel()) / np.linalg.norm(want.ravel()))


def thin(tensor):
    """Every 16th number of a large tensor: enough to notice, small enough to commit."""
    flat = tensor.ravel()
    return flat[::16] if flat.size > 1000 else flat


def worst_difference(got, want):
    return max(difference(got[name], want[name]) for name in PARAMETERS)


def golden_gradients(net):
    """Tensors and metadata of the first seed whose first and last batch keep the margin."""
    for seed in itertools.count(1):
        run = Run(net, seed, torch.float64)
        order = epoch_order(seed, 0)
        whole, tail = order[:256], order[TAIL_STEP * 256:]
        tail_loss, tail_gradient = run.gradient(TAIL_STEP, tail)
        if min(run.margins) < MARGIN:
            continue
        loss, gradient = run.gradient(0, whole)
        if min(run.margins) >= MARGIN:
            break
    tensors = {"losses": np.array([loss, tail_loss]), "predict": run.predict()}
    for name in PARAMETERS:
        tensors["gradient." + name] = gradient[name]
        tensors["tail." + name] = thin(tail_gradient[name])
    spread = worst_difference(Run(net, seed, torch.float32).gradient(0, whole)[1], gradient)
    return tensors, {"seed": str(seed), "float32 gradient": f"{spread:.1e}"}


def golden_sgd(net):
    """Tensors and metadata of the first seed whose 20 steps keep the margin."""
    for seed in itertools.count(1):
        run = Run(net, seed, torch.float64)
        start, losses = run.values(), run.train(MARGIN)
        if losses is not None:
            break
    single = Run(net, seed, torch.float32)
    single_losses = single.train(least_margin=0)
    tensors = {"sgd.losses": losses, "sgd.predict": run.predict()}
    end, single_end = run.values(), single.values()
    for name in PARAMETERS:
        tensors["sgd." + name] = thin(end[name])
    spread = worst_difference({name: single_end[name] - start[name] for name in PARAMETERS},
                              {name: end[name] - start[name] for name in PARAMETERS})
    return tensors, {"sgd.seed": str(seed), "float32 sgd.updates": f"{spread:.1e}",
                     "float32 sgd.losses": f"{np.max(np.abs(single_losses / losses - 1)):.1e}"}


def golden_net(net):
    tensors, metadata = golden_gradients(net)
    sgd_tensors, sgd_metadata = golden_sgd(net)
    write(f"lenet5-{net}", {**tensors, **sgd_tensors}, {**metadata, **sgd_metadata})


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
    torch.manual_seed(1)
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
