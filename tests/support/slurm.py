"""A SLURM over the fake hosts: slurmctld and munge beside us, a slurmd on each host. It ends with the namespaces."""

import os
import re
import shutil
import subprocess

from hosts import HEAD, SHARED, eventually

FOLDER = SHARED / "slurm"
TOOLS = "munged", "slurmctld", "slurmd", "srun"
os.environ["SLURM_CONF"] = str(FOLDER / "slurm.conf")

# A requeued job waits for cred_expire seconds, and a silent node is down after SlurmdTimeout: short, for tests.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=pmix
KillWait=8
SlurmdTimeout=10
ReturnToService=2
GresTypes=gpu
NodeName=n[1-{count}] NodeAddr=10.77.0.[1-{count}] CPUs=64 Boards=1 SocketsPerBoard=1 CoresPerSocket=64 \
ThreadsPerCore=1 RealMemory=2000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    absent = [tool for tool in TOOLS if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    return absent and f"{', '.join(absent)} not found; apt-get install slurmctld slurmd slurm-client munge"


def start(hosts):
    (FOLDER / "state").mkdir(parents=True)
    key = FOLDER / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    for i in range(4):  # stand-ins for GPUs
        subprocess.run(["mknod", FOLDER / f"gpu{i}", "c", "1", "3"], check=True)
    (FOLDER / "gres.conf").write_text(f"NodeName=n[1-{len(hosts)}] Name=gpu File={FOLDER}/gpu[0-3]\n")
    (FOLDER / "slurm.conf").write_text(CONFIGURATION.format(head=HEAD, folder=FOLDER, count=len(hosts)))
    for host in hosts:
        for kind in "spool", "tmp":
            (FOLDER / f"{kind}-{host.name}").mkdir()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    subprocess.run(["munged", "--force", f"--key-file={key}", f"--socket={FOLDER}/munge.socket",
                    f"--pid-file={FOLDER}/munged.pid", f"--log-file={FOLDER}/munged.log",
                    f"--seed-file={FOLDER}/munge.seed", "--num-threads=2"], check=True)
    subprocess.run(["slurmctld", "-i", "-c"], check=True)
    for host in hosts:
        subprocess.run(host.command("slurmd"), check=True)
    assert eventually(lambda: say("sinfo", "-h", "-t", "idle", "-p", "main", "-o", "%D") ==
                      str(len(hosts))), say("sinfo")


def say(*words, **settings):
    """What a command of SLURM prints."""
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **settings)
    return done.stdout.strip()


class Job:
    """A batch script that has been submitted, from `folder`, where its output goes to NAME.out."""

    def __init__(self, folder, script, *arguments, sbatch=(), env={}):
        self.folder, self.name = folder, next(word.split("=")[1] for word in sbatch if word.startswith("--job-name="))
        said = say("sbatch", "--parsable", "--output=%x.out", *sbatch, script, *arguments, cwd=folder,
                   env={**os.environ, **env})
        self.id = re.fullmatch(r"\d+", said) and said
        self.refusal = None if self.id else said

    @property
    def out(self):
        path = self.folder / f"{self.name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, words, seconds=60):
        return eventually(lambda: words in self.out, seconds)

    def show(self, field):
        """A field of scontrol show job, of the newest job of this name; a busy slurmctld may not answer at once."""
        found = eventually(lambda: re.search(rf"\b{field}=(\S+)", say("scontrol", "show", "job", self.id)), 10)
        return found and found[1]

    @property
    def state(self):
        return self.show("JobState")

    def wait(self, seconds=60):
        """The state it ends in, when nothing of it is left, with its exit code: "FAILED 75"."""
        eventually(lambda: not say("squeue", "--noheader", f"--name={self.name}"), seconds)
        return f"{self.state} {(self.show('ExitCode') or '').split(':')[0]}"

    def __str__(self):
        return f"job {self.id}: {self.refusal or self.state}\n{self.out[-3000:]}"
