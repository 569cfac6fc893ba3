#!/usr/bin/env python3
"""What launch/run makes of the words and the end of an mpirun, and slurm/job.sh of the end of an srun, for which shell
scripts stand in."""
# needs: dtrain

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from launching import ROOT, SCRATCH, fails, launch, place_mpirun, said
from tap import check, finish

HYDRA = "HYDRA build details:"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.18.1"


def with_mpirun(script, version="mpirun (Open MPI) 4.1.4", env={}, **settings):
    """launch/run with this shell script in mpirun's place; .left are the processes that outlive it."""
    folder, found = place_mpirun(script, version)
    done = launch("run", "-np", 2, env=found | env, **settings)
    done.left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if bytes(folder) in (process / "environ").read_bytes():
                done.left.append((process / "cmdline").read_text())
    return done


def test_relay():
    """What Open MPI and the ranks write, in ways that real runs seldom show."""
    rule = "-" * 74
    lost = f"{rule}\nmpirun noticed that process rank 1 with PID 5 on node h exited on signal 9 (Killed).\n{rule}"
    told = "launch/run: lost rank 1 on host h, ended by signal 9 (Killed); start again with --resume\n"
    for name, before in ("alone", ""), ("after a line of dashes", "----------\n"), ("within a line", "abc"):
        done = with_mpirun(f"printf '%s' '{before}{lost}\n' >&2; exit 137")
        rest = before if before.endswith("\n") or not before else before + "\n"
        check(done.returncode == 4 and done.stderr == rest + told, f"a banner {name}: one line, exit 4", said(done))
    broken = "".join(f"[h][[1,1],3][../opal/mca/btl/tcp/btl_tcp_{where}\n" for where in (
        "frag.c:135:mca_btl_tcp_frag_send] mca_btl_tcp_frag_send: writev failed: Connection reset by peer (104)",
        "endpoint.c:1065:mca_btl_tcp_endpoint_send_handler] invalid connection state (2)"))
    done = with_mpirun(f"printf '%s' '{broken}{lost}\n' >&2; exit 137")
    check(done.returncode == 4 and done.stderr == told, "broken connections to a rank that is lost: not told",
          said(done))
    daemon = (f"{rule}\nORTE has lost communication with a remote daemon.\n\n"
              f"  Remote daemon: [[1,0],2] on node k \n{rule}\n")
    begin = f"{rule}\nORTE was unable to reliably start one or more daemons.\nThis usually is caused by:\n{rule}\n"
    for words, told_host in (
            ("ssh: Could not resolve hostname nosuch: Name or service not known\r\n",
             r"host nosuch, which ssh cannot reach \(Name or service not known\)"),
            ("ssh: connect to host m port 22: Connection refused\r\n",
             r"host m, which ssh cannot reach \(Connection refused\)"),
            ("", "a host, on which Open MPI's daemon does not start")):
        done = with_mpirun(f"cat >&2 <<'END'\n{words}{begin}END\nexit 255")
        check(done.returncode == 4 and
              re.fullmatch(f"launch/run: lost {told_host}; start again with --resume\n", done.stderr),
              f"a host that is not reached: lost {told_host}", said(done))
    route = f"{rule}\nORTE does not know how to route a message to the specified daemon\n  target node:  m\n{rule}\n"
    done = with_mpirun(f"printf '%s' '{route}{daemon}' >&2; exit 137")
    check(done.returncode == 4 and
          done.stderr == "launch/run: lost host k, or Open MPI's daemon there; start again with --resume\n",
          "no route to the daemons behind one that is lost: not told", said(done))
    done = with_mpirun(f"printf '%s' '{broken}' >&2; exit 1")
    check(done.returncode == 1 and done.stderr == broken, "broken connections, and nothing lost: told", said(done))
    closed = "".join(f"[h:00000] *** {line}\n" for line in (
        "An error occurred in Socket closed", "on a NULL communicator",
        "MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,"))
    done = with_mpirun(f"printf '%s' '{closed}' >&2; exit 14")
    check(done.returncode == 4 and
          done.stderr == "launch/run: lost a rank, to which host h's connection closed; start again "
          "with --resume\n", "a rank that finds another's connection closed: one line, exit 4", said(done))
    done = with_mpirun(f"printf '%s' '{closed}{lost}\n' >&2; exit 137")
    check(done.returncode == 4 and done.stderr == told, "and is not told where the lost one is named", said(done))
    done = with_mpirun(f"echo 'dtrain: disk full' >&2; printf '%s' '{closed}' >&2; exit 1")
    check(done.returncode == 1 and "dtrain: disk full" in done.stderr, "nor where dtrain itself said what is wrong",
          said(done))
    note = "dtrain: note: no room\n"
    done = with_mpirun(f"printf '%s' '{note}{closed}' >&2; exit 14")
    check(done.returncode == 4 and re.fullmatch(f"{note}launch/run: lost a rank, to which host h.*\n", done.stderr),
          "but where it noted something only", said(done))
    done = with_mpirun(f"echo 75 >$DTRAIN_EXIT_FILE; printf '%s' '{closed}' >&2; exit 14")
    check(done.returncode == 75 and done.stderr == closed, "no rank is lost once they have saved and ended", said(done))
    null = subprocess.DEVNULL  # a pipe would wait for what is left
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; exit 4", capture_output=False, stdout=null, stderr=null)
    check(done.returncode == 4 and not done.left, "mpirun that ends by itself: nothing outlives launch/run", done.left)
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; exec sleep 100")
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n",
          "mpirun that waits for a host that is gone is ended", said(done))
    begun = "dtrain: starting MPI has taken 60 s: a rank is stuck\n"
    failed = f"{rule}\nA system call failed during shared memory initialization that should\nnot have.\n"
    shared = f"{failed}  System call: open(2)\n{rule}\n"
    done = with_mpirun(f"printf '%s' '{begun}{shared}' >&2; exit 4")
    check(done.returncode == 4 and done.stderr == begun,
          "a rank stuck in MPI_Init: what others say of its end is not told", said(done))
    gone = (f"{failed}\n  Local host:  h\n  System call: unlink(2) /tmp/ompi.h.0/pid.5/1/vader_segment.h.0.6bb60001.2\n"
            f"  Error:       No such file or directory (errno 2)\n{rule}\n")
    done = with_mpirun(f"printf '%s' '{gone}' >&2")
    check(done.returncode == 0 and done.stderr == "", "a segment that is gone already as the run ends: not told",
          said(done))
    full = gone.replace("unlink(2)", "open(2)").replace("No such file or directory (errno 2)",
                                                        "No space left on device (errno 28)")
    done = with_mpirun(f"printf '%s' '{full}' >&2; exit 1")
    check(done.returncode == 1 and done.stderr == full, "shared memory that cannot be had: told", said(done))
    done = with_mpirun("printf abc >&2; exit 3")
    check(done.returncode == 3 and done.stderr == "abc\n", "a last line without an end is told", said(done))
    with open("/dev/full", "w") as full:
        done = with_mpirun("echo abc >&2; exit 75", capture_output=False, stderr=full)
    check(done.returncode == 75, "the exit code stays where nothing can be written", done.returncode)
    with open("/dev/full", "w") as full:
        done = with_mpirun('echo "$DTRAIN_MARK" >&2; kill -s KILL $$', capture_output=False, stderr=full)
    check(done.returncode == 4, "and so it does where mpirun is killed", done.returncode)


