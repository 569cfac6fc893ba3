"""The batch scripts of slurm/ on a real SLURM over four hosts. Started by tests/cluster/four_hosts.py."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import endless_run
import hosts as cluster
import slurm
from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT, progress, run
from endless_run import TRAIN
from slurm import Job, say
from hosts import eventually
from tap import check, finish

ENDLESS = [*endless_run.ENDLESS, "--checkpoint-every", "4"]
NAME = Path(PROGRAM).name[:15]
SETTINGS = {key: value for key, value in ENVIRONMENT.items() if key != "OMPI_MCA_plm"} | {"DTRAIN_HOME": str(ROOT)}

hosts = cluster.start(4)
slurm.start(hosts)


def submit(name, *options, script="train", sbatch=("--nodes=4", "--ntasks-per-node=1"), **env):
    return Job(FOLDER, ROOT / "slurm" / f"{script}.sbatch", *options, sbatch=[f"--job-name={name}", *sbatch],
               env=SETTINGS | env)


def under_way(job):
    """When it has written a checkpoint."""
    if not job.wait_for("epoch: 5 ", 120):
        check(False, f"{job.name}: gets on its way", job)


def unharmed(name, job):
    """What the job left goes on, on one host, to the weights of an undisturbed run."""
    endless_run.unharmed(name, f"runs/{job.name}", seen=job)


def launchers():
    one = run(1, *TRAIN, "--epochs", "4", "--out", "one")
    jobs = [submit(f"by-{launcher}", *TRAIN, "--epochs", "4", LAUNCHER=launcher) for launcher in ("srun", "mpirun")]
    for job in jobs:
        state = job.wait()
        check(state == "COMPLETED 0" and "on 4 ranks, 4 hosts" in job.out and f"weights: {one.digest}" in job.out,
              f"{job.name}: four hosts train as one rank does", f"{state}\n{job}{one}")
    for launcher in "srun", "mpirun":
        given = f"DTRAIN_HOME={ROOT},HOME={FOLDER},LAUNCHER={launcher}"
        job = submit(f"bare-{launcher}", *TRAIN, "--epochs", "4",
                     sbatch=("--nodes=2", "--ntasks-per-node=1", f"--export={given}"))
        state = job.wait()
        check(state == "COMPLETED 0" and f"weights: {one.digest}" in job.out,
              f"{job.name}: trains where sbatch --export has left the environment out", f"{state}\n{job}")
    again = submit("by-srun", *TRAIN, "--epochs", "5")
    state = again.wait()
    check(state == "COMPLETED 0" and ", after step 24" in again.out,
          "a job of the same name goes on with the run", f"{state}\n{again}")
    wrong = submit("by-srun", *TRAIN, "--epochs", "5", "--seed", "2")
    state = wrong.wait()
    check(state == "FAILED 3" and "--seed" in wrong.out, "but not with another seed", f"{state}\n{wrong}")
    for options, words in (["--out", "x"], "OUT"), (["--lr", "x"], "--lr"):
        job = submit(f"wrong{options[0]}", *options)
        state = job.wait()
        check(state == "FAILED 2" and words in job.out, f"{' '.join(options)}: refused, not tried again",
              f"{state}\n{job}")


class Pair:
    """Two jobs of an array, the second of which, the last to start, has the array's own number; in place of dtrain a
    script that can be stopped."""

    def __init__(self, name, *sbatch):
        program = FOLDER / f"{name}.program"
        program.write_text('#!/bin/bash\ntrap "echo saved; exit 75" USR1\necho "$DTRAIN_MARK" >&2\necho begun\n'
                           "while :; do sleep 0.1; done\n")
        program.chmod(0o755)
        self.array = submit(name, script="variants", DTRAIN=str(program),
                            sbatch=("--array=0,3", "--ntasks-per-node=1", "--output=%x-%a.out", *sbatch))

    def log(self, task):
        """With a successor's, which the script names."""
        return "".join(path.read_text() for path in FOLDER.glob(f"{self.array.name}-*{task}.out"))

    def interrupt(self):
        eventually(lambda: all("begun" in self.log(task) for task in (0, 3)))
        say("scancel", "--batch", "--signal=USR1", f"{self.array.id}_3")

    def check(self):
        name = self.array.name
        on = eventually(lambda: self.log(3).count("begun") == 2)
        check(on and "saved" in self.log(3), f"{name}: a job of an array that is stopped goes on", self.log(3))
        running = say("squeue", "--noheader", "--array", "--states=running", f"--name={name}", "--format=%K").split()
        check("0" in running and self.log(0) == "begun\n", f"{name}: and the other one is left alone",
              f"{running}\n{self.log(0)}")
        say("scancel", "--name", name)


