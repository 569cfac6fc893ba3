#!/usr/bin/env python3
"""Disks that are full, directories that may not be written or are another run's: one line, and nothing
saved is lost."""
# needs: dtrain

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

if os.geteuid() == 0 and "own-mounts" not in sys.argv and \
        subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0:
    os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv, "own-mounts"])  # which end with this process

from dtrain import FOLDER, PROGRAM, ROOT, Run, content, metrics, preloaded, progress, run, run_all, start
from endless_run import ENDLESS, TRAIN, go_on, unharmed
from tap import check, finish, skip

HOST = socket.gethostname()


def unwritable():
    (FOLDER / "file").write_text("not a directory")
    places = [FOLDER / "file" / "below", "/proc/none", FOLDER / "file"]
    for out, result in zip(places, run_all([(2, *TRAIN, "--epochs", "1", "--out", out) for out in places])):
        check(result.says(1, out, "--out") and result.out == "", f"--out {out} is refused before any work",
              result)
    result = run(0, *TRAIN, "--epochs", "1", "--out", "x" * 5000)
    check(result.says(2, "--out"), "so is a path too long", result)


@contextlib.contextmanager
def small_disk(size):
    """A file system of that size, or None where it cannot be mounted."""
    place = FOLDER / "small"
    place.mkdir(exist_ok=True)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "dtrain-test", place], stderr=subprocess.DEVNULL,
        check=False).returncode == 0
    if not mounted:
        skip("a disk that is full", "no small file system can be mounted here")
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", place], check=True)


def fill(disk):
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def seldom():
    """Short epochs do not wait for the disk each: checkpoints are a second apart, but for the last one. Each waits for
    it thrice, that a power cut leaves what the files say: metrics, the file, and its name."""
    library = preloaded("counted", """
        #include <fcntl.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static void note(char what)
        {
            int notes = open("checkpoints", O_WRONLY | O_CREAT | O_APPEND, 0666);
            if (write(notes, &what, 1) != 1)
                _exit(9);
            close(notes);
        }
        static int is(int fd, const char *what)
        {
            char link[40], name[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            return readlink(link, name, sizeof name - 1) > 0 && strstr(name, what) != NULL;
        }
        int renameat(int from, const char *old, int to, const char *new)
        {
            if (strcmp(new, "checkpoint.safetensors") == 0)
                note('.');
            return (int)syscall(SYS_renameat, from, old, to, new);
        }
        int fdatasync(int fd)
        {
            if (is(fd, "/seldom/metrics.jsonl"))
                note('m');
            return 0;
        }
        int fsync(int fd)
        {
            if (is(fd, "/seldom/checkpoint.safetensors.tmp-"))
                note('c');
            if (!is(fd, "/seldom/")) /* its directory */
                note('d');
            return 0;
        }""")
    options = [*TRAIN, "--epochs", "400", "--eval-every", "400", "--out", "seldom"]
    result = run(0, *options, env={"LD_PRELOAD": str(library)})
    notes = content(".", "checkpoints").decode()
    count = notes.count(".")
    check(result.code == 0 and 2 <= count <= 2 + result.seconds and result.seconds < 100,
          f"400 epochs in {result.seconds:.1f} s: {count} checkpoints", result)
    seconds = sum(json.loads(line)["seconds"] for line in content("seldom", "metrics.jsonl").splitlines())
    check(0 < seconds < result.seconds, "the seconds of all epochs are less than those of the run", seconds)
    check(re.fullmatch(r"(d*mc\.d)+d*", notes), "each after its metrics, synced itself and then by name", notes)