def test_relay_of_hydra():
    """What MPICH's and Intel's launchers say, the former in an order that depends on chance."""
    bar = "=" * 83
    for codes, which in (("[h] 0,11,9", "rank 1 on host h"), ("[k] 0,9\n[h] 0,11", "a rank on host h"),
                         ("[h] 9", "a rank")):
        banner = (f"\n{bar}\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n{bar}\n"
                  f"[mpiexec@h] Exit codes: {codes}\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: "
                  "Segmentation fault (signal 11)\nThis typically refers to a problem with your application.\n")
        done = with_mpirun(f"printf 'epoch\n%s' '{banner}'; exit 11", HYDRA)
        told = f"launch/run: lost {which}, ended by signal 11 (Segmentation fault); start again with --resume\n"
        check(done.returncode == 4 and done.stderr == told and done.stdout == "epoch\n",
              f"MPICH, exit codes {codes!r}: {which}", said(done))
    done = with_mpirun(f"echo '[mpiexec@h] Exit codes: [h] 9,9'; echo '{bar}'; echo 'YOUR APPLICATION TERMINATED WITH "
                       "THE EXIT STRING: Killed (signal 9)'; exit 9", HYDRA)
    check(done.returncode == 4 and "one of the ranks 0 1" in done.stderr, "MPICH: which of two is not known",
          said(done))
    done = with_mpirun("printf 'epoch\n[mpiexec@h] Exit codes: [h] 0,0\n[k] 0,0\n'", HYDRA)
    check(done.returncode == 0 and done.stdout == "epoch\n" and not done.stderr, "MPICH: exit codes of several hosts",
          said(done))
    banner = (f"\n{bar}\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 12 RUNNING AT k\n"
              f"=   EXIT CODE: 9\n{bar}\n")
    broken = "[proxy:0@h] HYD_pmcd_pmip_control_cmd_cb (/src/proxy/pmip_cb.c:490): assert (!closed) failed"
    for printed, which in ((banner, "a rank on host k"),
                           ("", r"a rank or a host, by what mpirun says \(assert \(!closed\) failed\)")):
        done = with_mpirun(f"printf 'epoch\n%s' '{printed}'; echo '{broken}' >&2; exit 255", HYDRA)
        check(done.returncode == 4 and done.stdout == "epoch\n" and re.fullmatch(
            f"launch/run: lost {which}; start again with --resume\n", done.stderr),
              f"MPICH's own failure: lost {which}", said(done))
        done = with_mpirun(f"echo epoch; printf 'dtrain: note: no room\n%s\n' '{broken}' >&2; printf '%s' '{printed}'; "
                           "exit 255", HYDRA)
        check(done.returncode == 4 and
              re.fullmatch(f"dtrain: note: no room\nlaunch/run: lost {which}; start again with --resume\n",
              done.stderr), f"and after a note: lost {which}", said(done))
    for name, lines in ("MPICH", ("HYDU_sock_get_iface_ip (sock.c:447): unable to find interface eth7",
                                  "main (mpiexec.c:266): process manager returned error")), (
            "Intel", ("get_local_host (bstrap.c:260): unable to get iface ip", "Error setting up the bootstrap proxies",
                      "1. Host is unavailable. Please check that all hosts are available.")):
        lines = "".join(f"[mpiexec@a] {line}\n" for line in lines)
        done = with_mpirun(f"printf '%s' '{lines}' >&2; exit 255", HYDRA)
        check(done.returncode == 255 and done.stderr == lines,
              f"{name} that cannot start a rank: nothing is lost, all is told", said(done))
    for name, ending, code in (("ended well", "exit 0", 0),
                               ("saved and ended", "echo 75 >$DTRAIN_EXIT_FILE; exit 255", 75)):
        done = with_mpirun(f"echo epoch; echo '{broken}' >&2; {ending}", HYDRA)
        check(done.returncode == code and done.stderr == f"{broken}\n", f"Hydra's own failure, and the ranks {name}",
              said(done))
    banner = "".join(f"\n{bar}\n=   RANK {rank} PID 5 RUNNING AT h\n=   KILLED BY SIGNAL: {how}\n{bar}\n"
                     for rank, how in ((0, "26 (Virtual timer expired)"), (1, "9 (Killed)")))
    done = with_mpirun(f"printf 'epoch\n%s' '{banner}'; exit 255", INTEL)
    told = "launch/run: lost rank 1 on host h, ended by signal 9 (Killed); start again with --resume\n"
    check(done.returncode == 4 and done.stderr == told and done.stdout == "epoch\n", "Intel: the first to die is named",
          said(done))
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; echo 'Abort(4) on node 0 (rank 0 in comm 480): application "
                       "called MPI_Abort(comm=0x84000006, 4) - process 0' >&2; exit 255", INTEL)
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n", "MPI_Abort's code is the exit code",
          said(done))
    done = with_mpirun("echo 'dtrain: lost 1 of 2' >&2; echo 'Abort(4) on node 0 (rank 0 in comm 480): application "
                       "called MPI_Abort(comm=0x84000006, 4) - process 0' >&2; exec sleep 100", INTEL)
    check(done.returncode == 4 and done.stderr == "dtrain: lost 1 of 2\n", "a launcher that hangs after it is ended",
          said(done))
    done = with_mpirun("printf 'a\n\n=b'; sleep 0.3; printf 'c\n'; printf '~d'; sleep 0.3; printf '~e'", HYDRA)
    check(done.stdout == "a\n\n=bc\n~d~e", "output passes as it is", repr(done.stdout))
    done = with_mpirun("echo no", "mpirun of tomorrow 9.1")
    check(fails(done, 1, "mpirun of tomorrow 9.1", "Open MPI", "MPICH"), "a launcher that is not known is refused",
          said(done))


