"""launch/run over four hosts, and what mpirun's hosts and processes suffer. Started by tests/cluster/four_hosts.py."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import hosts as cluster
from dtrain import ENVIRONMENT, FOLDER, PROGRAM, ROOT, Run, run
from endless_run import ENDLESS, TRAIN, unharmed
from hosts import SHARED, eventually, rank_of
from tap import check, finish

NAME = Path(PROGRAM).name[:15]
WHERE = r"while rank \d waited for .* of step \d+; start again with --resume"
SUM = 63027 * 8  # bytes of a step's sum (comm_sums_open)
KEEPALIVE = 10  # seconds after which Open MPI gives a silent host up at the latest, as launch/run sets it

hosts = cluster.start(4)
n1, n2, n3, n4 = hosts
ENVIRONMENT |= {"OMPI_MCA_plm": "rsh", "OMPI_MCA_plm_rsh_agent": str(SHARED / "agent")}


def start(np, out, *options, env={}, using="n1,n2,n3,n4"):
    """By launch/run, from the head."""
    slots = max(1, np // 4)
    where = ",".join(f"{name}:{slots}" for name in using.split(","))
    return Run([ROOT / "launch" / "run", "-np", np, "-H", where, *options, "--out", FOLDER / out], env, FOLDER)


def go_on(out):
    """An endless run on four hosts, some epochs on its way."""
    running = start(4, out, *ENDLESS, "--checkpoint-every", "4", "--resume")
    if not running.wait_for("epoch: 5 ", 120):
        check(False, f"{out}: gets on its way", running.out.read_text())
    return running


def nothing_left(name):
    check(eventually(lambda: not any(cluster.processes(process) for process in (NAME, "orted", "mpirun")), 20),
          f"{name}: no process is left on any host")


def ended(name, running, seconds, *words):
    """Within so many seconds, with exit code 4 and one line, which has these words; prints both."""
    began = time.monotonic()
    result = running.finish(seconds + 20)
    took = time.monotonic() - began
    print(f"# {name}: exit {result.code} after {took:.1f} s: {result.err}", end="")
    check(result.code == 4 and took < seconds, f"{name}: ends within {seconds} s, exit 4", f"{took:.1f} s\n{result}")
    lines = [line for line in result.err.splitlines() if line != "Killed"]  # which the shell around orted says
    check(len(lines) == 1 and all(re.search(word, lines[0]) for word in words),
          f"{name}: one line that has {', '.join(words)}", result)
    return result


# --- several hosts ------------------------------------------------------------------------------------


def agreement():
    one = run(1, *TRAIN, "--epochs", "4", "--out", "one")
    four = start(4, "four", *TRAIN, "--epochs", "4").finish()
    check(four.code == 0 and "on 4 ranks, 4 hosts" in four.out and four.digest == one.digest,
          "four hosts train as one rank does", f"{four}{one}")
    (FOLDER / "hostfile").write_text("# a host and its ranks a line\nn1 slots=2\nn2 slots=3\nn3 slots=2\n")
    file = Run([ROOT / "launch" / "run", "--hostfile", FOLDER / "hostfile", *TRAIN, "--epochs", "4", "--out", "file"],
               {}, FOLDER).finish()
    check(file.code == 0 and "on 7 ranks, 3 hosts" in file.out and file.digest == one.digest,
          "so do those of a hostfile", f"{file}{one}")

    def on_unlike_hosts(*options):
        return Run([ROOT / "launch" / "run", "--hostfile", FOLDER / "hostfile", *options], {}, FOLDER).finish()

    nets = ["--net", "all", "--seeds", "2", *TRAIN[2:], "--max-steps", "3"]  # more trials than ranks
    alone, together = run(1, *nets, "--out", "alone"), on_unlike_hosts(*nets, "--out", "together")
    digests = re.findall(r"^[ABCD] .* [0-9a-f]{16}$", alone.out, re.M)
    check(together.code == 0 and len(digests) == 8 and
          [line.split()[-1] for line in digests] == re.findall(r"^[ABCD] .* ([0-9a-f]{16})$", together.out, re.M),
          "and several nets in turn, on hosts with unlike numbers of ranks", f"{together}{alone}")
    verified = on_unlike_hosts("--verify=0")
    check(verified.code == 0 and len(re.findall("  right$", verified.out, re.M)) == 8, "and --verify", verified)

    for host in hosts:  # a network that seems to be common to all, but leads nowhere
        subprocess.run(host.command("sh", "-c",
                                    "ip link add docker0 type veth peer name docker1; ip addr add 172.17.0.1/16"
                                    " dev docker0; ip link set docker0 up; ip link set docker1 up"), check=True)
    for network in "eth0", "10.77.0.0/24":
        named = Run([ROOT / "launch" / "run", "-np", "4", "-H", "n1,n2,n3,n4", "--interface", network, *TRAIN,
                     "--epochs", "4", "--out", network.replace("/", "-")], {}, FOLDER).finish()
        check(named.code == 0 and named.digest == one.digest, f"--interface {network} goes past one that leads nowhere",
              named)
    for host in hosts:
        subprocess.run(host.command("ip", "link", "del", "docker0"), check=True)
    settings = {"DTRAIN": "/bin/uname", "OMPI_MCA_orte_default_hostfile": FOLDER / "hostfile"}
    named = Run([ROOT / "launch" / "run", "--nodename"], settings, FOLDER).finish()
    check(named.code == 0 and Counter(named.out.split()) == {"n1": 2, "n2": 3, "n3": 2},
          "hosts that Open MPI's own settings name are used as they say", named)


def killed():
    running = go_on("killed")
    (victim,) = n3.processes(NAME, "/killed ")
    rank = rank_of(victim)
    os.kill(victim, signal.SIGKILL)
    result = ended("a rank killed on another host", running, 10, f"rank {rank} on host n3", "signal 9", WHERE)
    unharmed("a rank killed on another host", "killed", seen=result)

    running = go_on("orted")
    os.kill(n2.processes("orted")[0], signal.SIGKILL)
    result = ended("orted killed", running, 10, "host n2", "start again with --resume")
    unharmed("orted killed", "orted", seen=result)

    for name in "mpirun", "launch-run":
        running = go_on(name)
        if name == "mpirun":
            os.kill(cluster.processes("mpirun", f"/{name} ")[0], signal.SIGKILL)
            result = ended("mpirun killed", running, 10, "mpirun was killed", "--resume")
        else:
            running.signal(signal.SIGKILL)
            result = running.finish()
        nothing_left(f"{name} killed")
        left = [path for host in hosts for path in Path("/proc", str(host.init), "root", "dev", "shm").iterdir()]
        check(not left, f"{name} killed: no shared memory is left", left)
        unharmed(f"{name} killed", name, seen=result)


def unplugged():
    running = go_on("pause")
    n3.unplug()
    time.sleep(3)
    n3.join()
    before = running.out.read_text().count("epoch: ")
    check(eventually(lambda: running.out.read_text().count("epoch: ") > before + 3),
          "a host unplugged for 3 s: goes on")
    running.signal(signal.SIGUSR1)
    result = running.finish()
    check(result.code == 75, "a host unplugged for 3 s: to a normal end", result)
    unharmed("a host unplugged for 3 s", "pause", seen=result)

    running = go_on("unplugged")
    n2.unplug()
    result = ended("a host unplugged", running, KEEPALIVE + 8, "host n2", WHERE)
    nothing_left("a host unplugged")
    n2.join()
    unharmed("a host unplugged", "unplugged", seen=result)

    running = go_on("off")
    n4.power_off()
    result = ended("a host powered off", running, KEEPALIVE + 8, "host n4", WHERE)
    nothing_left("a host powered off")
    unharmed("a host powered off", "off", seen=result)


def scale():
    options = [*TRAIN, "--data", "synthetic:3200+70", "--batch-size", "1024", "--epochs", "1"]
    for host in hosts:
        host.limit("10gbit")
    one = run(1, *options, "--out", "scale-1")
    many = start(64, "scale-64", *options).finish(200)
    print(f"# 64 ranks on 4 hosts: {many.seconds:.1f} s")
    check(many.code == 0 and "on 64 ranks, 4 hosts" in many.out and many.digest == one.digest,
          "64 ranks on 4 hosts train as one does", f"{many}{one}")


def busiest(out, *options):
    """Messages sent and received by the rank that has most of them, and bytes likewise, by Open MPI's own count."""
    (FOLDER / out).mkdir()
    counting = {"enable": "1", "enable_output": "3", "filename": str(FOLDER / out / "messages")}
    result = start(int(out.split("-")[1]), out, *options,
                   env={f"OMPI_MCA_pml_monitoring_{key}": value for key, value in counting.items()}).finish(200)
    check(result.code == 0, f"{out}: starts", result)
    messages, volume = Counter(), Counter()
    for file in (FOLDER / out).glob("messages.*.prof"):
        for *ends, size, count in re.findall(r"^[EI]\t(\d+)\t(\d+)\t(\d+) bytes\t(\d+) msgs", file.read_text(), re.M):
            for rank in ends:
                messages[rank] += int(count)
                volume[rank] += int(size)
    return max(messages.values()), max(volume.values())


