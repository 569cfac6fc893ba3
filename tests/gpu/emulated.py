#!/usr/bin/env python3
"""The GPU engine and NCCL's transport through the whole program, on a GPU that is emulated (tests/support/emulated):
all but the libraries' own work."""
# needs: emulated

import functools
import itertools
import json
import shutil
import signal
import socket
import time

from emulated_gpu import FOLDER_OF_PROGRAM, LIBRARIES, TRAIN, emulated
from tap import check, finish, side_by_side

from dtrain import FOLDER, ROOT, Run, content, metrics, preloaded, progress, run, start, weights


def difference(a, b):
    """Of two vectors, as a share of their length."""
    return (sum((x - y) ** 2 for x, y in zip(a, b)) / sum(x * x for x in a)) ** 0.5


def check_close(name, result, out, reference, limit=1e-4):
    """Losses and weights agree but for the rounding of single precision."""
    if not check(result.code == 0, f"{name}: runs", result):
        return
    losses = [[line["loss"] for line in metrics(directory)] for directory in (out, reference)]
    apart = max(abs(a - b) / b for a, b in zip(*losses))
    check(len(losses[0]) == len(losses[1]) and apart < limit, f"{name}: the loss of every epoch", losses)
    apart = difference(weights(reference), weights(out))
    check(apart < limit, f"{name}: weights and momentum", apart)
    checks = [[(line["train_accuracy"], line["test_accuracy"]) for line in metrics(directory)
               if "test_accuracy" in line] for directory in (out, reference)]
    check(checks[0] == checks[1] and checks[0], f"{name}: accuracies", checks)


def parity():
    for net in "AD":
        options = ["--net", net, "--epochs", "2"]
        run(1, *TRAIN, *options, "--engine", "cpu", "--out", f"cpu-{net}")
        check_close(f"net {net} on one GPU as on the CPU", emulated(1, *options, "--out", f"gpu-{net}"), f"gpu-{net}",
                    f"cpu-{net}")
    for np, gpus, comm in (1, 1, "nccl"), (2, 4, "nccl"), (4, 4, "nccl"), (3, 2, "mpi"):
        out = f"{comm}-{np}"
        options = [] if np > 1 else ["--comm", comm]
        result = emulated(np, "--epochs", "2", "--out", out, *options, gpus=gpus)
        check_close(f"net D on {np} ranks and {gpus} GPUs", result, out, "cpu-D")
        check(f"comm {comm}" in result.out, f"summed by {comm}", result)
    described = json.loads(content("nccl-4", "run.json"))
    check(described["net"]["comm_ways"] == "2 rings, the first 0 1 2 3; 2 x SHM/direct/direct, 1 x NET/Socket/0" and
          described["gpu"]["nccl"] == [], "run.json tells NCCL's rings and transports", described["net"])
    (FOLDER / "nccl.conf").write_text("NCCL_ALGO=Ring\nNCCL_DEBUG=WARN\n")
    run(2, *TRAIN, "--max-steps", "1", "--out", "own-log",
        env={**LIBRARIES, "EMULATED_GPUS": "2", "NCCL_CONF_FILE": str(FOLDER / "nccl.conf")})
    described = json.loads(content("own-log", "run.json"))["net"]
    check(described["comm"] == "nccl" and "comm_ways" not in described, "but not if the user wants NCCL's log",
          described)
    result = emulated(2, "--epochs", "2", "--comm", "mpi", "--out", "mpi-2")
    check(weights("mpi-2") == weights("nccl-2"), "NCCL and MPI sum to the same bits", result)
    result = emulated(4, "--epochs", "2", "--out", "unlike", models=2)
    check_close("GPUs of two models", result, "unlike", "cpu-D")
    chosen = json.loads(content("unlike", "run.json"))["net"]["choices"]
    check(["model 1" in device for device in chosen] == [False, True] and all(chosen.values()), "each has chosen",
          chosen)


