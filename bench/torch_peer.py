"""torch_peer - PyTorch's side of bench/peers and bench/race: the study's nets trained on the CPU, in processes of
their own, with whichever torch python3 or /usr/bin/python3 has.

A way to train is a number of processes, their threads, the layout of pictures and weights in memory ("contiguous" or
"channels_last"), and the mode: "eager", "bf16" (autocast) or "compiled" (torch.compile). Several processes are
DistributedDataParallel over gloo, a core each; with two threads each on two cores they are half as fast (PyTorch 1.13
and 2.15), so that is no way here.
"""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

BATCH, LR, MOMENTUM = 256, 0.01, 0.9
LAYOUTS = "contiguous", "channels_last"


class Way(NamedTuple):
    processes: int
    threads: int
    layout: str
    mode: str = "eager"

    def __str__(self):
        many = lambda count, what: f"{count} {what}{'' if count == 1 else 'es' if what[-1] == 's' else 's'}"
        how = many(self.processes, "process") if self.processes > 1 else many(self.threads, "thread")
        return f"PyTorch, {how}, {self.layout}" + ("" if self.mode == "eager" else f", {self.mode}")


def find_torch():
    """A Python that has torch, or None."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


def can_compile(python):
    """Whether its torch has torch.compile, and runs on this Python."""
    return subprocess.run([python, "-c", "import torch; torch.compile(torch.nn.Identity())"], check=False,
                          stderr=subprocess.DEVNULL).returncode == 0


def run(python, way, task, *arguments):
    """Runs one of the TASKS below in all processes of a way; the result of process 0. Once more if one of them fails,
    as gloo's threads now and then do at the end of a process."""
    for _ in range(2):
        result = run_once(python, way, task, *arguments)
        if result is not None:
            return result
    sys.exit(f"{way}: PyTorch failed")


def run_once(python, way, task, *arguments):
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000),
                   "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(way.processes)}
    command = [python, os.path.abspath(__file__), task, str(way.threads), way.layout, way.mode, *map(str, arguments)]
    processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE,
                                  stderr=None if rank == 0 else subprocess.DEVNULL, text=True)
                 for rank in range(way.processes)]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return None
    return json.loads(outputs[0].splitlines()[-1])


# --- in a process of a way ----------------------------------------------------------------------------------


class Trainer:
    """This process's part of the training of one net."""

    def __init__(self, net, seed, threads, layout, mode):
        import torch
        from pytorch import LeNet5

        self.torch, self.ranks, self.rank = torch, int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        self.mode = mode
        self.format = getattr(torch, {"contiguous": "contiguous_format"}.get(layout, layout))
        torch.set_num_threads(threads)
        torch.manual_seed(seed)  # equal weights; then masks of its own
        self.net = self.model = LeNet5(net).to(memory_format=self.format)
        torch.manual_seed(seed * 1000 + self.rank)
        if self.ranks > 1:
            torch.distributed.init_process_group("gloo", rank=self.rank, world_size=self.ranks)
            self.model = torch.nn.parallel.DistributedDataParallel(self.net, gradient_as_bucket_view=True)
        if mode == "compiled":
            self.model = torch.compile(self.model)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=LR, momentum=MOMENTUM)

    def step(self, images, labels):
        self.optimizer.zero_grad(set_to_none=True)
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.mode == "bf16"):
            loss = self.torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()

    def from_first(self, number):
        """The first process's number, once all are here."""
        value = self.torch.tensor([float(number)])
        if self.ranks > 1:
            self.torch.distributed.broadcast(value, 0)
        return value.item()


def measure_rate(threads, layout, mode, net, seconds):
    """Samples a second of all processes together, on batches that lie ready in memory, and the seconds of
    the first step."""
    trainer = Trainer(net, 1, threads, layout, mode)
    torch, count = trainer.torch, BATCH // trainer.ranks
    batches = [((torch.rand(count, 3, 32, 32) * 2 - 1).contiguous(memory_format=trainer.format),
                torch.randint(10, (count,))) for _ in range(16)]

    def steps(number):
        begin = time.perf_counter()
        for i in range(number):
            trainer.step(*batches[i % len(batches)])
        return time.perf_counter() - begin

    start = steps(1)
    steps(10)  # to warm up
    number = int(trainer.from_first(max(10, float(seconds) * 20 / steps(20))))
    elapsed = steps(number)
    return {"samples_per_second": number * count * trainer.ranks / elapsed, "version": torch.__version__,
            "start_seconds": start}


def read_split(torch, names, layout):
    """CIFAR-10's binary files as floats in [-1, 1], and labels. Pictures lie as the layout wants its batches."""
    records = torch.cat([torch.frombuffer(bytearray(open(name, "rb").read()), dtype=torch.uint8).view(-1, 3073)
                         for name in names])
    images = records[:, 1:].reshape(-1, 3, 32, 32).float() / 127.5 - 1
    if layout == "channels_last":
        images = images.permute(0, 2, 3, 1).contiguous()
    return images, records[:, 0].long()


def race(threads, layout, mode, net, seed, data, accuracy, most_epochs):
    """Trains until the test accuracy is reached: [[seconds of training, test accuracy] of each epoch].

    Shuffling and gathering the batches count, as they do in dtrain; turning bytes to floats, once before, does not.
    """
    trainer = Trainer(net, int(seed), threads, layout, mode)
    torch, ranks, rank = trainer.torch, trainer.ranks, trainer.rank
    view = (lambda images: images.permute(0, 3, 1, 2)) if layout == "channels_last" else (lambda images: images)
    images, labels = read_split(torch, [f"{data}/data_batch_{i}.bin" for i in range(1, 6)], layout)
    tests, answers = read_split(torch, [f"{data}/test_batch.bin"], layout)
    generator = torch.Generator().manual_seed(int(seed))

    def check():
        with torch.no_grad():
            right = sum((trainer.net(view(some)).argmax(1) == answer).sum().item()
                        for some, answer in zip(tests.split(1000), answers.split(1000)))
        return 100 * right / len(answers)

    epochs = []
    while len(epochs) < int(most_epochs):
        trainer.net.train()
        begin = time.perf_counter()
        for batch in torch.randperm(len(labels), generator=generator).split(BATCH):
            mine = batch.tensor_split(ranks)[rank]
            trainer.step(view(images.index_select(0, mine)), labels[mine])
        seconds = time.perf_counter() - begin
        trainer.net.eval()
        epochs.append([seconds, trainer.from_first(check() if rank == 0 else 0)])
        if epochs[-1][1] >= float(accuracy):
            break
    return epochs


TASKS = {"rate": measure_rate, "race": race}

if __name__ == "__main__":
    task_, threads_, layout_, mode_, *arguments_ = sys.argv[1:]
    result = TASKS[task_](int(threads_), layout_, mode_, *arguments_)
    if os.environ["RANK"] == "0":
        print(json.dumps(result), flush=True)
    if int(os.environ["WORLD_SIZE"]) > 1:
        import torch

        torch.distributed.destroy_process_group()
