"""Fake hosts on this machine: each has its own network stack, processes, name and /dev/shm, as a machine has; they
share one file system, SHARED, as over NFS.

All of it lives in namespaces, the shared file system too: when the process that made them ends, however it ends,
the kernel takes everything away.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tap import check

SHARED = Path("/mnt")
HEAD = "10.77.0.254"  # of the process itself, beside the hosts
RATE = "200mbit"  # a slow network: the ranks are mostly in the all-reduce, and few steps go by a second
TOOLS = "unshare", "setpriv", "nsenter", "mount", "ip", "tc"


def missing():
    """Why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not found; apt-get install iproute2 util-linux"
    tried = subprocess.run([*_namespaces(), "sh", "-c",
                            "ip link add name b type bridge && ip link add name v type veth"],
                           stderr=subprocess.PIPE, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def _namespaces():
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork",
            "--kill-child", "--mount-proc"]


def enter(*command):
    """Starts a command in namespaces of its own, with an empty SHARED; they end with it, and with us. bash is their
    first process, here and in each host: it buries the dead."""
    script = f'mount -t tmpfs dtrain-test {SHARED} && mount -t tmpfs dtrain-test /dev/shm && mkdir {SHARED}/tmp && ' \
        '"$@"; exit'
    return subprocess.Popen([*_namespaces(), "bash", "-c", script, "bash", *command], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                            env={**os.environ, "TMPDIR": f"{SHARED}/tmp"})


def _ip(words, prefix=()):
    subprocess.run([*prefix, "ip", *words.split()], check=True)


class Host:
    def __init__(self, number):
        self.name, self.address, self._cable = f"n{number}", f"10.77.0.{number}", f"veth{number}"
        setup = ("mount -t tmpfs -o size=2g dtrain-test /dev/shm; ip link set lo up; hostname " + self.name +
                 "; echo up; sleep infinity; exit")
        self._process = subprocess.Popen([*_namespaces(), "bash", "-c", setup], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._process.stdout.readline()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.init = int(children.read_text().split()[0])
        self.network = os.readlink(f"/proc/{self.init}/ns/net")
        _ip(f"link add {self._cable} type veth peer name eth0 netns {self.init}")
        self.join()
        _ip(f"addr add {self.address}/24 dev eth0", self.command())
        _ip("link set eth0 up", self.command())
        self.limit(RATE)

    def command(self, *words):
        """A command line that does this on the host."""
        return ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", *map(str, words)]

    def limit(self, rate):
        """The speed of its network, both ways."""
        for prefix, device in ([], self._cable), (self.command(), "eth0"):
            subprocess.run([*prefix, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst",
                            "256k", "latency", "400ms"], check=True)

    def unplug(self):
        """Nothing gets through any more; nobody is told."""
        _ip(f"link set {self._cable} nomaster")

    def join(self):
        _ip(f"link set {self._cable} master eth0 up")

    def power_off(self):
        self.unplug()
        (SHARED / f"off-{self.init}").touch()
        os.kill(self.init, signal.SIGKILL)
        self._process.wait()

    def processes(self, name, words=""):
        """Ids of the host's processes with this name and these words on their command line or in their environment."""
        return [pid for pid in processes(name, words) if _network(pid) == self.network]


def _network(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def processes(name, words=""):
    """On all hosts."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = "\0".join((directory / file).read_text(errors="replace") for file in ("cmdline", "environ"))
            if (directory / "comm").read_text().strip() == name and words in text.replace("\0", " "):
                found.append(int(directory.name))
        except OSError:
            pass  # it has ended
    return found


def rank_of(pid):
    """The rank that a process is."""
    environment = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return int(re.search(r"(?:^|\0)(?:OMPI_COMM_WORLD_RANK|PMIX_RANK|PMI_RANK)=(\d+)", environment)[1])


def start(count):
    """So many hosts, n1 and on, on one bridge with us. AGENT in SHARED stands in for ssh."""
    hosts = [f"{HEAD} head", *(f"10.77.0.{i} n{i}" for i in range(1, count + 1))]
    (SHARED / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    subprocess.run(["mount", "--bind", SHARED / "hosts", "/etc/hosts"], check=True)
    subprocess.run(["hostname", "head"], check=True)
    for words in ("link set lo up", "link add eth0 address 02:00:00:00:00:fe type bridge",
                  f"addr add {HEAD}/24 dev eth0", "link set eth0 up"):
        _ip(words)
    machines = [Host(i) for i in range(1, count + 1)]
    cases = "".join(f"{host.name}) init={host.init} ;;\n" for host in machines)
    agent = SHARED / "agent"
    agent.write_text(f"""#!/bin/sh
# agent [-OPTION...] HOST COMMAND...: as ssh, in a fresh environment
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in
{cases}esac
shift
nsenter -t $init -m -u -i -n -p -- env -i HOME=/root USER=root PATH="$PATH" TMPDIR={SHARED}/tmp /bin/sh -c "$*"
code=$?
[ ! -e {SHARED}/off-$init ] || exec sleep infinity >/dev/null 2>&1 # ssh to a host without power waits
exit $code
""")
    agent.chmod(0o755)
    return machines


def eventually(condition, seconds=30):
    """Whether it comes true in time; its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def relay(commands):
    """Runs several test programs at once, each in namespaces of its own, and tells their results as our own."""
    running = [(name, enter(sys.executable, *command)) for name, *command in commands]
    for name, process in running:
        out, _ = process.communicate()
        for line in out.splitlines():
            point = re.match(r"(not )?ok \d+ - (.*)", line)
            if point:
                check(not point[1], f"{name}: {point[2]}")
            elif not line.startswith("1.."):
                print(line if line.startswith("#") else f"# {line}")
        check(re.search(r"^1\.\.\d+$", out, re.M), f"{name}: came to its end")