def checkpoints():
    options = ["--net", "D", "--out", "mixed", "--resume", "--engine"]
    run(2, *TRAIN, "--epochs", "2", "--max-steps", "2", *options, "cpu")
    result = emulated(2, "--epochs", "2", "--max-steps", "5", *options, "cudnn")
    check(result.code == 0 and progress("mixed")["step"] == "5", "a run goes from the CPU to GPUs", result)
    check_close("and back, within an epoch", run(1, *TRAIN, "--epochs", "2", *options, "cpu"), "mixed", "cpu-D")
    for steps in "2", "5", "6":
        result = emulated(2, "--epochs", "2", "--max-steps", steps, "--out", "split", "--resume")
    check(weights("split") == weights("nccl-2") and metrics("split") == metrics("nccl-2"),
          "interrupted twice on 2 GPUs: the same bits", result)


def chosen_in(directory):
    """Whether the run has the dense layers by one kernel."""
    [device] = json.loads(content(directory, "run.json"))["net"]["choices"].values()
    return device["dense layers, 16 samples fp32"]["fused"]


def both_ways():
    """The dense layers by one kernel and by many, whichever this machine finds faster."""
    cache = FOLDER / "cache" / "dtrain" / "cudnn.json"
    found = cache.read_text()
    taken = {choice["fused"] for device in json.loads(found).values() for choice in device.values()}
    for fused in False, True:
        chosen = json.loads(found)
        for choice in itertools.chain(*(device.values() for device in chosen.values())):
            choice["fused"] = fused
        cache.write_text(json.dumps(chosen))
        out = f"fused-{fused}"
        check_close(f"dense layers fused: {fused}", emulated(1, "--epochs", "2", "--out", out), out, "cpu-D")
        check(chosen_in(out) == fused, "as the cache says", out)
    emulated(1, "--epochs", "2", "--max-steps", "2", "--out", "goes-on")
    cache.write_text(found.replace('"fused":\ttrue', '"fused":\tfalse'))
    result = emulated(1, "--epochs", "2", "--out", "goes-on", "--resume")
    check(chosen_in("goes-on") and weights("goes-on") == weights("fused-True"),
          "a run goes on as it began, whatever the cache says now", result)
    cache.write_text('{"another GPU": {"a key": {"candidate": 1}}}')
    emulated(1, "--max-steps", "1", "--batch-size", "8")
    kept = json.loads(cache.read_text())
    check(kept.pop("another GPU") == {"a key": {"candidate": 1}} and kept, "the cache keeps what others chose", kept)
    check(taken == {True} and weights("fused-True") == weights("gpu-D") or
          taken == {False} and weights("fused-False") == weights("gpu-D") or len(taken) == 2,
          "what was chosen at first computed the same bits", taken)
    cache.write_text(found)


def golden():
    """PyTorch's losses and gradients: unit/test_golden.c."""
    for engine in "cudnn", "fused":
        result = Run([FOLDER_OF_PROGRAM / "test_golden", engine, "loss_and_gradient"],
                     {**LIBRARIES, "CMOCKA_MESSAGE_OUTPUT": "TAP"}, ROOT).finish(300)
        check(result.code == 0 and "\nok 1 - loss_and_gradient\n" in result.out,
              f"engine {engine} has PyTorch's gradients", result)


