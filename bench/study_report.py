"""study_report - what the runs of bench/study say: a record, the figures and the text.

`collect` reads the runs' run.json and metrics.jsonl, finished or not, into one record small enough to keep in the
repository. `draw` and `section` need that record alone. Sentences of the section are built from the numbers: where
the data contradict the study, they say so.
"""

import json
import math
import statistics
import sys

from measure import FIGURES, plot, table

NETS = {"A": "none", "B": "fully connected", "C": "convolutions", "D": "both"}
PUBLISHED = {"A": (100, 60.45), "B": (99.84, 61.47), "C": (57.04, None), "D": (50.93, None)}
RATES = ["0.05", "0.1", "0.2", "0.3", "0.4", "0.5"]  # of the sweep
DATA = {"cb57bdb6a70218f4": "a JPEG copy of CIFAR-10, whose pixels differ slightly from the original's"}  # by digest
LOSSES = 1.8, 1.0  # whose passing tells the speed: all four nets pass the first, A and B the second


# --- the record -----------------------------------------------------------------------------------------


def read_run(directory):
    """What one run has done so far, or None. Losses are thinned to the first 20 epochs and every fifth."""
    try:
        about = json.loads((directory / "run.json").read_text())
        lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    epochs = [json.loads(line) for line in lines if line.endswith("\n")]  # a torn last line is no epoch yet
    if not epochs:
        return None
    options, net = about["options"], about["net"]
    checks = [[e["epoch"], e["train_accuracy"], e["test_accuracy"]] for e in epochs if "test_accuracy" in e]
    return {
        "net": net["name"], "p_conv": net["p_conv"], "p_fc": net["p_fc"], "seed": options["seed"],
        "ranks": net["ranks"], "engine": net["engine"], "revision": about["revision"], "build": about["build"],
        "hosts": sorted(about["hosts"]), "data": about["data"]["xxh64"], "started": about["started"],
        "epochs": options["epochs"], "epoch": epochs[-1]["epoch"],
        "training_seconds": round(sum(e["seconds"] for e in epochs), 1),
        "epoch_seconds": round(statistics.median(e["seconds"] for e in epochs), 3),
        "checks": checks,
        "loss": [[e["epoch"], round(e["loss"], 4)] for e in epochs if e["epoch"] <= 20 or e["epoch"] % 5 == 0],
    }


def collect(directory):
    """All runs below a directory: {"seed1/A": ..., "sweep/fc-0.1": ...}, in the order they are run."""
    names = [f"{seed.name}/{net}" for seed in sorted(directory.glob("seed*")) for net in NETS]
    names += ["sweep/none"] + [f"sweep/{where}-{p}" for where in ("fc", "conv") for p in RATES]
    runs = {name: run for name in names if (run := read_run(directory / name))}
    for name in runs:
        if not name.startswith("seed1/"):
            del runs[name]["loss"]  # neither drawn nor told
    if "seed1/A" not in runs:
        sys.exit(f"study: {directory}: no run has finished an epoch there yet")
    data = {run["data"] for run in runs.values()}
    return {"faults": [f"runs with different data: {listed(sorted(data))}"] if len(data) > 1 else [], "runs": runs}


# --- numbers --------------------------------------------------------------------------------------------


def best(run, column, within=None):
    """(accuracy, epoch) of the best check; column 1 is of the training set, 2 of the test set."""
    checks = [check for check in run["checks"] if within is None or check[0] <= within]
    return max(((check[column], -check[0]) for check in checks), default=None)


def best_test(run, within=None):
    top = best(run, 2, within)
    return top and top[0]


def first_below(run, loss):
    return next((epoch for epoch, value in run["loss"] if value < loss), None)


def seeds(record):
    """The seeds that have all four nets: [{"A": run, ...}, ...]."""
    names = sorted({name.split("/")[0] for name in record["runs"] if name.startswith("seed")})
    return [{net: record["runs"][f"{name}/{net}"] for net in NETS} for name in names
            if all(f"{name}/{net}" in record["runs"] for net in NETS)]


