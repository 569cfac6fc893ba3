#!/usr/bin/env python3
"""The same weights, metrics and files, bit for bit, on any number of ranks."""
# needs: dtrain

from dtrain import content, metrics, run
from tap import check, finish

# 6 batches of 64 an epoch; the last has 15 pictures, less than a tile: one rank has them, the others none.
DATA = ["--data", "synthetic:335+70", "--batch-size", "64"]
TRAIN = [*DATA, "--epochs", "3", "--eval-every", "2", "--lr", "0.05", "--lr-step", "2"]


def same(name, one, other, directories):
    """Both runs ended well, with the same digest, metrics and models in their directories."""
    first, second = directories
    check(one.code == other.code == 0 and one.digest and one.digest == other.digest,
          f"{name}: the digest", f"{one}{other}")
    check(metrics(first) == metrics(second) and len(metrics(first)) > 0, f"{name}: the metrics",
          f"{metrics(first)}\n{metrics(second)}")
    check(content(first, "model-best.safetensors") == content(second, "model-best.safetensors"),
          f"{name}: the best model")


def nets():
    digests = set()
    for net, ranks in ("A", (2, 3, 4, 8, 20)), ("B", (3,)), ("C", (2,)), ("D", (2, 3, 4, 8, 20)):
        one = run(1, *TRAIN, "--net", net, "--out", f"{net}-1")
        lines = metrics(f"{net}-1")
        check([(line["epoch"], line["step"], "test_accuracy" in line) for line in lines] ==
              [(1, 6, False), (2, 12, True), (3, 18, True)],
              f"net {net}: 3 epochs of 6 steps, checked after the second and the last", lines)
        rates = [line["lr"] for line in lines]
        check(rates == [0.05, 0.05, 0.025], f"net {net}: the learning rate decays", rates)
        digests.add(one.digest)
        for np in ranks:
            other = run(np, *TRAIN, "--net", net, "--out", f"{net}-{np}")
            same(f"net {net} on {np} ranks", one, other, (f"{net}-1", f"{net}-{np}"))
    check(len(digests) == 4, "the four nets differ", digests)
    other = run(2, *TRAIN, "--net", "D", "--seed", "2", "--out", "seed-2")
    check(other.code == 0 and other.digest not in digests, "and so do seeds", other)


def evaluation():
    for np in 3, 8:
        out = f"all-{np}"
        other = run(np, *TRAIN, "--net", "D", "--eval-on", "all", "--out", out)
        check(metrics(out) == metrics("D-1") and other.code == 0,
              f"{np} ranks evaluate as rank 0 does alone", f"{metrics(out)}\n{metrics('D-1')}")


def corners():
    """Batches and sets that do not suit the number of ranks."""
    for name, ranks, options in (
        ("a batch larger than the set", 3, ["--data", "synthetic:335+70", "--batch-size", "1000"]),
        ("batches of one picture", 2, ["--data", "synthetic:10+1", "--batch-size", "1"]),
        ("a set of 5 pictures, most ranks without one", 5, ["--data", "synthetic:5+1", "--batch-size", "4"]),
        ("64 ranks, most without pictures", 64, ["--data", "synthetic:335+70", "--batch-size", "200"]),
    ):
        options += ["--net", "D", "--epochs", "2", "--eval-on", "all"]
        one = run(1, *options, "--out", f"{name}-1")
        other = run(ranks, *options, "--out", f"{name}-{ranks}")
        same(f"{name}, on {ranks} ranks", one, other, (f"{name}-1", f"{name}-{ranks}"))


nets()
evaluation()
corners()
finish()
