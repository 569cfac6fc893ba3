#!/usr/bin/env python3
"""launch/plot: figures of runs and studies, whatever their files and names are."""
# needs: dtrain

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as xml

from launching import HOSTILE, LAUNCH, SCRATCH, fails, is_png, launch, said
from tap import check, finish, skip_all


def make_run(name, net, epochs, tail=""):
    """A run's directory as dtrain leaves it, without the weights."""
    directory = SCRATCH / name
    directory.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        line = {
            "epoch": epoch,
            "step": epoch,
            "loss": 2 / epoch,
            "lr": 0.01,
            "seconds": 1,
            "images_per_second": 9,
        }
        if epoch % 2 == 0:
            line.update(train_accuracy=40 + epoch, test_accuracy=30 + epoch, test_loss=2)
        lines.append(json.dumps(line) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines) + tail)
    if net:
        (directory / "run.json").write_text(json.dumps({"net": {"name": net}}))
    return directory


class Picture:
    """What an SVG of gnuplot's shows."""

    def __init__(self, path):
        tree = xml.parse(path)
        self.text = [
            "".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")
        ]
        uses = [
            use.get("{http://www.w3.org/1999/xlink}href")
            for use in tree.iter("{http://www.w3.org/2000/svg}use")
        ]
        self.markers, self.open_markers = uses.count("#gpPt6"), uses.count("#gpPt5") - 1  # which gpPt6 is made of


def test_plot_one():
    run = make_run("one", "B", 6)
    done = launch("plot", run)
    check(done.returncode == 0 and str(run) in done.stdout, "plot: draws a run, says where", said(done))
    loss, accuracy = Picture(run / "loss.svg"), Picture(run / "accuracy.svg")
    check(
        "Net B - fc: training loss (cross-entropy)" in loss.text, "plot: the title names the net", loss.text
    )
    check(loss.markers == 6, "plot: a loss an epoch", loss.markers)
    check(accuracy.markers == accuracy.open_markers == 3 + 1,
          "plot: accuracies at the checks, and the key, of another mark each",
          (accuracy.markers, accuracy.open_markers))
    check(
        {"training set", "test set"} <= set(accuracy.text),
        "plot: the key tells the two sets apart",
        accuracy.text,
    )
    check(is_png(run / "loss.png") and is_png(run / "accuracy.png"), "plot: PNGs as well")
    check(
        sorted(os.listdir(run))
        == ["accuracy.png", "accuracy.svg", "loss.png", "loss.svg", "metrics.jsonl", "run.json"],
        "plot: leaves nothing else",
        os.listdir(run),
    )


def test_plot_study():
    for net in "ABCD":
        make_run(f"study/{net}", net, 4)
    done = launch("plot", "--", SCRATCH / "study")
    picture = Picture(SCRATCH / "study/accuracy.svg")
    names = {"A - no dropout", "B - fc", "C - conv", "D - conv + fc"}
    check(
        done.returncode == 0 and names <= set(picture.text),
        "plot: a study's nets in one figure",
        picture.text,
    )
    shutil.rmtree(SCRATCH / "study/C")
    check(launch("plot", SCRATCH / "study").returncode == 0, "plot: a study of some of the nets")
    launch("plot", "-o", "both", SCRATCH / "one", SCRATCH / "study/B")
    picture = Picture(SCRATCH / "both/loss.svg")
    check(
        f"B - fc, {SCRATCH / 'one'}" in picture.text, "plot: two runs of a net are told apart", picture.text
    )


def test_plot_seeds():
    """Of several nets in one job, and of a job a net."""
    for study, place in ("seeds", "seed{seed}/{net}"), ("seeds-a-net", "{net}/seed{seed}"):
        for net in "AD":
            for seed in 1, 2:
                make_run(f"{study}/{place.format(net=net, seed=seed)}", net, 4)
        done = launch("plot", SCRATCH / study)
        text = Picture(SCRATCH / study / "accuracy.svg").text if done.returncode == 0 else ""
        check({"A - no dropout, 2 seeds", "D - conv + fc, 2 seeds"} <= set(text), f"plot: a study of {place}",
              f"{text}\n{said(done)}")
    make_run("seeds/A", "A", 4)
    done = launch("plot", SCRATCH / "seeds")
    text = Picture(SCRATCH / "seeds" / "accuracy.svg").text
    check({"A - no dropout", "A - no dropout, 2 seeds", "D - conv + fc, 2 seeds"} <= set(text),
          "plot: two studies in one directory, of which neither hides the other", f"{text}\n{said(done)}")