def several():
    pairs = Pair("array-requeue"), Pair("array-successor", "--no-requeue")
    options = [*TRAIN[2:], "--epochs", "2"]
    array = submit("array", *options, script="variants", sbatch=("--ntasks-per-node=2", "--output=%x-%a.out"))
    together = submit("together", *options, script="all")
    scaling = submit("scaling", *TRAIN, script="scaling",
                     sbatch=("--nodes=4", "--ntasks-per-node=1", "--oversubscribe"))
    verify = submit("verify", "--verify=0", script="verify",
                    sbatch=("--nodes=2", "--ntasks-per-node=1", "--oversubscribe"))
    for pair in pairs:
        pair.interrupt()
    check(together.wait() == "COMPLETED 0" and len(re.findall(r"^[ABCD] .* [0-9a-f]{16}$", together.out, re.M)) == 4,
          "all.sbatch: four nets in one job, with their table", together)
    array.wait()
    digests = re.findall(r"^[ABCD] .* ([0-9a-f]{16})$", together.out, re.M)
    logs = [FOLDER / f"array-{i}.out" for i in range(4)]
    eventually(lambda: all(log.exists() and "weights: " in log.read_text() for log in logs))
    found = [log.read_text() if log.exists() else "" for log in logs]
    check([re.findall("weights: (.*)", out) for out in found] == [[digest] for digest in digests],
          "variants.sbatch: an array of four jobs, with the same weights", "\n".join([*found, together.out]))
    check(scaling.wait() == "COMPLETED 0" and
          [row.split()[:4]
           for row in (FOLDER / f"runs/scaling-{scaling.id}/scaling.txt").read_text().splitlines()[2:]] ==
          [[kind, str(n), str(n), str(64 * n if kind == "weak" else 64)] for kind in ("strong", "weak")
           for n in (1, 2, 4)],
          "scaling.sbatch: 1, 2 and 4 nodes, strong and weak, in one table", scaling)
    check(verify.wait() == "COMPLETED 0" and len(re.findall("  right$", verify.out, re.M)) == 3,
          "verify.sbatch: both nodes compute as they should, alone and together", verify)
    seen = FOLDER / "seen"
    seen.write_text('#!/bin/sh\necho "${OMPI_COMM_WORLD_LOCAL_RANK-$SLURM_LOCALID} of $CUDA_VISIBLE_DEVICES, '
                    '$SLURM_GPUS_ON_NODE"\n')
    seen.chmod(0o755)
    for pair in pairs:
        pair.check()
    for launcher, asked in ("mpirun", "--gpus-per-node=4"), ("srun", "--gres=gpu:4"):
        job = submit(f"gpus-{launcher}", sbatch=("--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=2", asked),
                     LAUNCHER=launcher, DTRAIN=str(seen))
        state = job.wait()
        told = [line for line in job.out.splitlines() if " lacks support for cpu binding" not in line]  # this one does
        check(state == "COMPLETED 0" and sorted(told) == sorted([f"{i} of 0,1,2,3, 4" for i in range(4)] * 2),
              f"{asked}, {launcher}: every rank has its number and sees its host's GPUs", job)


def interrupted(how, job, stop, state=None):
    """The job is stopped on its way and goes on by itself; then it is cancelled."""
    under_way(job)
    began = time.monotonic()
    stop(job)
    on = job.wait_for("net D goes on in epoch", 90)
    took = time.monotonic() - began
    print(f"# {how}: goes on after {took:.1f} s")
    check(on and "stopped by" in job.out, f"{how}: saved, requeued, gone on with", job)
    step = int(re.findall(r"stopped by .* after step (\d+)", job.out)[0]) if "stopped by" in job.out else -1
    check(f", after step {step}\n" in job.out, f"{how}: from the step it had reached", job)
    cancel(how, job)


def cancel(how, job):
    eventually(lambda: job.out.split("goes on in epoch")[-1].count("epoch: ") > 3)
    stops = job.out.count("stopped by")
    say("scancel", job.id)
    state = job.wait(30)
    check(state.startswith("CANCELLED") and job.out.count("stopped by") == stops + 1,
          f"{how}: scancel saves, and no more", f"{state}\n{job}")
    unharmed(how, job)