def benchmarks():
    """bench/step and bench/dropout on the emulated GPU: their times mean nothing, their verdicts do."""
    program = str(FOLDER_OF_PROGRAM / "step")
    result = Run([program, "--engine", "cudnn", "--batch", "8", "D"], LIBRARIES, FOLDER).finish()
    check(result.code == 0 and result.out.endswith("VALID\n") and "start to first step" in result.out,
          "bench/step: a step of the GPU engine is the reference's", result)
    command = ["mpirun", "-np", "2", program, "--engine", "cudnn", "--json", "--batch", "32", "A"]
    result = Run(command, {**LIBRARIES, "EMULATED_GPUS": "2"}, FOLDER).finish()
    report = json.loads(result.out) if check(result.code == 0, "bench/step on two ranks: runs", result) else {}
    nodes = [(node["layer"], node["pass"]) for net in report.get("nets", []) for node in net["nodes"]]
    check(report.get("valid") and report["ranks"] == 2 and nodes[0] == ("conv1", "forward") and nodes[-2:] == [
        ("sums", "all-reduce"), ("sgd", "update")], "and tells every node", nodes)
    result = Run([program, "--engine", "fused", "--json", "--batch", "16", "D"], LIBRARIES, FOLDER).finish()
    report = json.loads(result.out) if check(result.code == 0, "bench/step --engine fused: runs", result) else {}
    phases = [node for net in report.get("nets", []) for node in net["nodes"]]
    check(report.get("valid") and len(phases) == 14 and
          all(0 < phase["us"] <= phase["slowest_us"] for phase in phases if phase["pass"] != "grid wait"),
          "and tells every phase, in the mean and of the slowest block", phases)
    result = Run([FOLDER_OF_PROGRAM / "dropout", "1"], LIBRARIES, FOLDER).finish()
    check(result.code == 0 and result.out.endswith("VALID\n") and "emulated GPU" in result.out,
          "bench/dropout: the family on the GPU is the host's", result)
    result = Run([FOLDER_OF_PROGRAM / "dropout", "1"], {}, FOLDER).finish()
    check(result.code == 0 and result.out.endswith("VALID\n") and "no NVIDIA driver" in result.out,
          "and on the CPU where there is none", result)


def unlike_builds():
    """A rank whose program says that another compiler built it. The CPU engine takes it (digests.py)."""
    program = FOLDER_OF_PROGRAM / "dtrain"
    other = FOLDER / "other"
    other.write_bytes(program.read_bytes().replace(b"gcc -march=native\0", b"gcc -march=naive!\0"))
    other.chmod(0o755)
    (FOLDER / "other-cuda.so").symlink_to(f"{program}-cuda.so")
    options = [*TRAIN, "--max-steps", "1", "--out", "unlike-builds"]
    return Run(["mpirun", "-np", "1", program, *options, ":", "-np", "1", other, *options],
               {**LIBRARIES, "EMULATED_GPUS": "2"}, FOLDER).finish()


def unlike_machines():
    """Two ranks that see no GPU, and three that see two."""
    command = [FOLDER_OF_PROGRAM / "dtrain", *TRAIN, "--max-steps", "1", "--out", "unlike-machines"]
    return Run(["mpirun", "-np", "2", "-x", "EMULATED_GPUS=0", *command, ":", "-np", "3", "-x", "EMULATED_GPUS=2",
                *command], LIBRARIES, FOLDER).finish()