def common_epoch(record):
    """The last epoch that every net of every seed was checked at."""
    shared = [{check[0] for check in run["checks"]} for nets in seeds(record) for run in nets.values()]
    return max(set.intersection(*shared), default=None) if shared else None


def at(run, epoch, column):
    return next(check[column] for check in run["checks"] if check[0] == epoch)


def is_done(run):
    return run["epoch"] >= run["epochs"]


def unfinished(record):
    return [f"{name} at epoch {run['epoch']} of {run['epochs']}" for name, run in record["runs"].items()
            if not is_done(run)]


# --- figures --------------------------------------------------------------------------------------------


class Curves:
    """A run of the record, as launch/plot draws runs."""

    def __init__(self, run):
        self.net, self.last = run["net"], run["epoch"]
        self.label = f"{self.net} - {plot.DROPOUT[self.net]}"
        self.values = {"loss": run["loss"], "train_accuracy": [check[:2] for check in run["checks"]],
                       "test_accuracy": [[check[0], check[2]] for check in run["checks"]]}

    def points(self, key):
        return self.values[key]


def from_ten(lowest):
    """The range of heights from the round number below."""
    return f"{lowest // 10 * 10:.0f}:*<100"


def draw_spread(record, epoch):
    """Test accuracy of each net: the mean of the seeds, in the band from the least to the most."""
    everyone = seeds(record)
    epochs = [check[0] for check in everyone[0]["A"]["checks"] if check[0] <= epoch]
    tests = {net: {e: [at(nets[net], e, 2) for nets in everyone] for e in epochs} for net in NETS}
    figure = plot.Figure(f"Test accuracy (%): mean and range of {len(everyone)} seeds", epoch,
                         heights=from_ten(min(min(v) for values in tests.values() for v in values.values())))
    for net, values in tests.items():
        figure.add_band([(e, min(v), max(v)) for e, v in values.items()], plot.COLORS[net])
        figure.add([(e, statistics.mean(v)) for e, v in values.items()], plot.COLORS[net],
                   f"{net} - {plot.DROPOUT[net]}")
    return figure


def sweep_points(record, where):
    """(p, run) of every p that is done; the net without dropout is p = 0."""
    runs = record["runs"]
    names = [("0", "sweep/none")] + [(p, f"sweep/{where}-{p}") for p in RATES]
    return [(float(p), runs[name]) for p, name in names if name in runs and is_done(runs[name])]


def draw_sweep(record):
    runs = [run for where in ("fc", "conv") for _, run in sweep_points(record, where)]
    figure = plot.Figure(f"Accuracy (%) on the test set within {runs[0]['epochs']} epochs", 0.5,
                         heights=from_ten(min(run["checks"][-1][2] for run in runs)), xlabel="dropout rate p")
    for where, net in ("fc", "B"), ("conv", "C"):
        points = sweep_points(record, where)
        figure.add([(p, best_test(run)) for p, run in points], plot.COLORS[net], f"{where}, best check")
        figure.add([(p, run["checks"][-1][2]) for p, run in points], plot.COLORS[net], f"{where}, last check",
                   dashed=True)
    return figure


def draw(record, directory=FIGURES):
    """The SVG figures of what is there."""
    runs = [Curves(run) for name, run in record["runs"].items() if name.startswith("seed1/")]
    colors = plot.assign_colors(runs)
    figures = {"loss": plot.draw_loss(runs, colors), "accuracy": plot.draw_accuracy(runs, colors)}
    if len(seeds(record)) > 1 and common_epoch(record):
        figures["spread"] = draw_spread(record, common_epoch(record))
    if len(sweep_points(record, "fc")) + len(sweep_points(record, "conv")) > 2:
        figures["sweep"] = draw_sweep(record)
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure.curves:
            plot.write(directory / f"{name}.svg", plot.render(figure.script(plot.TERMINALS["svg"])))


# --- the section ----------------------------------------------------------------------------------------


