#!/usr/bin/env python3
"""bench/study: its report of made-up runs, finished, unfinished and against the study; and a small study, trained."""
# needs: dtrain

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tap import check, finish, skip

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = Path(tempfile.mkdtemp(prefix="dtrain-study-"))
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "bench"))
import study_report  # noqa: E402

# Final loss, training accuracy, test accuracy of each net; each converges at its own pace, in epochs.
AS_PUBLISHED = {"A": (0.0, 100, 55, 3), "B": (0.2, 99, 60, 9), "C": (1.5, 62, 61, 20), "D": (1.7, 58, 57, 30)}
CONTRARY = {"A": (1.7, 50, 50, 30), "B": (0.9, 80, 45, 3), "C": (0.8, 82, 44, 3), "D": (0.7, 84, 43, 3)}


def make_run(directory, net, nature, planned, done, seed=1, data="1234", every=20):
    """A run's directory as dtrain leaves it, without the weights; its test accuracy peaks in the middle."""
    loss, train, test, pace = nature
    directory.mkdir(parents=True)
    about = {"net": {"name": net, "p_conv": 0.5, "p_fc": 0.5, "ranks": 2, "engine": "cpu"},
             "options": {"seed": seed, "epochs": planned}, "data": {"xxh64": data}, "revision": "r", "build": "b",
             "hosts": {"host": 2}, "started": "2026-01-01T00:00:00Z"}
    (directory / "run.json").write_text(json.dumps(about))
    lines = []
    for epoch in range(1, done + 1):
        line = {"epoch": epoch, "loss": loss + (2.3 - loss) * 0.5 ** (epoch / pace), "seconds": 2}
        if epoch % every == 0:
            top = 0.25 if abs(epoch - planned / 2) < every / 2 else 0
            line |= {"train_accuracy": train, "test_accuracy": test + top + 0.5 * seed}
        lines.append(json.dumps(line) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines))


def make_study(name, nature, sweep=True):
    directory = SCRATCH / name
    for net in "ABCD":
        make_run(directory / "seed1" / net, net, nature[net], 1000, 1000)
        for seed in 2, 3:
            make_run(directory / f"seed{seed}" / net, net, nature[net], 1000, 1000, seed)
    if sweep:
        for seed in 1, 2, 3:
            sweep = directory / f"sweep{seed}"
            make_run(sweep / "none", "A", nature["A"], 60, 60, seed, every=10)
            for i, p in enumerate(study_report.RATES):
                for where, net in ("fc", "B"), ("conv", "C"):
                    result = (1, 60, 52 + (i if where == "fc" else -i), 10)
                    make_run(sweep / f"{where}-{p}", net, result, 60, 60, seed, every=10)
    return directory


def has(text, *words):
    return all(word in text for word in words)


def test_whole():
    record = study_report.collect(make_study("whole", AS_PUBLISHED))
    text = study_report.section(record)
    check(len(record["runs"]) == 3 * (4 + 13) and not record["faults"], "report: finds every run", record["faults"])
    check("All runs are finished." in text, "report: says that all is done", text)
    check(has(text, "100 / 60.45", "100.00 (100.00 to 100.00) | 56.25 (55.75 to 56.75)"),
          "report: mean and range of the seeds beside the published", text)
    check(has(text, " 500 |", " 56.00 (55.50 to 56.50) ", " 44.00 (43.50 to 44.50) "),
          "report: when, the last check and its gap", text)
    check(has(text, "slower.** Confirmed", "1.8 in epoch A 2,"), "report: dropout converges slower", text)
    check(has(text, "beats A's for B, C and D (A 56.25"), "report: who generalises better", text)
    check(has(text, "stalls the loss.** Confirmed"), "report: dropout in convolutions stalls", text)
    check(has(text, "ahead of A for 3 of 3 seeds, by +5.00 points"), "report: seeds compared in pairs", text)
    check(has(text, "fully connected (B): p = 0.5 by", "convolutions (C): p = 0 by"), "report: the best rates", text)
    check(has(text, "58.25 (57.75 to 58.75)"), "report: mean and range of a rate", text)
    check("digest 1234" in text and "JPEG" not in text, "report: unknown data are named by digest", text)