def memory(np, *options):
    """What rank 0 has of its own, in bytes, some epochs on its way."""
    running = start(np, f"memory-{np}", *options, "--epochs", "1000000", "--eval-every", "1000000")
    running.wait_for("epoch: 3 ", 200)
    status = next(Path(f"/proc/{pid}/status").read_text() for pid in cluster.processes(NAME, f"memory-{np} ")
                  if rank_of(pid) == 0)
    running.signal(signal.SIGUSR1)
    running.finish()
    return 1024 * int(re.search(r"RssAnon:\s*(\d+) kB", status)[1])


def growth():
    options = [*TRAIN, "--data", "synthetic:3200+70", "--batch-size", "1024"]
    (few, still), (some, _), (many, _) = (busiest(f"start-{np}", *options, "--epochs", "0") for np in (4, 16, 64))
    print(f"# messages of the busiest rank at start-up, on 4, 16 and 64 ranks: {few}, {some}, {many}")
    check(0 < many - some < 1.5 * (some - few), "start-up: messages grow as the logarithm of the ranks",
          (few, some, many))
    step = (busiest("epoch-4", *options, "--epochs", "1")[1] - still) / 4
    print(f"# bytes that the busiest of 4 hosts sends and receives in a step: {step:,.0f}")
    check(2.9 * SUM < step < 3.1 * SUM, "4 hosts: each sends one and a half times the sum, by recursive halving", step)
    few, many = (memory(np, *options) for np in (4, 64))
    print(f"# memory of rank 0 on 4 and 64 ranks: {few >> 10} and {many >> 10} KiB")
    check(many - few < 60 * 16384, "rank 0: less than 16 KiB a rank, nearly all of it Open MPI's", (few, many))


for part in {"agree": (agreement,), "scale": (scale, growth), "kill": (killed,), "unplug": (unplugged,)}[sys.argv[1]]:
    part()
finish()
