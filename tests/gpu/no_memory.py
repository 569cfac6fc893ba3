#!/usr/bin/env python3
"""A GPU without the memory that is asked for ends the job: one line that says what it was for, exit 1, whichever
request it is. What the host lacks is tests/program/memory.py's."""
# needs: emulated

import itertools
import socket
from concurrent.futures import ThreadPoolExecutor

from emulated_gpu import emulated
from tap import check, finish

HOST = socket.gethostname()
ENGINES = {"cudnn": (12, ["the network", "the training set"]),  # more than the requests there are; what some are for
           "fused": (20, ["the weights", "the mail of the blocks"])}


def lacking(case):
    engine, number = case
    return emulated(0, "--max-steps", "1", "--engine", engine, EMULATED_FULL_AT=str(number))


def one_rank(pool, engine, most, purposes):
    results = list(pool.map(lacking, [(engine, number) for number in range(1, most + 1)]))
    failed = list(itertools.takewhile(lambda result: result.code != 0, results))
    silent = [result for result in failed if result.digest or not result.says(
        1, f"rank 0 on host {HOST}, GPU 0 (0000:00:00.0): out of memory", " bytes for ")]
    check(not silent, f"{engine}: one line and exit 1, {len(failed)} times", "\n".join(map(str, silent)))
    told = " ".join(result.err for result in failed)
    check(all(f" bytes for {purpose}\n" in told for purpose in [*purposes, "the test set"]) and "memory to pin" in told,
          f"{engine}: it says what the memory was for", told)
    check(len(failed) < most and all(result.code == 0 for result in results[len(failed):]),
          f"{engine}: there are no more requests", results[len(failed):])
    return len(failed)


with ThreadPoolExecutor(4) as threads:  # a run is mostly the waiting of MPI's start
    requests = {name: one_rank(threads, name, count, some) for name, (count, some) in ENGINES.items()}
second = emulated(0, "--max-steps", "1", "--engine", "fused", "--net", "A,D",
                  EMULATED_FULL_AT=str(requests["fused"] + 1))
check(second.says(1, " bytes for the order of an epoch"), "fused: a second net asks for what is its own alone", second)
both = emulated(2, "--max-steps", "1", gpus=2, EMULATED_FULL_AT="3", EMULATED_FULL_RANK="1")
check(both.says(1, f"rank 1 on host {HOST}, GPU 1 (0000:01:00.0): out of memory") and not both.digest,
      "on one rank of two: both end", both)
finish()