def test_silence():
    """A site may export TMOUT, after which bash ends a `read` from a pipe."""
    done = with_mpirun("sleep 2.5; echo out; echo error >&2", HYDRA, env={"TMOUT": "1"})
    check(done.returncode == 0 and done.stdout == "out\n" and done.stderr == "error\n",
          "ranks that are silent for longer than TMOUT are heard", said(done))


def test_jobs():
    """A batch job where requeueing is off: each sbatch starts the successor, of which there are four at most."""
    stand_ins = {
        "scontrol": "echo Requeue=0",
        "squeue": "echo 1:00:00",
        "sleep": ":",
        "sbatch": '(($(wc -l <started) >= 4)) || exec bash "$JOB"',
    }
    home = Path(tempfile.mkdtemp(dir=SCRATCH))
    for name, script in stand_ins.items():
        (home / name).write_text(f"#!/bin/bash\n{script}\n")
        (home / name).chmod(0o755)
    (home / "job").write_text(f". {ROOT}/slurm/job.sh\ntrain train.sbatch\n")
    env = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "chain", "SLURM_JOB_NUM_NODES": "1",
                        "SLURM_JOB_PARTITION": "main", "SLURM_SUBMIT_DIR": str(home), "LAUNCHER": "srun",
                        "JOB": str(home / "job"), "PATH": f"{home}:{os.environ['PATH']}"}
    further = "mkdir -p runs/chain; echo >runs/chain/checkpoint.safetensors.$$; " \
              "mv runs/chain/checkpoint.safetensors.$$ runs/chain/checkpoint.safetensors"
    held = "(($(wc -l <started) > 3)) || exit $(($(wc -l <started) == 1 ? 4 : 2))"
    for how, srun, starts in (("is lost at once", "exit 4", 2),
                              ("is lost each time, but comes further", f"{further}; exit 4", 4),
                              ("is lost, and holds the directory a while", held, 4)):
        (home / "started").unlink(missing_ok=True)
        (home / "srun").write_text(f"#!/bin/bash\necho >>started\n{srun}\n")
        (home / "srun").chmod(0o755)
        done = subprocess.run(["bash", home / "job"], cwd=home, env=env, capture_output=True, text=True, timeout=60,
                              check=False)
        started = (home / "started").read_text().count("\n")
        check(started == starts, f"a job without requeueing whose rank {how}: {starts} starts",
              f"{started}\n{said(done)}")


test_relay()
test_relay_of_hydra()
test_silence()
test_jobs()
finish()