def limits():
    """Side by side: SLURM looks at the time only every half minute."""
    limit = ["--nodes=4", "--ntasks-per-node=1", "--time=1", "--signal=B:USR1@40"]
    by_srun, by_mpirun = (submit(f"limit-{launcher}", *ENDLESS, sbatch=limit, LAUNCHER=launcher)
                          for launcher in ("srun", "mpirun"))
    successor = submit("limit-successor", *ENDLESS, sbatch=[*limit, "--no-requeue"])
    for job in by_srun, by_mpirun:
        job.wait_for("net D goes on in epoch", 120)
        say("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    for job in by_srun, by_mpirun:
        interrupted(f"time limit, {job.name[6:]}", job, lambda job: None)
    logs = eventually(lambda: [log for log in FOLDER.glob(f"{successor.name}-*.out")
                               if "goes on in epoch" in log.read_text()], 90)
    check(logs and "stopped by a signal" in successor.out, "time limit without requeue: a successor goes on", successor)
    time.sleep(1)
    say("scancel", "--name", successor.name)
    successor.wait()
    unharmed("time limit without requeue", successor)


def requeues():
    node = ("--nodes=4", "--ntasks-per-node=1")
    for launcher in "srun", "mpirun":
        job = submit(f"requeue-{launcher}", *ENDLESS, sbatch=node, LAUNCHER=launcher)
        interrupted(f"scontrol requeue, {launcher}", job, lambda job: say("scontrol", "requeue", job.id))


def preemption():
    node = ("--nodes=4", "--ntasks-per-node=1", "--exclusive")
    def preempt(job):
        Job(FOLDER, FOLDER / "urgent", sbatch=["--job-name=urgent", *node, "--partition=urgent"], env=SETTINGS)
    (FOLDER / "urgent").write_text("#!/bin/sh\nsleep 1\n")
    for launcher in "srun", "mpirun":
        job = submit(f"preempt-{launcher}", *ENDLESS, sbatch=node, LAUNCHER=launcher)
        interrupted(f"preemption, {launcher}", job, preempt)


def lost():
    """A rank is killed: the job says 4 whatever the launcher, and goes on."""
    two = ("--nodes=2", "--ntasks-per-node=1")
    for launcher in "srun", "mpirun":
        job = submit(f"lost-{launcher}", *ENDLESS, "--timeout", "5", sbatch=two, LAUNCHER=launcher)
        under_way(job)
        victims = [pid for host in hosts for pid in host.processes(NAME, f"runs/{job.name}")]
        os.kill(victims[-1], signal.SIGKILL)
        on = job.wait_for("net D goes on in epoch", 90)
        check(on and "job.sh: exit code 4; the run goes on" in job.out,
              f"a rank is killed, {launcher}: exit code 4, and the job goes on", job)
        cancel(f"a rank is killed, {launcher}", job)
    job = submit("pmi2", *TRAIN, "--epochs", "1", sbatch=two, LAUNCHER="srun", SLURM_MPI_TYPE="pmi2")
    state = job.wait()
    check(state == "FAILED 1" and "PMI" in job.out, "srun without PMIx: Open MPI says so, and it is not tried again",
          f"{state}\n{job}")


def powerless():
    """A job's second host fails; two others are there."""
    two = ("--nodes=2", "--ntasks-per-node=1")
    jobs = [submit(f"power-{launcher}", *ENDLESS, "--timeout", "5", sbatch=two, LAUNCHER=launcher)
            for launcher in ("srun", "mpirun")]
    for job in jobs:
        under_way(job)
    began = time.monotonic()
    hosts[1].power_off()
    for job in jobs:
        on = job.wait_for("net D goes on in epoch", 120)
        print(f"# a host powered off, {job.name[6:]}: goes on after {time.monotonic() - began:.1f} s")
        check(on, f"a host powered off, {job.name[6:]}: the job goes on with another", job)
        cancel("a host powered off", job)


def two_writers():
    """A host is cut off with a whole job on it, which goes on there while SLURM starts it anew on another."""
    job = submit("old", *ENDLESS, sbatch=("--nodes=1", "--ntasks-per-node=2"))
    under_way(job)
    old = hosts[0].processes(NAME, "runs/old")
    hosts[0].unplug()
    check(len(old) == 2 and job.wait_for("is in use by another run", 120) and
          hosts[0].processes(NAME, "runs/old") == old,
          "an old rank still writing: the new run waits for the directory", f"{old}{job}")
    hosts[0].join()
    check(job.wait_for("net D goes on in epoch", 60), "an old rank still writing: then the new run goes on", job)
    check(eventually(lambda: not hosts[0].processes(NAME)), "an old rank still writing: it has been ended", job)
    reached = int(progress("runs/old")["step"])
    check(eventually(lambda: int(progress("runs/old")["step"]) > reached),
          "an old rank still writing: and gets further", job)
    say("scancel", job.id)
    job.wait()
    unharmed("an old rank still writing", job)


if __name__ == "__main__":
    for part in sys.argv[1:]:
        globals()[part]()
    finish()