def listed(names):
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def compare_with_published(nets):
    rows = []
    for net, run in nets.items():
        (train, _), (test, epoch) = best(run, 1), best(run, 2)
        published = " / ".join("-" if value is None else f"{value:g}" for value in PUBLISHED[net])
        last = run["checks"][-1]
        rows.append([net, NETS[net], published, f"{train:.2f} / {test:.2f}", str(-epoch),
                     f"{last[1]:.2f} / {last[2]:.2f}", number(last[1] - last[2]), str(run["epoch"]),
                     number(run["epoch_seconds"])])
    return table(["net", "dropout", "published: best train / best test", "here: best train / best test",
                  "best test at epoch", "last check: train / test", "train - test", "epochs", "seconds an epoch"],
                 rows)


def conclude_speed(nets):
    """Dropout nets converge slower?"""
    reached = {net: [first_below(run, loss) or math.inf for loss in LOSSES] for net, run in nets.items()}
    slower = [net for net in "BCD" if reached[net] > reached["A"]]
    verdict = "Confirmed" if len(slower) == 3 else f"Only in part, for {listed(slower)}" if slower else "Not so"
    when = [", ".join(f"{net} {'never' if epochs[i] == math.inf else epochs[i]}" for net, epochs in reached.items())
            for i in range(len(LOSSES))]
    peaks = ", ".join(f"{net} {-best(run, 2)[1]}" for net, run in nets.items())
    falls = "; below ".join(f"{loss} in epoch {epochs}" for loss, epochs in zip(LOSSES, when))
    return (f"**Nets with dropout converge slower.** {verdict}. The training loss first falls below {falls} "
            "(past epoch 20 every fifth epoch is looked at). The best "
            f"check on the test set comes at epoch {peaks}.")


def conclude_generalisation(nets):
    """They generalise better?"""
    gap = {net: run["checks"][-1][1] - run["checks"][-1][2] for net, run in nets.items()}
    top = {net: best_test(run) for net, run in nets.items()}
    last = {net: run["checks"][-1][2] for net, run in nets.items()}
    better = {name: [net for net in "BCD" if values[net] > values["A"]] for name, values in
              (("best", top), ("last", last))}
    smaller = [net for net in "BCD" if gap[net] < gap["A"]]
    if len(smaller) == len(better["best"]) == len(better["last"]) == 3:
        verdict = "Confirmed"
    elif smaller or better["best"] or better["last"]:
        verdict = "True in one sense and not in another"
    else:
        verdict = "Not so"
    shown = lambda values: ", ".join(f"{net} {value:.2f}" for net, value in values.items())
    return (f"**They generalise better.** {verdict}. The gap between training and test accuracy at the last check is "
            f"smaller than A's for {listed(smaller)} ({shown(gap)} points). But what counts is the accuracy on new "
            f"pictures: the best check beats A's for {listed(better['best'])} ({shown(top)}), the last check for "
            f"{listed(better['last'])} ({shown(last)}).")


def conclude_stall(nets):
    """Dropout in the convolutions stalls the loss?"""
    final, fallen = {}, {}
    for net, run in nets.items():
        final[net] = run["loss"][-1][1]
        half = next(loss for epoch, loss in run["loss"] if epoch >= run["epoch"] / 2)
        fallen[net] = half - final[net]
    stalled = [net for net in "CD" if final[net] > max(final["A"], final["B"]) and fallen[net] < 0.05 * final[net]]
    verdict = "Confirmed" if len(stalled) == 2 else f"Only in {stalled[0]}" if stalled else "Not so"
    known = listed(f"{nets[net]['checks'][-1][1]:.1f}% ({net})" for net in stalled)
    return (f"**Dropout in the convolutions stalls the loss.** {verdict}. The last training loss is "
            f"{listed(f'{net} {loss:.3f}' for net, loss in final.items())}, where guessing has 2.303; over the second "
            f"half of the epochs it fell by {listed(f'{fallen[net]:.3f} ({net})' for net in 'CD')}."
            + (f" Even with all units in place, as at a check, {known} of the training set are right: such a net "
               "underfits." if stalled else ""))