def disk_full():
    with small_disk("1000k") as small:
        if small is None:
            return
        result = run(2, *TRAIN, "--epochs", "9", "--out", small / "run")
        check(result.says(1, small / "run", "checkpoint", "No space left"),
              "a full disk at a checkpoint: the file is named", result)
        left = {file.name for file in (small / "run").iterdir()}
        check(not any("tmp" in name for name in left), "nothing half-written stays", left)
        shutil.copytree(small / "run", FOLDER / "saved")
    unharmed("moved to another disk", "saved")

    with small_disk("4m") as small:
        running = go_on(2, small / "run", "--checkpoint-every", "2")
        running.wait_for("epoch: 3 ")  # the checkpoint of epoch 2 is whole by then
        fill(small)
        result = running.finish()
        check(result.says(1, small / "run", "No space left"), "a disk that fills up: the file is named", result)
        (small / "filler").unlink()
        running = start(2, *ENDLESS, "--out", small / "run", "--resume", "--checkpoint-every", "1000000",
                        "--eval-every", "1000000")
        running.wait_for("epoch: ")
        fill(small)
        result = running.finish()
        check(result.says(1, small / "run", "No space left") and re.search("metrics.jsonl|events.out", result.err),
              "a full disk at logging: the log is named", result)
        (small / "filler").unlink()
        shutil.copytree(small / "run", FOLDER / "logged")
    unharmed("moved to another disk", "logged")


def read_only():
    """Root may write everywhere, unless it gives the right up."""
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    out = FOLDER / "read-only"
    running = Run([*powerless, ROOT / "launch" / "run", "-np", 2, *ENDLESS, "--out", out], {}, FOLDER)
    running.wait_for("epoch: 2 ")
    out.chmod(0o555)
    result = running.finish()
    out.chmod(0o755)
    named = re.search(r"/(checkpoint|model-best)\.safetensors", result.err)  # whichever is written next
    check(result.says(1, out, "Permission denied") and named,
          "a directory made read-only: exit 1, and the file is named", result)
    unharmed("a directory made read-only", "read-only")


def shared():
    first = go_on(2, "shared")
    second = run(3, *ENDLESS, "--out", "shared", "--resume")
    pid = first.rank_process(0)
    check(second.says(2, "shared", "in use", f"process {pid} on {HOST}"),
          "a second run on one directory is refused, and the first named", second)
    second = run(2, *ENDLESS, "--out", "shared")
    check(second.says(2, "in use"), "without --resume too", second)
    log, deadline = FOLDER / "shared" / "metrics.jsonl", time.monotonic() + 30
    log.unlink()
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.signal(signal.SIGUSR1)
    result = first.finish()
    check(result.code == 75 and len(result.messages) == 1 and f"{log.name} was removed or replaced" in result.err,
          "the first is not disturbed, but notes that somebody removed its metrics", result)
    unharmed("the first", "shared")


def replaced():
    """The directory, or its lock, goes away under a run; another run may be there by then."""
    def seed(out):
        return json.loads(content(out, "run.json"))["options"]["seed"]

    for how in "removed", "removed, and another run is there", "moved", "the lock removed, and another run is there":
        out = re.sub("[ ,]+", "-", how)
        old = go_on(2, out)
        if "removed" in how[:7]:
            while (FOLDER / out).exists():  # it may write meanwhile
                shutil.rmtree(FOLDER / out, ignore_errors=True)
        elif how == "moved":
            (FOLDER / out).rename(FOLDER / "elsewhere")
        else:
            (FOLDER / out / "lock").unlink()
        words = ["--resume", f"{out}/lock" if "lock" in how else out]
        if "another" in how:
            new = start(1, *ENDLESS, "--out", out, *(["--resume"] if "lock" in how else ["--seed", 2]))
            check(new.wait_for("epoch: "), f"a directory under a run: {how}: that begins")  # at whichever epoch
        result = old.finish()
        if "removed" in how[:7]:  # file by file: it may find its metrics gone before the directory is
            result.err = re.sub(r"^dtrain: note: .*metrics\.jsonl was removed .*\n", "", result.err, flags=re.MULTILINE)
        check(result.says(1, *words), f"a directory under a run: {how}: it ends with one line", result)
        if "another" in how:
            before = progress(out)["step"]
            check(new.wait_for(f"epoch: {int(progress(out)['epoch']) + 2} "), f"{how}: the other goes on")
            new.signal(signal.SIGUSR1)
            result = new.finish()
            check(result.code == 75 and int(progress(out)["step"]) > int(before) and
                  progress(out)["seed"] == str(seed(out)), f"{how}: and has all of its files", result)
        elif how == "moved":
            unharmed("the moved directory", "elsewhere")
        else:
            check(not (FOLDER / out).exists(), "what was removed stays away")


