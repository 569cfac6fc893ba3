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
    """All runs below a directory: {"seed1/A": ..., "sweep1/fc-0.1": ...}, in the order they are run."""
    numbers = sorted({int(path.name.removeprefix("seed")) for path in directory.glob("seed*")})
    names = [f"seed{seed}/{net}" for seed in numbers for net in NETS]
    names += [f"sweep{seed}/{name}" for seed in numbers
              for name in ("none", *(f"{where}-{p}" for where in ("fc", "conv") for p in RATES))]
    runs = {name: run for name in names if (run := read_run(directory / name))}
    for name in runs:
        if name.startswith("sweep"):
            del runs[name]["loss"]  # neither drawn nor told
    if "seed1/A" not in runs:
        sys.exit(f"study: {directory}: no run has finished an epoch there yet")
    data = {run["data"] for run in runs.values()}
    return {"faults": [f"runs with different data: {listed(sorted(data))}"] if len(data) > 1 else [], "runs": runs}


# --- numbers --------------------------------------------------------------------------------------------


def best(run, column):
    """(accuracy, epoch) of the best check; column 1 is of the training set, 2 of the test set."""
    top, minus_epoch = max((check[column], -check[0]) for check in run["checks"])
    return top, -minus_epoch


def best_test(run):
    return best(run, 2)[0]


def last_test(run):
    return run["checks"][-1][2]


def gap(run):
    """Points from test to training accuracy at the last check."""
    return run["checks"][-1][1] - last_test(run)


def first_below(run, loss):
    return next((epoch for epoch, value in run["loss"] if value < loss), math.inf)


def is_done(run):
    return run["epoch"] >= run["epochs"]


def seeds(record):
    """The seeds whose four nets are done, and as long as the first's, [{"A": run, ...}, ...]; with none, the first as
    far as it has come."""
    names = dict.fromkeys(name.split("/")[0] for name in record["runs"] if name.startswith("seed"))
    begun = [{net: record["runs"][f"{name}/{net}"] for net in NETS} for name in names
             if all(record["runs"].get(f"{name}/{net}", {}).get("checks") for net in NETS)]
    whole = [nets for nets in begun if all(is_done(run) for run in nets.values())]
    return [nets for nets in whole if nets["A"]["epochs"] == whole[0]["A"]["epochs"]] or begun[:1]


def of_net(record, net, value):
    """A value of one net's run, for each seed."""
    return [value(nets[net]) for nets in seeds(record)]


def mean_of(record, value):
    return {net: statistics.mean(of_net(record, net, value)) for net in NETS}


def sweep_points(record, where):
    """{p: its runs, one a seed}, of the runs that are done; the net without dropout is p = 0."""
    points = {}
    for name, run in record["runs"].items():
        folder, _, kind = name.partition("/")
        if folder.startswith("sweep") and is_done(run) and kind in ("none", *(f"{where}-{p}" for p in RATES)):
            points.setdefault(float(kind.rpartition("-")[2]) if kind != "none" else 0, []).append(run)
    return dict(sorted(points.items()))


def swept(record):
    return {where: points for where in ("fc", "conv") if len(points := sweep_points(record, where)) > 1}


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

    def band(self, _):
        return []


def from_ten(lowest):
    """The range of heights from the round number below."""
    return f"{lowest // 10 * 10:.0f}:*<100"


def add_spread(figure, values, color, title, dashed=False):
    """{x: a value a seed} as the curve of the mean, in the band from the least to the most."""
    if any(len(of) > 1 for of in values.values()):
        figure.add_band([(x, min(of), max(of)) for x, of in values.items()], color)
    figure.add([(x, statistics.mean(of)) for x, of in values.items()], color, title, dashed)


def draw_training(runs, colors):
    """As the study drew it: the accuracy on the training set alone."""
    figure = plot.Figure("Accuracy (%) on the training set", max(run.last for run in runs), heights="0:*<100")
    for run in runs:
        figure.add(run.points("train_accuracy"), colors[run], run.label)
    return figure


def draw_spread(record):
    tests = {}
    for net in NETS:
        for checks in of_net(record, net, lambda run: run["checks"]):
            for epoch, _, test in checks:
                tests.setdefault(net, {}).setdefault(epoch, []).append(test)
    lowest = min(min(of) for values in tests.values() for of in values.values())
    figure = plot.Figure(f"Accuracy (%) on the test set: mean and range of {len(seeds(record))} seeds",
                         max(tests["A"]), heights=from_ten(lowest))
    for net, values in tests.items():
        add_spread(figure, values, plot.COLORS[net], f"{net} - {plot.DROPOUT[net]}")
    return figure


