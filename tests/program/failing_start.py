#!/usr/bin/env python3
"""The first moments of a run, when not all ranks do what they should, and studies that lose rank 0."""
# needs: dtrain
# timed: what happens first is a matter of moments

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from dtrain import BARE, ENVIRONMENT, FOLDER, MARK, PROGRAM, ROOT, Run, preloaded, run, start
from tap import check, finish, side_by_side

DATA = ["--data", "synthetic:335+64", "--batch-size", "64"]
ENDLESS = [*DATA, "--epochs", "1000000", "--eval-every", "1000000"]
run(1, *DATA, "--epochs", "0", "--out", FOLDER / "drawn")


def alone():
    for name, options in ("trains", ["--epochs", "1", "--out", FOLDER / "alone"]), ("--doctor", ["--doctor"]):
        done = subprocess.run([PROGRAM, *DATA, *options], env=BARE, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=100, check=False)
        check(done.returncode == 0 and not done.stderr, f"{name} without mpirun where there is no ssh",
              done.stdout + done.stderr)
    for variable in "OMPI_COMM_WORLD_SIZE", "PMI_SIZE":
        done = subprocess.run([PROGRAM, *DATA, "--doctor"], env={**BARE, variable: "2"}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=100, check=False)
        check(done.returncode == 0 and "none: a single process" in done.stdout and not done.stderr,
              f"{variable} is there, but no rank: a single process", done.stdout + done.stderr)


def answers():
    """What needs no MPI is answered without it, above all where it cannot start."""
    step = {"SLURM_JOB_ID": "77", "SLURM_NODELIST": "node", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}  # of srun --pty
    for options, code, words in (["--help"], 0, "--epochs"), (["--version"], 0, "dtrain "), (["--epochs", "x"], 2, "x"):
        done = subprocess.run([PROGRAM, *options], env={**BARE, **step}, stdin=subprocess.DEVNULL, timeout=100,
                              capture_output=True, text=True, check=False)
        check(done.returncode == code and words in done.stdout + done.stderr,
              f"{' '.join(options)} where MPI cannot start", done.stdout + done.stderr)
        lines = done.stdout.splitlines()
        check(all(line.strip() or not line for line in lines) and max(map(len, lines), default=0) < 80,
              f"{' '.join(options)}: no line of blanks, none that a terminal breaks", done.stdout)
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    check(done.returncode == 1 and "No space left" in done.stderr, "--help that finds no room is exit 1", done.stderr)


def few_threads():
    """An MPI that lets one thread alone call it, which Open MPI's is built not to be: its answer is changed."""
    library = preloaded("few_threads", """
        int PMPI_Init_thread(int *, char ***, int, int *);
        int MPI_Init_thread(int *argc, char ***argv, int required, int *provided)
        {
            int code = PMPI_Init_thread(argc, argv, required, provided);
            *provided = 1; /* MPI_THREAD_FUNNELED */
            return code;
        }""")
    for ranks in 0, 3:
        result = run(ranks, *DATA, "--epochs", "1", "--out", "few", seconds=30, env={"LD_PRELOAD": str(library)})
        check(result.says(1, "MPI_THREAD_SERIALIZED"), f"too few threads, {ranks or 1} ranks: one line, exit 1",
              result)


def slow_driver():
    """CUDA takes longer to load on one rank than another waits for one that is silent."""
    library = preloaded("slow_driver", """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <string.h>
        #include <unistd.h>
        void *dlopen(const char *file, int mode)
        {
            static int loads;
            if (file != NULL && strcmp(file, "libcuda.so.1") == 0 && loads++ == 0)
                sleep(4);
            return ((void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen"))(file, mode);
        }""")
    runs = []
    for what in (["--epochs", "1", "--out", FOLDER / "slow-driver", *DATA], ["--doctor", *DATA], ["--verify=0"]):
        command = ["-np", 1, "env", f"LD_PRELOAD={library}", PROGRAM, *what, "--timeout", 2]
        runs.append((what[0], Run(["mpirun", *command[:2], *command[4:], ":", *command], {}, FOLDER)))
    for name, running in runs:
        result = running.finish(60)
        check(result.code == 0, f"a driver that takes long to load is no lost rank: {name}", result)