def study_replaced():
    """Several nets: nothing is written where their directories were, figures neither."""
    running = start(2, *ENDLESS, "--net", "A,B", "--out", "study")
    for net in "AB":
        running.wait_for(f"net: {net} epoch: 2 ")
    (FOLDER / "study").rename(FOLDER / "study-moved")
    (FOLDER / "study").mkdir()
    result = running.finish()
    check(result.code == 1 and "was removed, moved or replaced" in result.err and
          not list((FOLDER / "study").iterdir()),
          "the directory of a study replaced: both nets end, and nothing is written there", result)


def in_the_way():
    """Names that others may guess: nothing is followed to what it points at."""
    out, victim = FOLDER / "guessed", FOLDER / "victim"
    for name in "lock", "metrics.jsonl", "run.json", "checkpoint.safetensors", "model-best.safetensors":
        for kind in "a symbolic link", "a FIFO":
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            victim.write_text("precious")
            if kind == "a FIFO":
                os.mkfifo(out / name)
            else:
                (out / name).symlink_to(victim)
            result = run(0, *TRAIN, "--epochs", "1", "--out", out, "--resume")
            what = "is a symbolic link" if kind == "a symbolic link" else "is no regular file"
            refused = result.says(1, out / name, what) if name in ("lock", "metrics.jsonl") else \
                result.says(3, out / name) if name == "checkpoint.safetensors" else result.code == 0
            check(refused and victim.read_text() == "precious", f"{name} is {kind}: it is not followed", result)


def somebodys():
    """A file in the directory that has the lock's name, and is somebody's."""
    (FOLDER / "somebodys").mkdir()
    for text, code in ("notes\n", 2), (f"process {'17' * 40} on another host", 0), ("", 0):
        (FOLDER / "somebodys" / "lock").write_text(text)
        result = run(0, *TRAIN, "--epochs", "1", "--out", "somebodys", "--resume")
        left = content("somebodys", "lock").decode()
        told = result.says(2, "somebodys/lock", "--out") and left == text
        ours = result.code == 0 and re.fullmatch(rf"process \d+ on {HOST}", left)
        check(told if code == 2 else ours, f"a file lock that holds {text!r}: exit {code}", f"{left}\n{result}")


def automounted():
    """Where a directory above --out is there, but none can be made beside it, mkdir may say so rather than EEXIST."""
    library = preloaded("automounted", """
        #include <errno.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int mkdir(const char *path, mode_t mode)
        {
            if (access(path, F_OK) != 0)
                return (int)syscall(SYS_mkdir, path, mode);
            errno = EACCES;
            return -1;
        }""")
    result = run(0, *TRAIN, "--epochs", "1", "--out", FOLDER / "automounted", env={"LD_PRELOAD": str(library)})
    check(result.code == 0 and not result.err, "a parent that is there, and cannot be made: no matter", result)