def choices():
    result = emulated(2, "--max-steps", "1", gpus=1)
    check(result.code == 0 and "comm mpi (nccl: ranks 0 and 1 share one GPU" in " ".join(result.out.split()),
          "--comm auto says why it is MPI", result)
    check(result.out.count("GPU-00000000-0000-0000-0000-000000000000") >= 2, "the table shows both ranks there", result)
    result = emulated(4, "--max-steps", "1", "--net", "A,D", gpus=2)
    check(result.code == 0 and "comm mpi (nccl: ranks 0 and 2 share one GPU" in " ".join(result.out.split()),
          "ranks that share GPUs with another group's do not sum by NCCL", result)
    result = emulated(2, "--max-steps", "1", "--net", "A,D", gpus=1)
    check(result.code == 0 and " share 1 GPU: start no more ranks than GPUs there" in result.out,
          "ranks of several nets that share a GPU are told, too", result)
    result = emulated(2, "--max-steps", "1", gpus=2, EMULATED_SLICES="2")
    check(result.code == 0 and "comm mpi (nccl: ranks 0 and 1 share one GPU" in " ".join(result.out.split()),
          "NCCL takes slices of one card for one GPU", result)
    result = emulated(2, "--comm", "nccl", gpus=1)
    check(result.code == 2 and len(result.messages) == 1 and all(
        words in result.messages[0] for words in ("ranks 0 and 1", "no more ranks than GPUs", "--comm mpi")),
          "--comm nccl with two ranks on one GPU is refused, with two ways out", result)
    result = emulated(1, "--engine", "cpu", "--comm", "nccl")
    check(result.code == 2 and "--engine cudnn" in result.err and "--comm mpi" in result.err,
          "--comm nccl is refused to the CPU engine", result)
    result = emulated(1, "--engine", "cpu", "--precision", "tf32")
    check(result.code == 2 and "fp32" in result.err, "--precision tf32 is refused to the CPU engine", result)
    result = emulated(2, "--max-steps", "1", gpus=0)
    check(result.code == 0 and "engine cpu (cudnn: no GPU is visible" in " ".join(result.out.split()),
          "without a GPU it is the CPU, and a line says why", result)
    result = emulated(2, "--engine", "cudnn", gpus=0)
    host = f"on host {socket.gethostname()}"
    check(result.says(2, f"--engine cudnn: rank 0 {host} cannot run it: no GPU is visible"),
          "--engine cudnn without a GPU is refused, and names the host", result)
    result = unlike_machines()
    check(result.says(2, f"rank 0 {host} chose engine cpu (cudnn: no GPU is visible", f"but rank 2 {host} engine cudnn "
                         "(2 GPUs visible"), "ranks that chose unlike engines are refused, and it says why each did",
          result)
    result = run(1, *TRAIN, "--max-steps", "1", "--out", "no-driver")
    check(result.code == 0 and "no NVIDIA driver" in " ".join(result.out.split()), "nor does it need a driver", result)
    result = unlike_builds()
    check(result.says(2, "rank 1", "gcc -march=native", "gcc -march=naive!"),
          "ranks by unlike compilers are refused on GPUs", result)
    result = run(1, "--doctor", "--data", "synthetic:40+20", env={**LIBRARIES, "EMULATED_GPUS": "2"})
    check(result.code == 0 and "cuDNN" in result.out and "GPU 0 of 2" in result.out, "the doctor knows the GPUs",
          result)
    result = run(1, "--doctor", "--data", "synthetic:40+20")
    check(result.code == 0 and ", cuDNN" in result.out and result.out.count("emulated/dtrain-cuda.so\n") == 3 and
          "no NVIDIA driver" in result.out, "without a driver it names the libraries all the same, and their files",
          result)


def four_nets():
    result = emulated(1, "--net", "all", "--epochs", "2", "--out", "all")
    check(result.code == 0 and all(weights(f"all/{net}") == weights(f"gpu-{net}") for net in "AD"),
          "four nets at once on one GPU: the same bits as each alone", result)
    first = [result.out.index(f"net: {net} epoch: 1 ") for net in "ABCD"]
    last = [result.out.index(f"net: {net} epoch: 2 ") for net in "ABCD"]
    check(max(first) < min(last), "and they do run at once", result)
    described = json.loads(content("all", "A", "run.json"))["gpu"]
    check("NCCL 2" in described["versions"] and "emulated GPU" in described["ranks"][0], "run.json has the GPUs",
          described)
    result = emulated(3, "--net", "A,D", "--epochs", "2", "--out", "uneven")
    check(result.code == 0 and weights("uneven/A") == weights("gpu-A") and weights("uneven/D") == weights("nccl-2"),
          "two nets on three GPUs, one of them alone without NCCL: the same bits as each by itself", result)
    running = start(1, *TRAIN, "--net", "A,C,D", "--epochs", "100000", "--out", "stop-all", env=LIBRARIES)
    check(running.wait_for("epoch: 1"), "three endless nets begin")
    running.signal(signal.SIGUSR1, 0)
    result = running.finish()
    check(result.code == 75 and all(int(progress(f"stop-all/{net}")["step"]) > 0 for net in "ACD"),
          "a signal stops all of them, saved", result)