def early_signals():
    codes = []
    for delay in (0.3, 0.5, 0.8, 1.2):
        running = start(2, *ENDLESS, "--out", FOLDER / f"early-{delay}")
        time.sleep(delay)
        while not running.ranks():
            time.sleep(0.02)
        time.sleep(0.1)
        running.signal(signal.SIGUSR1, 0)
        codes.append(running.finish(60).code)
    check(codes == [75] * 4, "a signal while MPI starts stops the run as any other", codes)


SLOW_INIT = """
    #include <unistd.h>
    int PMPI_Init_thread(int *, char ***, int, int *);
    int MPI_Init_thread(int *argc, char ***argv, int required, int *provided)
    {
        sleep(2);
        return PMPI_Init_thread(argc, argv, required, provided);
    }"""


def stopped_start():
    """A rank that is stopped within MPI_Init, which takes two seconds longer here, is told from a slow one."""
    library = preloaded("slow_init", SLOW_INIT)
    options = [*ENDLESS, "--timeout", 3, "--out"]

    def begin(np, *stopped, launcher=()):
        """Its ranks are there, and those are stopped."""
        out = FOLDER / f"stopped-{np}-{len(stopped)}-{len(launcher)}"
        command = [*launcher, "-np", np, PROGRAM] if launcher else [ROOT / "launch/run", "-np", np]
        running = Run([*command, *options, out], {"LD_PRELOAD": str(library)}, FOLDER)
        while len(ranks := running.ranks()) < np:
            time.sleep(0.02)
        for rank in stopped:
            os.kill(ranks[rank], signal.SIGSTOP)
        return running, ranks, time.monotonic()

    headless, ranks, _ = begin(2)
    parent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGSTOP)
    ways = [(2, 0, "mpirun"), (4, 2, "mpirun"), (2, 1, ""), (4, 0, "")]
    runs = [begin(np, rank, launcher=launcher.split()) for np, rank, launcher in ways]
    paused, ranks, began = begin(3, 0, 1, 2)
    for (np, rank, launcher), (running, _, stopped) in zip(ways, runs):
        result = running.finish(60)
        took = time.monotonic() - stopped
        check(result.says(4, f"lost rank {rank} on host", "stopped for 3 s") and took < 40,
              f"rank {rank} of {np} stopped within MPI_Init, {launcher or 'launch/run'}: one line, exit 4",
              f"{took:.1f} s\n{result}")
    result = headless.finish(60)
    check(result.code == 4 and result.err.count("\n") == 1 and "lost mpirun: it was stopped" in result.err,
          "mpirun itself stopped within MPI_Init: one line, exit 4", result)
    time.sleep(max(0, began + 4 - time.monotonic()))
    for process in ranks.values():
        os.kill(process, signal.SIGCONT)
        time.sleep(0.3)
    paused.wait_for("epoch: 1 ")
    paused.signal(signal.SIGUSR1)
    result = paused.finish(60)
    check(result.code == 75 and not result.err, "all ranks stopped within MPI_Init, continued one by one: it goes on",
          result)


def siblings():
    """Beside a rank, another process of its launcher: a rank by the variable that counts, or one of another job."""
    runs = []
    for name in '"$PMIX_NAMESPACE"', "another":
        other = f'exec env -i PMIX_RANK=5 OMPI_COMM_WORLD_RANK=1 PMIX_NAMESPACE={name} {MARK}="${MARK}" sleep 100'
        running = Run(["mpirun", "-np", 1, PROGRAM, *ENDLESS, "--timeout", 3, "--out", FOLDER / "siblings", ":",
                       "-np", 1, "sh", "-c", other], {}, FOLDER)
        while len(ranks := running.ranks()) < 2 or "sleep" not in Path(f"/proc/{ranks[1]}/comm").read_text():
            time.sleep(0.02)
        os.kill(ranks[1], signal.SIGSTOP)
        runs.append((running, ranks[1]))
    result = runs[0][0].finish(60)
    check(result.says(4, "lost rank 1 on host", f"process {runs[0][1]}"),
          "a rank is named by its launcher's own variable", result)
    time.sleep(2)
    check(runs[1][0].process.poll() is None, "what is stopped of another job of the same daemon is not this one's rank")
    runs[1][0].kill()
    runs[1][0].finish()


