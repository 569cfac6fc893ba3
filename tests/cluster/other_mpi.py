"""launch/run over two hosts by another MPI than the machine's own, and by srun where that knows how to start its ranks.
Started by tests/program/every_mpi.py: other_mpi.py NAME, with that MPI first on the PATH and DTRAIN built with it.
"""

import os
import re
import signal
import sys
import time

import hosts as cluster
import slurm
from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT, Run
from endless_run import ENDLESS, TRAIN
from hosts import SHARED, eventually
from slurm import Job
from tap import check, finish, skip

for name in [name for name in ENVIRONMENT if name.startswith("OMPI_")]:
    del ENVIRONMENT[name]
MPI = sys.argv[1]
HYDRA = not MPI.startswith("openmpi")
AGENT = str(SHARED / "agent")
ENVIRONMENT |= {"PRTE_MCA_plm_ssh_agent": AGENT, "HYDRA_LAUNCHER_EXEC": AGENT, "I_MPI_HYDRA_BOOTSTRAP": "ssh",
                "I_MPI_HYDRA_BOOTSTRAP_EXEC": AGENT}
hosts = cluster.start(2)
SHORT = [*TRAIN, "--epochs", "4"]


def start(out, *options):
    return Run([ROOT / "launch" / "run", *options, "--out", FOLDER / out], {}, FOLDER)


def processes_of(out):
    return {host.name: host.processes("dtrain", out) for host in hosts}


def nothing_left(what):
    names = ("dtrain", "mpirun", "prterun", "prted", "mpiexec.hydra", "hydra_pmi_proxy", "hydra_bstrap_proxy")
    check(eventually(lambda: not any(cluster.processes(name[:15]) for name in names), 20),
          f"{what}: no process is left", [name for name in names if cluster.processes(name[:15])])


def agreement():
    one = start("one", "-np", "1", *SHORT).finish()
    (FOLDER / "hostfile").write_text("# a host and its ranks a line\nn1 slots=1\nn2 slots=2\n")
    for ranks, name, how in (
        (4, "-H", ["-H", "n1:2,n2:2"]),
        (4, "-np", ["-np", "4", "-H", "n1:2,n2:2", "--interface", "eth0"]),
        (3, "hostfile", ["--hostfile", FOLDER / "hostfile"]),
    ):
        several = start(f"several{name}", *how, *SHORT).finish()
        check(several.code == 0 and f"on {ranks} ranks, 2 hosts" in several.out and several.digest == one.digest and
              not several.err, f"{name}: {ranks} ranks on two hosts train as one does", f"{several}{one}")


def lost(what, strike, *options):
    running = start(what.replace(" ", "-"), "-H", "n1:2,n2:2", *ENDLESS, *options)
    running.wait_for("epoch: 5 ", 60)
    found = processes_of(what.replace(" ", "-"))
    began = time.monotonic()
    strike(found)
    result = running.finish(60)
    took = time.monotonic() - began
    said = [line for line in result.err.splitlines() if line != "Killed"]
    print(f"# {what}: exit {result.code} after {took:.1f} s: {said}")
    check(result.code == 4 and len(said) == 1 and re.search("n2|host n1's connection closed", said[0]) and
          "====" not in result.out, f"{what}: 4, and one line names it", result)
    check(took < 25, f"{what}: in {took:.0f} seconds", result)
    return running


def by_srun():
    """MPICH's and Intel's ranks find each other by PMI 2, Open MPI 5's by PMIx."""
    if slurm.missing():
        skip("srun", slurm.missing())
        return
    slurm.start(hosts)
    kind = "pmi2" if HYDRA else "pmix"
    job = Job(FOLDER, ROOT / "slurm" / "train.sbatch", *SHORT,
              sbatch=["--job-name=srun", "--nodes=2", "--ntasks-per-node=2"],
              env=ENVIRONMENT | {"DTRAIN_HOME": str(ROOT), "DTRAIN": PROGRAM, "LAUNCHER": "srun",
                                 "SLURM_MPI_TYPE": kind})
    state = job.wait()
    check(state == "COMPLETED 0" and "on 4 ranks, 2 hosts" in job.out, f"srun --mpi={kind}", f"{state}\n{job}")


agreement()
lost("killed", lambda found: os.kill(found["n2"][-1], signal.SIGKILL))
nothing_left("killed")
lost("stalled", lambda found: os.kill(found["n2"][-1], signal.SIGSTOP), "--timeout", "4")
nothing_left("stalled")
by_srun()
lost("unplugged", lambda found: hosts[1].unplug(), "--timeout", "4")
finish()