def test_contrary():
    text = study_report.section(study_report.collect(make_study("contrary", CONTRARY, sweep=False)))
    check(text.count(".** Not so.") == 3, "report: data against the study's conclusions say so", text)
    check("Other rates" not in text, "report: no sweep, no word of it", text)


def test_unfinished():
    directory = SCRATCH / "unfinished"
    make_run(directory / "seed1/A", "A", AS_PUBLISHED["A"], 1000, 19)
    text = study_report.section(study_report.collect(directory))
    check(has(text, "Not finished: seed1/A at epoch 19 of 1000", "Not all four nets have been checked"),
          "report: just begun", text)
    for net in "BCD":
        make_run(directory / "seed1" / net, net, AS_PUBLISHED[net], 1000, 40, data="cb57bdb6a70218f4")
    shutil.rmtree(directory / "seed1/A")
    make_run(directory / "seed1/A", "A", AS_PUBLISHED["A"], 1000, 41, data="cb57bdb6a70218f4")
    with (directory / "seed1/A/metrics.jsonl").open("a") as file:
        file.write('{"epoch":42,"lo')
    record = study_report.collect(directory)
    text = study_report.section(record)
    check(has(text, "seed1/A at epoch 41 of 1000", "a JPEG copy"), "report: a torn last line is no epoch", text)
    check("seed by seed" not in text, "report: one seed has no spread", text)
    make_run(directory / "seed2/A", "A", AS_PUBLISHED["A"], 200, 3, data="other")
    faults = study_report.collect(directory)["faults"]
    check(len(faults) == 1 and "other" in faults[0], "report: runs with different data are a fault", faults)


def test_figures():
    if not shutil.which("gnuplot"):
        skip("report: figures", "gnuplot is missing")
        return
    record = study_report.collect(SCRATCH / "whole")
    study_report.draw(record, SCRATCH / "figures")
    pictures = {path.stem: path.read_text() for path in (SCRATCH / "figures").iterdir()}
    check(set(pictures) == {"loss", "training", "accuracy", "spread", "sweep"}, "report: five figures", set(pictures))
    check(has(pictures["spread"], "3 seeds", "fill-opacity"), "report: the seeds' figure has a band")
    check(has(pictures["sweep"], "dropout rate p", "conv, best check"), "report: the sweep's figure has its axis")
    check(has(pictures["loss"], ">epoch<", "C - conv"), "report: the losses' figure has its axis")


def test_training():
    """In a copy, where the report may be written."""
    place = SCRATCH / "a place"
    for folder in "bench", "launch":
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "dtrain").symlink_to(ROOT / "dtrain")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DTRAIN")}
    environment["XDG_CACHE_HOME"] = str(SCRATCH / "cache")
    command = [place / "bench/study", "--data", "synthetic:200+100", "-np", "2", "--epochs", "100", "--seeds", "1"]
    study = lambda: subprocess.Popen([*command, "--json", "study.json"], cwd=place, env=environment, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # nohup

    def wait_for(file):
        deadline = time.monotonic() + 60
        while not (place / "runs/study" / file).exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    first = study()
    wait_for("seed1/D/checkpoint.safetensors")
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=60)[0]
    check(first.returncode == 75 and "the same command goes on" in output, "study: a signal saves and stops", output)

    second = study()
    wait_for("sweep1/none/checkpoint.safetensors")
    second.send_signal(signal.SIGHUP)
    output = second.communicate(timeout=120)[0]
    check(second.returncode == 0 and "run 14 of 14: sweep1/conv-0.5" in output, "study: goes on to the end, "
          "whoever hangs up under nohup", output[-2000:])
    check("goes on in epoch" in output, "study: from where it stopped", output[:2000])
    check(has(output, "All runs are finished.", "VALID"), "study: and reports", output[-2000:])
    losses = json.loads((place / "study.json").read_text())["runs"]["seed1/D"]["loss"]
    check([epoch for epoch, _ in losses] == [*range(1, 21), *range(25, 101, 5)], "study: no epoch twice", losses)

    third = study()
    output = third.communicate(timeout=60)[0]
    check(third.returncode == 0 and "run " not in output.split("```")[0], "study: once more trains nothing", output)


try:
    test_whole()
    test_contrary()
    test_unfinished()
    test_figures()
    test_training()
finally:
    shutil.rmtree(SCRATCH, ignore_errors=True)
finish()