def without_locks():
    """File systems that have none: some NFS, Lustre without flock."""
    library = FOLDER / "no_locks.so"
    source = """
        #include <errno.h>
        #include <stdarg.h>
        #include <stddef.h>
        #include <stdlib.h>
        #include <unistd.h>
        #include <sys/syscall.h>
        static int answer(int fd, int command, void *argument)
        {
            if (command != 37) /* F_OFD_SETLK */
                return (int)syscall(SYS_fcntl, fd, command, argument);
            errno = atoi(getenv("LOCK_ERRNO"));
            return -1;
        }
        #define NAMED(name) int name(int fd, int command, ...) \\
            { va_list a; va_start(a, command); void *p = va_arg(a, void *); va_end(a); return answer(fd, command, p); }
        NAMED(fcntl)
        NAMED(fcntl64)"""
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True, text=True, input=source)
    for number in errno.ENOLCK, errno.ENOSYS:
        out = f"no-locks-{number}"
        result = run(0, *TRAIN, "--epochs", "1", "--out", out,
                     env={"LD_PRELOAD": str(library), "LOCK_ERRNO": str(number)})
        check(result.code == 0 and len(result.messages) == 1 and "has no locks" in result.err,
              f"a file system without locks ({os.strerror(number)}): a note, and the run", result)


def without_much():
    """File systems that have no hard links, no syncing, no mapping: sshfs, some FUSE, FAT."""
    library = FOLDER / "not_supported.so"
    source = """
        #define _GNU_SOURCE
        #include <errno.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int linkat(int a, const char *b, int c, const char *d, int e)
        {
            (void)a, (void)b, (void)c, (void)d, (void)e;
            errno = EPERM;
            return -1;
        }
        int fsync(int file)
        {
            (void)file;
            errno = ENOSYS;
            return -1;
        }
        void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
        {
            if (file < 0 || protection != PROT_READ || bytes % 3073 != 0) /* not the pictures */
                return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
            errno = ENODEV;
            return MAP_FAILED;
        }"""
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True, text=True, input=source)
    result = run(0, *TRAIN, "--epochs", "4", "--out", "much")
    lacking = run(0, *TRAIN, "--epochs", "4", "--out", "little", env={"LD_PRELOAD": str(library)})
    check(lacking.code == 0 and lacking.digest == result.digest and len(lacking.messages) == 1 and
          "hard links" in lacking.err and "syncing" in lacking.err and "cannot map files" in lacking.out,
          "no hard links, syncing, mapping: a line each, and the run", lacking)
    check(metrics("little") == metrics("much") and content("little", "checkpoint-previous.safetensors"),
          "with all of its files")


def half_mapped():
    """One of the data files cannot be mapped: what becomes of it does not matter then, but of the others it does."""
    library = preloaded("half", """
        #include <errno.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
        {
            char link[40], name[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            if (file < 0 || readlink(link, name, sizeof name - 1) < 0 || strstr(name, "/data_batch_2.bin") == NULL)
                return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
            errno = ENODEV;
            return MAP_FAILED;
        }""")
    (drawn,) = (FOLDER / "cache" / "dtrain").glob("synthetic-335-70")
    for number, code in (2, 75), (3, 3):
        data = FOLDER / f"half-{number}"
        shutil.copytree(drawn, data)
        running = start(0, *ENDLESS, "--data", data, "--out", f"of-half-{number}", env={"LD_PRELOAD": str(library)})
        running.wait_for("epoch: 2 ")
        with (data / f"data_batch_{number}.bin").open("r+b") as file:
            file.seek(1)
            file.write(bytes(100))
        running.signal(signal.SIGUSR1)
        result = running.finish(60)
        check(result.code == code and "cannot map files" in result.out and
              ("data_batch_3.bin was changed" in result.err) == (code == 3),
              f"data_batch_2 was copied, data_batch_{number} changes: exit {code}", result)


def unrecorded():
    """What cannot be written into metrics.jsonl ends the run, but its steps are saved, without a checkpoint so far."""
    running = start(2, *ENDLESS, "--checkpoint-every", "1000000", "--out", "unrecorded")
    running.wait_for("epoch: 2 ")
    log = FOLDER / "unrecorded" / "metrics.jsonl"
    os.rename(log, FOLDER / "log")
    log.mkdir()
    result = running.finish(60)
    check(result.says(1, "unrecorded/metrics.jsonl", "Is a directory"),
          "metrics.jsonl cannot be written: exit 1, one line", result)
    log.rmdir()
    os.rename(FOLDER / "log", log)
    check(int(progress("unrecorded")["step"]) >= 3 * 6, "and the steps of that epoch are saved", progress("unrecorded"))
    unharmed("metrics.jsonl that could not be written", "unrecorded")


