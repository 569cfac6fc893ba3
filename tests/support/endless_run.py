"""A run that would go on for ever, and what a fault must leave of it."""

from dtrain import metrics, progress, run, start
from tap import check

TRAIN = ["--net", "D", "--data", "synthetic:335+70", "--batch-size", "64", "--lr", "0.05", "--eval-every", "2"]
ENDLESS = [*TRAIN, "--epochs", "1000000"]


def go_on(np, out, *options):
    """An endless run, begun and surely past its first checkpoint."""
    running = start(np, *ENDLESS, "--out", out, *options)
    running.wait_for("epoch: 2 ")
    return running


def unharmed(name, out, *options, np=3, seen=""):
    """What the fault left in directory `out` goes on, on other ranks, to the weights of an undisturbed run. `seen` is
    for whom this fails: what came before."""
    end = str(int(progress(out)["step"]) + 9)
    resumed = run(np, *ENDLESS, *options, "--out", out, "--resume", "--max-steps", end)
    whole = run(1, *ENDLESS, *options, "--out", f"{out}-undisturbed", "--max-steps", end)
    check(resumed.digest and resumed.digest == whole.digest and metrics(out) == metrics(f"{out}-undisturbed"),
          f"{name}: --resume goes on as if nothing had been", f"{seen}{resumed}{whole}")