def mpmd(*parts):
    """Ranks started with unlike commands; returns exit code, output and seconds."""
    command = ["mpirun"]
    for part in parts:
        command += [*([":"] if len(command) > 1 else []), "-np", "1", *map(str, part)]
    begin = time.monotonic()
    done = subprocess.run(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, time.monotonic() - begin


def unlike_actions():
    for action in "--help", "--doctor", "--version":
        code, output, _ = mpmd([PROGRAM, action], [PROGRAM, *ENDLESS, "--timeout", 5, "--out", FOLDER / "unlike"])
        check(code == 2 and "rank 1" in output and "start all ranks alike" in output,
              f"{action} on one rank alone is refused", output)


def blocked():
    """Signals that the starter has blocked, as a thread does of its own and hands on."""
    running = Run(["env", "--block-signal=USR1,ALRM", PROGRAM, *ENDLESS, "--out", FOLDER / "blocked"], {}, FOLDER)
    running.wait_for("epoch: 2 ")
    running.signal(signal.SIGUSR1)
    result = running.finish(20)
    check(result.code == 75 and "stopped by SIGUSR1" in result.out, "a signal that was blocked as the run began",
          result)


def unlike_data():
    """DTRAIN_DATA is of each rank's own environment: on one it may name what cannot be."""
    command = [PROGRAM, "--epochs", "1", "--batch-size", "64", "--timeout", 5, "--out", FOLDER / "unlike-data"]
    good, bad = (["env", f"DTRAIN_DATA=synthetic:{which}", *command] for which in ("335+64", "bad"))
    for parts in (bad, good), (good, bad), (good, good, bad), (bad, good, good):
        code, output, _ = mpmd(*parts)
        check(code == 2 and output.count("dtrain: ") == 1 and "DTRAIN_DATA synthetic:bad: want" in output,
              f"DTRAIN_DATA that cannot be, on rank {parts.index(bad)} of {len(parts)}", output)


def failing_mpi():
    """What MPI fails at ends the job as a lost rank does: here one sends more than another has room for."""
    library = preloaded("failing_mpi", """
        int PMPI_Iallreduce(const void *, void *, int, void *, void *, void *, void **);
        int MPI_Iallreduce(const void *from, void *to, int count, void *type, void *operation, void *comm,
                           void **request)
        {
            static char more[1 << 20];
            return PMPI_Iallreduce(from, more, count + 1, type, operation, comm, request);
        }""")
    command = [PROGRAM, *ENDLESS, "--timeout", 5, "--out", FOLDER / "failing-mpi"]
    code, output, _ = mpmd(command, ["env", f"LD_PRELOAD={library}", *command])
    check(code == 4 and re.search(r"^dtrain: rank \d on host .*: MPI_Test\(.*truncate", output, re.M) and
          "FATAL" not in output, "MPI that fails: exit 4, and a line of dtrain's own", output)


def stalled_study():
    """Groups that do not wait for each other notice all the same that world rank 0 is gone."""
    running = start(4, *ENDLESS, "--net", "all", "--timeout", 4, "--out", FOLDER / "stalled")
    for net in "ABCD":
        running.wait_for(f"net: {net} epoch: ")
    running.signal(signal.SIGSTOP, 0)
    result = running.finish(60)
    check(result.code == 4 and result.says(4, "rank 0 on host"), "four groups do not train on without rank 0", result)


def refused():
    """A start that is refused leaves nothing that the next one stumbles over."""
    out = FOLDER / "refused"
    os.makedirs(out / "B")
    (out / "B" / "run.json").write_text("{}")
    first = run(2, *DATA, "--net", "A,B", "--epochs", "1", "--out", out)
    check(first.code == 2 and "holds a run already" in first.err, "one net's directory is taken: refused", first)
    (out / "B" / "run.json").unlink()
    second = run(2, *DATA, "--net", "A,B", "--epochs", "1", "--out", out)
    check(second.code == 0, "and nothing was claimed for the other", second)


def diverged():
    """One epoch of one step: the step itself is finite, what comes of it is not."""
    result = run(1, "--data", "synthetic:335+64", "--batch-size", "335", "--net", "A", "--lr", "1e6", "--epochs", "1",
                 "--out", FOLDER / "diverged")
    check(result.says(1, "not finite", "--lr"), "a loss that is not finite in evaluation ends the run", result)
    check(not (FOLDER / "diverged" / "model-best.safetensors").exists(), "and no best model is made of it")


side_by_side(2, stalled_study, early_signals, stopped_start, siblings, alone, answers, few_threads, slow_driver,
             blocked, unlike_actions, unlike_data, failing_mpi, refused, diverged)
finish()