def slow():
    """A file system that is busy is no rank that is lost, also where the clock is set back an hour meanwhile."""
    library = preloaded("slow", """
        #include <stdio.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *time)
        {
            int result = (int)syscall(SYS_clock_gettime, clock, time);
            time->tv_sec += clock == CLOCK_REALTIME ? 3600 : 0; /* than the kernel's will be */
            return result;
        }
        int fsync(int fd)
        {
            char link[40], name[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, name, sizeof name - 1) > 0 && strstr(name, "/checkpoint.safetensors") != NULL)
                sleep(5);
            return 0;
        }""")
    options = [PROGRAM, *TRAIN, "--epochs", "1", "--timeout", "2", "--out", "slow"]
    result = Run(["mpirun", "-np", "1", "env", f"LD_PRELOAD={library}", *options, ":", "-np", "1", *options], {},
                 FOLDER).finish()
    check(result.code == 0 and "dtrain: note: rank 0 on host" in result.err and "busy with files" in result.err,
          "writing a checkpoint takes longer than --timeout: noted", result)
    options[-1:] = "of-study", "--net", "A,B"
    result = Run(["mpirun", "-np", "1", *options, ":", "-np", "1", "env", f"LD_PRELOAD={library}", *options], {},
                 FOLDER).finish()
    check(result.code == 0 and "dtrain: note: rank 1 on host" in result.err,
          "and of several nets, by the rank's number among all", result)


def slow_looks():
    """Nor where it takes that long to say whether something is there, or to close a file."""
    library = preloaded("slow_looks", """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static void wait_at(const char *what, const char *name, const char *end)
        {
            static int waits;
            size_t length = strlen(name), of_end = strlen(end);
            if (strcmp(getenv("SLOW"), what) == 0 && length >= of_end && strcmp(name + length - of_end, end) == 0 &&
                waits++ == 0)
                sleep(4);
        }
        int stat(const char *name, struct stat *status)
        {
            wait_at("stat", name, "/slow-looks");
            return fstatat(AT_FDCWD, name, status, 0);
        }
        int faccessat(int at, const char *name, int mode, int flags)
        {
            wait_at("faccessat", name, "run.json");
            return (int)syscall(SYS_faccessat, at, name, mode); /* the flags do not matter here */
        }
        int fclose(FILE *file)
        {
            char link[40], name[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", fileno(file));
            if (readlink(link, name, sizeof name - 1) > 0)
                wait_at("fclose", name, "/metrics.jsonl");
            return ((int (*)(FILE *))dlsym(RTLD_NEXT, "fclose"))(file);
        }""")
    (drawn,) = (FOLDER / "cache" / "dtrain").glob("synthetic-335-70")
    shutil.copytree(drawn, FOLDER / "slow-looks")
    runs = {}
    for call in "stat", "faccessat", "fclose":
        (FOLDER / call).mkdir()
        options = [PROGRAM, *TRAIN, "--net", "A,B", "--data", FOLDER / "slow-looks", "--epochs", "1", "--timeout", "2",
                   "--out", call]
        runs[call] = Run(["mpirun", "-np", "1", "env", f"LD_PRELOAD={library}", f"SLOW={call}", *options, ":", "-np",
                          "1", *options], {}, FOLDER)
    for call, running in runs.items():
        result = running.finish()
        check(result.code == 0 and result.digest and "busy with files" in result.err,
              f"{call} takes longer than --timeout: no rank is lost", result)


unwritable()
without_locks()
without_much()
half_mapped()
replaced()
study_replaced()
in_the_way()
somebodys()
automounted()
unrecorded()
slow()
slow_looks()
seldom()
disk_full()
read_only()
shared()
finish()