def describe_spread(record):
    everyone, epoch = seeds(record), common_epoch(record)
    if len(everyone) < 2 or not epoch:
        return []
    rows = []
    for net in NETS:
        tops = [best_test(nets[net], epoch) for nets in everyone]
        lasts = [at(nets[net], epoch, 2) for nets in everyone]
        rows.append([net] + [f"{statistics.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (tops, lasts)])
    lead = [best_test(nets["B"], epoch) - best_test(nets["A"], epoch) for nets in everyone]
    ahead = sum(value > 0 for value in lead)
    return ["### Other seeds", "",
            f"Test accuracy, %, of {len(everyone)} seeds within the first {epoch} epochs: mean (least to most).", "",
            table(["net", "best check", f"check at epoch {epoch}"], rows),
            f"B's best check is above A's for {ahead} of {len(everyone)} seeds, by {min(lead):+.2f} to "
            f"{max(lead):+.2f} points.", "", "![Test accuracy over the seeds](figures/spread.svg)", ""]


def describe_sweep(record):
    points = {where: dict(sweep_points(record, where)) for where in ("fc", "conv")}
    if len(points["fc"]) + len(points["conv"]) <= 2:
        return []
    rates = sorted({p for of in points.values() for p in of})
    cell = lambda run: f"{best_test(run):.2f} / {run['checks'][-1][2]:.2f}" if run else "-"
    rows = [[f"{p:g}", cell(points["fc"].get(p)), cell(points["conv"].get(p))] for p in rates]
    one = next(run for of in points.values() for run in of.values())
    tops = {where: max(of, key=lambda p: best_test(of[p])) for where, of in points.items() if of}
    finals = {where: max(of, key=lambda p: of[p]["checks"][-1][2]) for where, of in points.items() if of}
    kinds = {"fc": "fully connected (B)", "conv": "convolutions (C)"}
    best_of = "; ".join(f"{kinds[where]}: p = {tops[where]:g} by the best check, {finals[where]:g} by the last"
                        for where in tops)
    return ["### Other rates of dropout", "",
            f"Test accuracy, %, within {one['epochs']} epochs, best check / last check, a check every "
            f"{one['checks'][0][0]}; one seed. p = 0 is net A; what was not run is -.", "", table(["p", *kinds.values()], rows), f"The best rate is, for {best_of}.", "",
            "![Test accuracy over the dropout rate](figures/sweep.svg)", ""]


def about(record):
    """Where the numbers come from, a line each."""
    runs = list(record["runs"].values())
    several = lambda key: ", ".join(sorted({str(run[key]) for run in runs}))
    hosts = ", ".join(sorted({host for run in runs for host in run["hosts"]}))
    data = ", ".join(sorted({DATA.get(run["data"], f"data of digest {run['data']}") for run in runs}))
    waiting = unfinished(record)
    return [f"Data: {data}.",
            f"dtrain {several('revision')} ({several('build')}), engine {several('engine')}, ranks: {several('ranks')}, on "
            f"{hosts}; started {min(run['started'] for run in runs)[:10]}.",
            f"Not finished: {'; '.join(waiting)}." if waiting else "All runs are finished."]


def section(record):
    """Markdown for bench/RESULTS.md; the figures lie in figures/ beside it."""
    nets = {name[-1]: run for name, run in record["runs"].items() if name.startswith("seed1/") and run["checks"]}
    lines = ["`bench/study`. " + " ".join(about(record)), ""]
    if len(nets) < len(NETS):
        return "\n".join([*lines, "Not all four nets have been checked yet.", ""])
    lines += ["Accuracies in %. The best test check is chosen on the test set itself and so flatters; the last is not.",
              "The seconds are the median epoch's, of training alone; other runs may have shared the machine. A run that was "
              "resumed is described by its last part.", "",
              compare_with_published(nets),
              "![Training loss of the four nets](figures/loss.svg)", "![Accuracy of the four nets](figures/accuracy.svg)",
              "", "What the study concluded, and what these runs say:", "",
              "- " + conclude_speed(nets), "- " + conclude_generalisation(nets), "- " + conclude_stall(nets), ""]
    return "\n".join(lines + describe_spread(record) + describe_sweep(record))