def ends():
    result = emulated(2, "--lr", "1000000", "--epochs", "50")
    check(result.code == 1 and "not finite" in result.err, "a loss that is not finite ends the run", result)
    for rank in 0, 1:
        running = start(2, *TRAIN, "--epochs", "100000", "--out", f"stop-{rank}",
                        env={**LIBRARIES, "EMULATED_GPUS": "2"})
        check(running.wait_for("epoch: 1"), "an endless run begins")
        running.signal(signal.SIGUSR1, rank)
        result = running.finish()
        check(result.code == 75 and progress(f"stop-{rank}")["step"] == str(result.step),
              f"a signal to rank {rank} stops both, saved", result)
        result = emulated(2, "--epochs", "100000", "--max-steps", str(result.step + 2), "--resume", "--out",
                          f"stop-{rank}", gpus=2)
        check(result.code == 0, "and the run goes on", result)
    for number in signal.SIGKILL, signal.SIGSTOP:
        running = start(2, *TRAIN, "--epochs", "100000", "--out", number.name, "--timeout", "10",
                        env={**LIBRARIES, "EMULATED_GPUS": "2"})
        check(running.wait_for("epoch: 1"), "an endless run begins")
        running.signal(number, 1)
        began = time.monotonic()
        result = running.finish()
        check(result.code == 4 and time.monotonic() - began < 30, f"{number.name}: the other ends in time", result)
        check("rank 1" in result.err, "and names the rank that is lost", result)


def changed_data():
    """Pictures that change before a GPU has copied them are refused; afterwards they do not matter."""
    library = preloaded("changed", """
        #include <fcntl.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static void change_at(const char *name)
        {
            int file = strcmp(name, getenv("CHANGED_AT")) == 0 ? open(getenv("CHANGED"), O_WRONLY) : -1;
            if (file >= 0 && pwrite(file, "changed", 7, 1) != 7)
                _exit(9);
        }
        int linkat(int from, const char *old, int to, const char *new, int flags)
        {
            change_at(old); /* "lock": it is tried as the directory is opened */
            return (int)syscall(SYS_linkat, from, old, to, new, flags);
        }
        int renameat(int from, const char *old, int to, const char *new)
        {
            change_at(new); /* "run.json": when all trainers are open */
            return (int)syscall(SYS_renameat, from, old, to, new);
        }""")
    (drawn,) = (FOLDER / "cache" / "dtrain").glob("synthetic-40-20")
    for name, code in ("lock", 3), ("run.json", 0):
        data = shutil.copytree(drawn, FOLDER / f"changed-at-{name}")
        result = emulated(1, "--epochs", "1", "--eval-every", "1", "--data", data, CHANGED_AT=name,
                          CHANGED=str(data / "data_batch_2.bin"), LD_PRELOAD=str(library))
        check(result.code == code and result.err.count("data_batch_2.bin was changed") == (code == 3),
              f"pictures change by the time of {name}: exit {code}", result)


def failures():
    """What a GPU fails at is said in words, with its address."""
    host = socket.gethostname()
    for engine in "cudnn", "fused":
        result = emulated(2, "--engine", engine, gpus=2, EMULATED_OLD="1")
        check(result.says(1, f"rank 1 on host {host}, GPU 1 (0000:01:00.0): ", "7.0", "8.0", "CUDA_VISIBLE_DEVICES"),
              f"engine {engine}: a GPU of an early kind that is not the first one is refused", result)
        result = emulated(2, "--engine", engine, gpus=2, EMULATED_TAKEN="1")
        check(result.says(1, f"rank 1 on host {host}, GPU 1 (0000:01:00.0): another process, or another rank, has it"),
              f"engine {engine}: a GPU that another process has for itself is named", result)
        result = emulated(2, "--engine", engine, gpus=2, EMULATED_UNLOADABLE="1")
        check(result.says(1, f"rank 0 on host {host}, GPU 0 (0000:00:00.0): ", "no kernel image", "make SM=90"),
              f"engine {engine}: a GPU that the kernels were not built for is refused", result)
        result = emulated(1, "--engine", engine, "--epochs", "100", EMULATED_FAILS_AT="100")
        check(result.says(1, f"rank 0 on host {host}, GPU 0 (0000:00:00.0): CUDA: a step or a check on the GPU",
                          "launch failure"), f"engine {engine}: a step that fails is said to be one", result)


