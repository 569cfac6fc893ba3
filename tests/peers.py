#!/usr/bin/env python3
"""bench/peers and bench/race, dtrain against PyTorch, on a handful of pictures."""

import json
import os
import subprocess
import sys

from dtrain import FOLDER, ROOT, write_data
from tap import check, finish, skip_all

sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "bench"))
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
check(len(runs) == 5 and all(run[0]["samples_per_second"] > 0 for run in runs.values()), "peers: five contenders", said)
layouts = [run[0]["layout"] for name, run in runs.items() if name.startswith("PyTorch")]
check(len(layouts) == 3 and set(layouts) <= {"contiguous", "channels_last"}, "peers: PyTorch in its faster layout", said)

# Eight pictures of eight classes: one in eight is right whatever the net says.
code, record, said = bench("race", "--accuracy", 12.5, "--rounds", 2)
races = record.get("races", {})
check(code == 0 and said.endswith("VALID\n"), "race: runs and is valid", said)
check(len(races) == 2 and all(len(runs) == 2 for runs in races.values()), "race: two runners, two seeds", races)
ends = [past[-1][1] >= 12.5 and all(test < 12.5 for _, test in past[:-1]) for runs in races.values() for past in runs]
check(all(ends), "race: each run ends with the first epoch that gets there", races)
again = subprocess.run([sys.executable, "-B", ROOT / "bench/race", "--report", FOLDER / "race.json"],
                       stdout=subprocess.PIPE, text=True, check=False)
check(again.returncode == 0 and again.stdout == said, "race: a record tells the same again", again.stdout)

code, record, said = bench("race", "--accuracy", 100.5, "--rounds", 1)
check(code == 1 and said.count("after 40 epochs") == 2, "race: who does not get there makes it invalid", said)
finish()