def draw_sweep(record):
    points = swept(record)
    runs = [run for of in points.values() for same in of.values() for run in same]
    figure = plot.Figure(f"Accuracy (%) on the test set within {runs[0]['epochs']} epochs", 0.5,
                         heights=from_ten(min(map(last_test, runs))), xlabel="dropout rate p")
    for where, net in ("fc", "B"), ("conv", "C"):
        for value, name in (best_test, "best check"), (last_test, "last check"):
            values = {p: list(map(value, same)) for p, same in points.get(where, {}).items()}
            add_spread(figure, values, plot.COLORS[net], f"{where}, {name}", dashed=value is last_test)
    return figure


def draw(record, directory=FIGURES):
    """The SVG figures of what is there."""
    runs = [Curves(run) for name, run in record["runs"].items() if name.startswith("seed1/")]
    colors = plot.assign_colors(runs)
    figures = {"loss": plot.draw_loss(runs, colors), "training": draw_training(runs, colors),
               "accuracy": plot.draw_accuracy(runs, colors)}
    if len(seeds(record)) > 1:
        figures["spread"] = draw_spread(record)
    if swept(record):
        figures["sweep"] = draw_sweep(record)
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure.curves:
            plot.write(directory / f"{name}.svg", plot.render(figure.script(plot.TERMINALS["svg"])))


# --- the section ----------------------------------------------------------------------------------------


def listed(names):
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def number(value):
    return "-" if value is None else f"{value:.2f}"


