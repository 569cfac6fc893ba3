#!/usr/bin/env python3
"""bench/peers and bench/race, dtrain against PyTorch, and bench/pytorch.py, PyTorch alone, on a handful of pictures."""
# needs: dtrain

import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from dtrain import FOLDER, ROOT, write_data
from tap import check, finish, skip_all

sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "bench"))
import jax_peer  # noqa: E402
import torch_peer  # noqa: E402

if torch_peer.find_torch() is None:
    skip_all("no PyTorch; apt-get install python3-torch")
DATA = write_data("data")


def bench(name, *arguments):
    """Exit code, record and output of a benchmark."""
    file = FOLDER / f"{name}.json"
    command = [sys.executable, "-B", ROOT / "bench" / name, "--data", DATA, "--json", file, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    return done.returncode, json.loads(file.read_text()) if file.exists() else {}, done.stdout + done.stderr


code, record, said = bench("peers", "--rounds", 1, "--seconds", 0.1, "--nets", "D")
runs = record.get("nets", {}).get("D", {})
check(code == 0 and said.endswith("VALID\n"), "peers: runs and is valid", said)
more = torch_peer.can_compile(torch_peer.find_torch()) + (jax_peer.find_jax() is not None)
check(len(runs) == 6 + more and all(run[0]["samples_per_second"] > 0 for run in runs.values()),
      "peers: dtrain twice, PyTorch four times; compiled and JAX where they are", said)
layouts = [run[0]["layout"] for name, run in runs.items() if name.startswith("PyTorch")]
check(len(layouts) == 4 + torch_peer.can_compile(torch_peer.find_torch()) and
      set(layouts) <= {"contiguous", "channels_last"}, "peers: PyTorch in its faster layout", said)

# Eight pictures of eight classes: one in eight is right if the net always says the same of these.
race = ModuleType("race")
SourceFileLoader("race", str(ROOT / "bench" / "race")).exec_module(race)
ways = [torch_peer.Way(2, 1, "contiguous"), torch_peer.Way(1, 2, "channels_last")]
pasts = [torch_peer.run(torch_peer.find_torch(), way, "race", "A", 1, DATA, 12.5, 40) for way in ways]
pasts.append(race.race_dtrain("A", 1, 2, DATA, 12.5))
ends = [past[-1][1] >= 12.5 and all(test < 12.5 for _, test in past[:-1]) for past in pasts]
check(all(ends), "race: each run ends with the first epoch that gets there", pasts)
check(all(seconds > 0 for past in pasts for seconds, _ in past), "race: each epoch takes time", pasts)

code, record, said = bench("race", "--accuracy", 100.5, "--rounds", 1, "--ranks", 1)
check(code == 3 and said.count("after 40 epochs") == 2, "race: who does not get there makes it invalid", said)
check([len(past) for runs in record["races"].values() for past in runs] == [40, 40], "race: and is recorded", said)
again = subprocess.run([sys.executable, "-B", ROOT / "bench/race", "--report", FOLDER / "race.json"],
                       stdout=subprocess.PIPE, text=True, check=False)
check(again.returncode == 3 and again.stdout == said, "race: a record tells the same again", again.stdout)


def pytorch(*words, first=""):
    """Exit code, record and output of bench/pytorch.py without a GPU, after some Python of ours."""
    file = FOLDER / "pytorch.json"
    file.unlink(missing_ok=True)
    program = (f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); import pytorch; {first}\n"
               "sys.exit(pytorch.main())")
    command = [torch_peer.find_torch(), "-B", "-c", program, *map(str, words), "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"})
    return done.returncode, json.loads(file.read_text()) if file.exists() else {"rows": []}, done.stdout + done.stderr


code, record, said = pytorch("steps", "dropout", "--nets", "D")
rows, timed = record["rows"], [row for row in record["rows"] if "us" in row]
check(code == 0 and not any("failed" in row for row in rows), "pytorch: runs", said)
names = {"eager", "eager, channels_last", "device copy", "Dropout3d", "FeatureAlphaDropout"}
check(names <= {row["name"] for row in timed} and
      all(0 < row["least_us"] <= row["median_us"] <= row["most_us"] for row in timed), "pytorch: times", said)
check([row.get("skipped") for row in rows if row["name"] == "graph"] == ["no GPU"], "pytorch: what cannot run", said)
check({"device", "torch", "cuda", "cudnn", "date", "command"} <= set(record), "pytorch: says on what", record)
code, record, said = pytorch("steps", "--nets", "A", first="pytorch.VARIANTS = dict("
                             "broken=({}, 'no_such_way'), eager=({}, 'eager'))")
_, broken, eager = record["rows"]
check(code == 1 and "no_such_way" in broken["failed"] and "us" in eager, "pytorch: one that fails stops no other", said)
code, record, said = pytorch("compile", "--compile-seconds", 0.1, "--nets", "A")
check(code == 0 and ["skipped" in row for row in record["rows"]] == [True, True], "pytorch: compiling is limited", said)
finish()