def one_gpu_seen():
    """Ranks that see one GPU each: NCCL goes by way of the host's memory where they cannot map each other's, unless the
    user has said otherwise, in the environment or in a file."""
    hidden = {"gpus": 2, "EMULATED_ALONE": "1"}
    result = emulated(2, "--max-steps", "1", **hidden)
    check(result.code == 0 and "comm nccl (every rank has a GPU of its own)" in result.out,
          "ranks that see one GPU each, and can map the others' memory, sum by NCCL", result)
    result = emulated(2, "--max-steps", "1", "--out", "hidden", **hidden, EMULATED_IPC="0", EMULATED_IPC_RANK="1")
    check(result.code == 0 and "NCCL_P2P_DISABLE=1, as rank 1 cannot map GPU memory of rank 0" in result.out,
          "and where one cannot NCCL goes by way of the host's memory, and a line says why", result)
    settings = json.loads(content("hidden", "run.json"))["gpu"]["nccl"]
    check(settings == ["NCCL_P2P_DISABLE=1"], "as does run.json", settings)
    (FOLDER / "p2p.conf").write_text("NCCL_P2P_DISABLE=0\n")
    for own in {"NCCL_P2P_DISABLE": "0"}, {"NCCL_CONF_FILE": str(FOLDER / "p2p.conf")}:
        result = emulated(2, "--max-steps", "1", **hidden, EMULATED_IPC="0", **own)
        check(result.code == 1 and "let every rank see all GPUs" in result.err and "--comm mpi" in result.err,
              f"but not over the user's own {list(own)}: then it fails, and its line says what to try", result)


def nccl_fails(name, broken, code, *words, timeout=60, **environment):
    """NCCL says a result from a sum on, RESULT:SUM."""
    result = emulated(2, "--epochs", "1000", "--timeout", str(timeout), gpus=2, EMULATED_NCCL=broken, **environment)
    check(result.code == code and all(word in result.err for word in words) and
          ("--resume" in result.err) == (code == 4 and timeout == 60), name, result)


def trouble_of_nccl():
    """An error of CUDA (1), of the system (2), of the remote (6), as it starts, at its first sum, or later; a sum that
    has no end (7). Whether a rank is lost mpirun has 15 s to say."""
    start_fails = 1, "the start of NCCL", "--comm mpi"
    side_by_side(7, *(functools.partial(nccl_fails, *case, **more) for case, more in (
        (("an error of the system as NCCL starts is no lost rank: the line says what to try", "2:0", *start_fails,
          "/dev/shm", "ulimit -l", "NCCL_SOCKET_IFNAME"), {}),
        (("nor is one at its first sum", "2:1", *start_fails, "/dev/shm"), {}),
        (("nor one of the remote", "6:1", *start_fails, "/dev/shm"), {}),
        (("an error of CUDA: the line says what to let the ranks see", "1:1", *start_fails, "--gpu-bind=none"), {}),
        (("a rank that is killed as NCCL starts is lost", "2:1", 4, "rank 1", "the start of NCCL"),
         {"EMULATED_NCCL_KILLED": "1"}),
        (("an error of the system later is a lost rank", "2:5", 4, "the gradient sum"), {}),
        (("a sum without an end: the line says what to try", "7:5", 4, "none gets on", "--comm mpi",
          "NCCL_P2P_DISABLE=1"), {"timeout": 4}))))


parity()
checkpoints()
both_ways()
golden()
benchmarks()
choices()
four_nets()
ends()
changed_data()
failures()
one_gpu_seen()
trouble_of_nccl()
finish()