def mean_and_range(values):
    return f"{statistics.mean(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def from_to(values):
    """Epochs, of which some may be infinite: never reached."""
    ends = ["never" if value == math.inf else str(value) for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def by_net(values, shape="{:.2f}"):
    return ", ".join(f"{net} {shape.format(value)}" for net, value in values.items())


def compare_with_published(record):
    rows = []
    for net in NETS:
        of = lambda value: of_net(record, net, value)
        rows.append([net, NETS[net], " / ".join("-" if value is None else f"{value:g}" for value in PUBLISHED[net]),
                     mean_and_range(of(lambda run: best(run, 1)[0])), mean_and_range(of(best_test)),
                     from_to(of(lambda run: best(run, 2)[1])), mean_and_range(of(last_test)), mean_and_range(of(gap))])
    return table(["net", "dropout", "published: best train / best test", "best train", "best test", "at epoch",
                  "last test", "last train - test"], rows)


def conclude_speed(record):
    """Dropout nets converge slower?"""
    reached = {net: [of_net(record, net, lambda run: first_below(run, loss)) for loss in LOSSES] for net in NETS}
    median = {net: [statistics.median(epochs) for epochs in of] for net, of in reached.items()}
    slower = [net for net in "BCD" if median[net] > median["A"]]
    verdict = "Confirmed" if len(slower) == 3 else f"Only in part, for {listed(slower)}" if slower else "Not so"
    when = [by_net({net: from_to(epochs[i]) for net, epochs in reached.items()}, "{}") for i in range(len(LOSSES))]
    peaks = by_net({net: from_to(of_net(record, net, lambda run: best(run, 2)[1])) for net in NETS}, "{}")
    falls = "; below ".join(f"{loss} in epoch {epochs}" for loss, epochs in zip(LOSSES, when))
    return (f"**Nets with dropout converge slower.** {verdict}. The training loss first falls below {falls} "
            f"(past epoch 20 every fifth epoch is looked at). The best check on the test set comes at epoch {peaks}.")


def conclude_generalisation(record):
    """They generalise better?"""
    gaps, tops, lasts = (mean_of(record, value) for value in (gap, best_test, last_test))
    smaller = [net for net in "BCD" if gaps[net] < gaps["A"]]
    better = [[net for net in "BCD" if values[net] > values["A"]] for values in (tops, lasts)]
    if all(len(nets) == 3 for nets in (smaller, *better)):
        verdict = "Confirmed"
    elif smaller or any(better):
        verdict = "True in one sense and not in another"
    else:
        verdict = "Not so"
    return (f"**They generalise better.** {verdict}. The gap between training and test accuracy at the last check is "
            f"smaller than A's for {listed(smaller)} ({by_net(gaps)} points). But what counts is the accuracy on new "
            f"pictures: the best check beats A's for {listed(better[0])} ({by_net(tops)}), the last check for "
            f"{listed(better[1])} ({by_net(lasts)}).")


def conclude_stall(record):
    """Dropout in the convolutions stalls the loss?"""
    half = lambda run: next(loss for epoch, loss in run["loss"] if epoch >= run["epoch"] / 2)
    final = mean_of(record, lambda run: run["loss"][-1][1])
    fallen = mean_of(record, lambda run: half(run) - run["loss"][-1][1])
    train = mean_of(record, lambda run: run["checks"][-1][1])
    stalled = [net for net in "CD" if final[net] > max(final["A"], final["B"]) and fallen[net] < 0.05 * final[net]]
    verdict = "Confirmed" if len(stalled) == 2 else f"Only in {stalled[0]}" if stalled else "Not so"
    known = listed(f"{train[net]:.1f}% ({net})" for net in stalled)
    return (f"**Dropout in the convolutions stalls the loss.** {verdict}. The last training loss is "
            f"{listed(f'{net} {loss:.3f}' for net, loss in final.items())}, where guessing has 2.303; over the second "
            f"half of the epochs it fell by {listed(f'{fallen[net]:.3f} ({net})' for net in 'CD')}."
            + (f" Even with all units in place, as at a check, {known} of the training set are right: such a net "
               "underfits." if stalled else ""))


def compare_in_pairs(record):
    """Net B against net A, seed by seed."""
    everyone = seeds(record)
    if len(everyone) < 2:
        return []
    rows, leads = [], {"best": [], "last": []}
    for nets in everyone:
        cells = [str(nets["A"]["seed"])]
        for name, value in ("best", best_test), ("last", last_test):
            a, b = value(nets["A"]), value(nets["B"])
            leads[name].append(b - a)
            cells += [f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"]
        rows.append(cells)
    told = "; at the ".join(f"{name} check B is ahead of A for {sum(value > 0 for value in lead)} of {len(lead)} "
                            f"seeds, by {statistics.mean(lead):+.2f} points on average" for name, lead in leads.items())
    return ["### A against B, seed by seed", "",
            "Both nets of a seed see the same pictures in the same order, from the same first weights. Test accuracy, "
            "%.", "",
            table(["seed", "A, best", "B, best", "B - A", "A, last", "B, last", "B - A"], rows),
            f"At the {told}.", "", "![Test accuracy over the seeds](figures/spread.svg)", ""]


def describe_sweep(record):
    points = swept(record)
    if not points:
        return []
    rates = sorted({p for of in points.values() for p in of})
    one, *_ = (run for of in points.values() for same in of.values() for run in same)
    count = max(len(same) for of in points.values() for same in of.values())
    kinds = {where: name for where, name in (("fc", "fully connected (B)"), ("conv", "convolutions (C)"))
             if where in points}
    cell = lambda where, p, value: mean_and_range([*map(value, points[where][p])]) if p in points[where] else "-"
    rows = [[f"{p:g}", *(cell(where, p, value) for where in kinds for value in (best_test, last_test))] for p in rates]
    top = lambda where, value: max(points[where], key=lambda p: statistics.mean(map(value, points[where][p])))
    best_of = "; ".join(f"{name}: p = {top(where, best_test):g} by the best check, "
                        f"{top(where, last_test):g} by the last" for where, name in kinds.items())
    return ["### Other rates of dropout", "",
            f"Test accuracy, %, within {one['epochs']} epochs, a check every {one['checks'][0][0]}; seeds: {count}, "
            "their mean (least to most). p = 0 is net A; what was not run is -.", "",
            table(["p", *(f"{name}, {check} check" for name in kinds.values() for check in ("best", "last"))], rows),
            f"The best rate is, for {best_of}.", "", "![Test accuracy over the dropout rate](figures/sweep.svg)", ""]


def about(record):
    """Where the numbers come from, a line each."""
    runs = list(record["runs"].values())
    several = lambda key: ", ".join(sorted({str(run[key]) for run in runs}))
    hosts = ", ".join(sorted({host for run in runs for host in run["hosts"]}))
    data = ", ".join(sorted({DATA.get(run["data"], f"data of digest {run['data']}") for run in runs}))
    waiting = unfinished(record)
    return [f"Data: {data}.",
            f"dtrain {several('revision')} ({several('build')}), engine {several('engine')}, ranks: "
            f"{several('ranks')}, on {hosts}; started {min(run['started'] for run in runs)[:10]}.",
            f"Not finished: {'; '.join(waiting)}." if waiting else "All runs are finished."]


def section(record):
    """Markdown for bench/RESULTS.md; the figures lie in figures/ beside it."""
    lines = ["`bench/study`. " + " ".join(about(record)), ""]
    everyone = seeds(record)
    if not everyone:
        return "\n".join([*lines, "Not all four nets have been checked yet.", ""])
    epochs = {run["epoch"] for nets in everyone for run in nets.values()}
    each = by_net({net: statistics.median(of_net(record, net, lambda run: run["epoch_seconds"])) for net in NETS})
    lines += [f"Accuracies in %, after {from_to(epochs)} epochs; seeds: {len(everyone)}, their mean (least to most). "
              "The best test check is chosen on the test set itself and so flatters; the last is not. Figures without "
              f"a range are of the first seed. The median epoch took, of training alone, {each} s; other work may have "
              "shared the machine.",
              "", compare_with_published(record),
              "![Training loss of the four nets](figures/loss.svg)",
              "![Training accuracy of the four nets](figures/training.svg)",
              "![Training and test accuracy of the four nets](figures/accuracy.svg)",
              "", "What the study concluded, and what these runs say:", "",
              "- " + conclude_speed(record), "- " + conclude_generalisation(record), "- " + conclude_stall(record), ""]
    return "\n".join(lines + compare_in_pairs(record) + describe_sweep(record))