def test_plot_odd():
    run = make_run("torn", "D", 3, tail='{"epoch":4,"step":4,"lo')
    check(
        launch("plot", run).returncode == 0 and Picture(run / "loss.svg").markers == 3,
        "plot: a torn last line",
    )
    run = make_run("null", "D", 2, tail='{"epoch":3,"step":3,"loss":null,"lr":0.01}\n{"epoch":4,"loss":1}\n')
    check(
        launch("plot", run).returncode == 0 and Picture(run / "loss.svg").markers == 3, "plot: a loss of null"
    )
    run = make_run("first", "D", 1)
    done = launch("plot", run)
    check(done.returncode == 0 and Picture(run / "loss.svg").markers == 1, "plot: a single epoch", said(done))
    check(not (run / "accuracy.svg").exists(), "plot: no figure of accuracies that were not measured")
    for name, losses in ("flat", [2.3055]), ("nearly-flat", [2.30551,
                                                             2.30552]):  # which rounding to three digits puts below
        run = make_run(name, "D", len(losses))
        lines = [{"epoch": epoch, "step": epoch, "loss": loss, "lr": 0.01} for epoch, loss in enumerate(losses, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = launch("plot", run)
        check(done.returncode == 0 and Picture(run / "loss.svg").markers == len(losses), f"plot: losses {losses}",
              said(done))
    run = make_run(f"hostile/{HOSTILE}\n-", None, 2)
    done = launch("plot", run)
    check(done.returncode == 0 and is_png(run / "loss.png"), "plot: a hostile directory", said(done))
    title = " ".join(Picture(run / "loss.svg").text)
    check(ascii(str(run)) in title, "plot: whose name is shown", title)
    check(not list(SCRATCH.rglob("pwned")), "plot: whose name is not obeyed")
    done = launch("plot", make_run("-o", "D", 2).relative_to(SCRATCH))
    check(fails(done, 2, "-o"), "plot: a name that looks like an option", said(done))
    check(launch("plot", "--", "-o").returncode == 0, "plot: the same after --")


def test_plot_errors():
    done = launch("plot")
    check(fails(done, 2, "--help"), "plot: without a run", said(done))
    done = launch("plot", "--colour", SCRATCH / "one")
    check(fails(done, 2, "--colour"), "plot: an unknown option", said(done))
    done = launch("plot", SCRATCH / "nowhere")
    check(fails(done, 3, "nowhere"), "plot: a directory that is not there", said(done))
    done = launch("plot", make_run("empty", "A", 0))
    check(fails(done, 3, "no epoch"), "plot: a run without an epoch", said(done))
    for damage in "{}", "[1]", "7", "\0\xff", '{"epoch":null}', "[" * 100000, '{"epoch":1' + "0" * 400 + "}":
        run = make_run(f"damaged-{hash(damage)}", "A", 2, tail=damage + '\n{"epoch":4,"loss":1}\n')
        done = launch("plot", run)
        check(fails(done, 3, "line 3"), f"plot: a damaged line {damage[:20]!r}", said(done))
    foreign = make_run("läufe-ε", "A", 2)
    done = launch("plot", foreign, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    check(done.returncode == 0 and "l\\xe4ufe" in done.stdout, "plot: a name that the output's encoding lacks",
          said(done))
    tools = SCRATCH / "tools"
    tools.mkdir()
    for tool in "env", "python3":
        (tools / tool).symlink_to(os.path.realpath(f"/usr/bin/{tool}"))
    done = launch("plot", SCRATCH / "one", env={**os.environ, "PATH": str(tools)})
    check(fails(done, 1, "gnuplot-nox"), "plot: without gnuplot it names the package", said(done))
    check(launch("plot", "-o", "/proc/figures", SCRATCH / "one").returncode == 1, "plot: an unwritable place")
    command = [LAUNCH / "plot", SCRATCH / "one"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >/dev/full', "sh", *command], capture_output=True, text=True)
    check(fails(done, 1, "standard output", "No space"), "plot: standard output is full", said(done))
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], capture_output=True, text=True)
    check(done.returncode == 0, "plot: with its standard streams closed", said(done))
    limited = ["prlimit", "--fsize=1000", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    check(fails(done, 1, f"{SCRATCH}/one/loss.svg", "File too large"), "plot: a figure that cannot be written is named",
          said(done))


if shutil.which("gnuplot") is None:
    skip_all("no gnuplot here")
test_plot_one()
test_plot_study()
test_plot_seeds()
test_plot_odd()
test_plot_errors()
finish()
