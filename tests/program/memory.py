#!/usr/bin/env python3
"""Memory that cannot be had ends the job: one line that says what it was for, exit 1, whichever allocation it is."""
# needs: dtrain

import contextlib
import os
import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT, preloaded, run, write_data
from tap import check, finish

LIBRARY = FOLDER / "fail_allocation.so"
TRAIN = ["--data", "synthetic:320+64", "--epochs", "1"]  # two steps, and a check
HOST = socket.gethostname()


def sources():
    found = subprocess.run(["grep", "-rnE", r"\b(malloc|calloc|realloc|aligned_alloc|posix_memalign|strdup|asprintf)\(",
                            "--include=*.[ch]", "--exclude-dir=fused",
                            "--exclude=netdelay.c", "src", "include", "kernels", "bench"], cwd=ROOT,
                           capture_output=True, text=True, check=False)
    stray = [line for line in found.stdout.splitlines() if not line.startswith("src/base/memory.c:")]
    check(not stray, "all memory comes from memory.c", "\n".join(stray))


def failing(number, json, ranks=0, rank=None):
    """A run that goes on from a checkpoint, reads and writes all kinds of files, and lacks memory once."""
    out = f"fails-{number}-{json}-{ranks}-{rank}"
    shutil.copytree(FOLDER / "half", FOLDER / out)
    environment = {"LD_PRELOAD": str(LIBRARY), "FAIL_AT": str(number)} | ({"FAIL_JSON": "1"} if json else {})
    if rank is not None:
        environment["FAIL_RANK"] = str(rank)
    result = run(ranks, *TRAIN, "--resume", "--out", out, env=environment, seconds=30)
    shutil.rmtree(FOLDER / out)
    return result


def one_rank():
    run(0, *TRAIN, "--max-steps", "1", "--out", "half")
    shutil.copytree(FOLDER / "half", FOLDER / "counted")
    run(0, *TRAIN, "--resume", "--out", "counted", env={"LD_PRELOAD": str(LIBRARY),
                                                        "ALLOCATIONS": str(FOLDER / "count")})
    plain, json = map(int, (FOLDER / "count").read_text().split())
    check(plain > 20 and json > 100, f"{plain} allocations, and {json} for JSON")
    cases = [(number, False) for number in range(1, plain + 1)]
    cases += [(number, True) for number in [*range(1, json, json // 8), json]]
    with ThreadPoolExecutor(8) as pool:  # a run is mostly the waiting of MPI's start
        results = list(pool.map(lambda case: failing(*case), cases))
    silent = [f"{case}: {result}" for case, result in zip(cases, results)
              if not result.says(1, f"rank 0 on host {HOST}: out of memory: ", " bytes for ") or result.digest]
    check(not silent, "whichever fails: one line, exit 1", "\n".join(silent))
    purposes = {re.search(" bytes for (.*)", result.messages[0])[1] for result in results if result.messages}
    for purpose in "the watch", "the weights", "the CPU engine", "a file of weights", "JSON":
        check(purpose in purposes, f"{purpose} among them", purposes)
    result = failing(plain + 1, False)
    check(result.code == 0, "and without that the run goes on to its end", result)


def two_ranks():
    for rank, number in (1, 1), (1, 12), (0, 30):
        result = failing(number, False, 2, rank)
        check(result.says(1, f"rank {rank} on host {HOST}: out of memory: ") and not result.digest,
              f"allocation {number} of rank {rank} of 2: the other ends, too", result)


def no_map():
    """The pictures of the data are no allocation, but mapped."""
    library = preloaded("no_map", """
        #include <errno.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
        {
            if (file < 0 || protection != PROT_READ || bytes % 3073 != 0)
                return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
            errno = ENOMEM;
            return MAP_FAILED;
        }""")
    result = run(0, "--data", write_data("pictures"), "--out", "no-map", env={"LD_PRELOAD": str(library)})
    check(result.says(1, "data_batch_1.bin", "Cannot allocate memory"), "no memory for the data: exit 1", result)


def unread():
    """Nobody reads standard error, a pipe that is full: the line cannot be written, and the end comes all the same."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    process = subprocess.Popen([PROGRAM, *TRAIN, "--out", "unread"], cwd=FOLDER, stderr=writing,
                               env=ENVIRONMENT | {"LD_PRELOAD": str(LIBRARY), "FAIL_AT": "9"})
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    check(process.returncode == 1, "standard error that nobody reads: exit 1 within seconds", process.returncode)
    process.kill()
    process.wait()
    os.close(reading)
    os.close(writing)


subprocess.run(["gcc", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", LIBRARY,
                ROOT / "tests" / "support" / "fail_allocation.c", "-ldl"], check=True)
sources()
one_rank()
two_ranks()
no_map()
unread()
finish()
