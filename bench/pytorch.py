#!/usr/bin/env python3
"""pytorch - the same training steps and dropouts in PyTorch on the same GPU: what dtrain's times are held against.

  bench/pytorch.py [steps] [dropout]     both if none is given

Steps: LeNet-5, batch 256 of 50,000 pictures that lie on the GPU, SGD with momentum, fp32 without TF32; eager and
as one CUDA graph a step. Dropout: 256 MiB of fp32, forward and backward, beside a device copy. Times are medians
over windows, in microseconds; bandwidth counts the bytes that every version must move. Without a GPU: tiny sizes
on the CPU, to check this script alone.
"""

import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH, PICTURES, STEPS, WINDOWS = (256, 50000, 195, 9) if GPU else (8, 64, 4, 3)
SHAPE = (8192, 8, 32, 32) if GPU else (8, 8, 32, 32)  # 256 MiB of fp32


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


def synchronize():
    if GPU:
        torch.cuda.synchronize()


def median_microseconds(work, times):
    """Of one work(i), over windows of `times` after one to warm up."""
    windows = []
    for _ in range(WINDOWS + 1):
        synchronize()
        begin = time.perf_counter()
        for i in range(times):
            work(i)
        synchronize()
        windows.append((time.perf_counter() - begin) * 1e6 / times)
    return statistics.median(windows[1:])


class Training:
    """One net with its data, and a step on a batch of indices."""

    def __init__(self, net):
        torch.manual_seed(1)
        self.images = torch.rand(PICTURES, 3, 32, 32, device=DEVICE) * 2 - 1
        self.labels = torch.randint(10, (PICTURES,), device=DEVICE)
        self.order = torch.randperm(PICTURES, device=DEVICE)
        self.model = LeNet5(net).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def batch(self, i):
        first = i % (PICTURES // BATCH) * BATCH
        return self.order[first:first + BATCH]

    def step(self, indices):
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.images[indices]), self.labels[indices]).backward()
        self.optimizer.step()

    def eager(self, i):
        self.step(self.batch(i))

    def captured(self):
        """A step as a CUDA graph: a function like eager."""
        indices, graph, side = self.batch(0).clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(5):
                self.step(indices)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            self.step(indices)

        def replay(i):
            indices.copy_(self.batch(i))
            graph.replay()

        return replay


def steps():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    for net in "AD":
        training = Training(net)
        print(f"net {net}  PyTorch eager       {median_microseconds(training.eager, STEPS):9.1f} us a step", flush=True)
        if GPU:
            graph = median_microseconds(training.captured(), STEPS)
            print(f"net {net}  PyTorch CUDA graph  {graph:9.1f} us a step", flush=True)


def dropout():
    x, dy = torch.randn(SHAPE, device=DEVICE, requires_grad=True), torch.randn(SHAPE, device=DEVICE)
    tensor_bytes, to = x.numel() * 4, torch.empty(SHAPE, device=DEVICE)
    rate = lambda tensors, microseconds: tensors * tensor_bytes / microseconds * 1e-3
    copy = median_microseconds(lambda i: to.copy_(dy), 10)
    print(f"device copy             {copy:9.1f} us  {rate(2, copy):6.0f} GB/s")
    for name in "dropout", "dropout2d", "alpha_dropout":
        function = getattr(F, name)
        both = median_microseconds(lambda i: torch.autograd.grad(function(x, 0.5, True), x, dy), 10)
        print(f"PyTorch {name:<13}   {both:9.1f} us  {rate(4, both):6.0f} GB/s  forward and backward", flush=True)


if __name__ == "__main__":
    device = torch.cuda.get_device_name() if GPU else "no GPU"
    print(f"# torch {torch.__version__}, CUDA {torch.version.cuda}, {device}")
    for part in sys.argv[1:] or ["steps", "dropout"]:
        {"steps": steps, "dropout": dropout}[part]()
