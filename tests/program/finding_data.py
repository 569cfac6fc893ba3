#!/usr/bin/env python3
"""The data as the program finds it: damaged, missing, drawn."""
# needs: dtrain

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from array import array

from dtrain import (DATA_FILES, FOLDER, PROGRAM, RECORD, ROOT, Run, content, metrics, preloaded, run, run_all, start,
                    start_unlike, write_data)
from safetensors_reader import read, write
from tap import check, finish

TRAIN = ["--epochs", "1", "--batch-size", "16"]


def refused(result, *words):
    """Exit 3, one line with the words, no run."""
    return result.says(3, *words) and result.out == "" and not (FOLDER / "runs").exists()


def damages():
    """Each damage: what it does to a good directory, and words of the message."""

    def write(name, data):
        return lambda directory: (directory / name).write_bytes(data)

    def remove(name):
        return lambda directory: (directory / name).unlink()

    def change(name, offset, byte):
        def spoil(directory):
            data = bytearray((directory / name).read_bytes())
            data[offset] = byte
            (directory / name).write_bytes(data)
        return spoil

    def truncate(name, size):
        return lambda directory: os.truncate(directory / name, size)

    def make_directory(directory):
        (directory / "data_batch_2.bin").unlink()
        (directory / "data_batch_2.bin").mkdir()

    first, *middle, last, test = DATA_FILES
    yield from ((f"{name} missing", remove(name), [name, "missing"]) for name in DATA_FILES)
    yield "truncated within a record", truncate(middle[2], 5 * RECORD + 7), [middle[2], 5 * RECORD]
    yield "truncated by a record", truncate(last, 7 * RECORD), [last, "7 records", 8]
    yield "a record too many", write(middle[1], bytes(9 * RECORD)), [middle[1], "9 records", 8]
    yield "an empty training file", write(first, b""), [first, "empty"]
    yield "an empty test file", write(test, b""), [test, "empty"]
    yield "label 10", change(middle[0], 3 * RECORD, 10), [middle[0], "label 10", 3 * RECORD, "0 to 9"]
    yield "label 255 of the last test image", change(test, 7 * RECORD, 255), [test, "label 255"]
    yield "a directory in place of a file", make_directory, ["data_batch_2.bin", "regular file"]


def damaged():
    cases = list(damages())
    for i, (_, spoil, _) in enumerate(cases):
        spoil(write_data(f"damaged-{i}"))
    results = run_all([(1, *TRAIN, "--data", FOLDER / f"damaged-{i}") for i in range(len(cases))])
    for (name, _, words), result in zip(cases, results):
        check(refused(result, *words), f"{name}: the message names {words[0]}", result)
    result = run(3, *TRAIN, "--data", FOLDER / "damaged-0")
    check(refused(result, "data_batch_1.bin"), "3 ranks say it once", result)
    result = run(2, *TRAIN, "--data", write_data("good"), "--out", "trained")
    check(result.digest and "40 + 8 pictures" in result.out, "without damage it trains", result)


def named():
    (FOLDER / "nothing").mkdir()
    (FOLDER / "file").write_text("no data")
    for data, *words in (
        ("nothing", "fetch-cifar10", "--data synthetic"),
        ("nowhere", "No such file"),
        ("file", "not a directory"),
    ):
        result = run(0, *TRAIN, "--data", FOLDER / data)
        check(refused(result, "--data", FOLDER / data, *words), f"--data {data}: {', '.join(words)}", result)
        result = run(0, *TRAIN, env={"DTRAIN_DATA": str(FOLDER / data)})
        check(refused(result, "DTRAIN_DATA", FOLDER / data, *words), "and DTRAIN_DATA alike", result)


def pickled(records, key=b"labels"):
    """A batch of these records as Python 2 pickled the originals: what 2.7's cPickle and numpy 1.16
    write, memo and all."""
    labels = b"".join(b"K" + records[i:i + 1] for i in range(0, len(records), RECORD))
    rows = b"".join(records[i + 1:i + RECORD] for i in range(0, len(records), RECORD))
    count = len(records) // RECORD
    memo = itertools.count(1)
    put = lambda: b"q%c" % number if (number := next(memo)) < 256 else b"r" + number.to_bytes(4, "little")
    plain = lambda word: b"U" + bytes([len(word)]) + word
    text = lambda word: plain(word) + put()
    name = lambda words: b"c" + words + b"\n" + put()
    array = (name(b"numpy.core.multiarray\n_reconstruct") + name(b"numpy\nndarray") + b"K\x00\x85" + plain(b"b") +
             b"\x87R" + put() + b"(K\x01K" + bytes([count]) + b"M\x00\x0c\x86")
    array += (name(b"numpy\ndtype") + plain(b"u1") + b"K\x00K\x01\x87R" + put() + b"(K\x03" + plain(b"|") +
              b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(rows).to_bytes(4, "little") + rows + b"tb")
    names = b"](" + b"".join(text(b"leptodactylus_s_%06d.png" % i) for i in range(300)) + b"e"
    return (b"\x80\x02}" + put() + b"(" + text(b"data") + array + text(key) + b"](" + labels + b"e" +
            text(b"batch_label") + text(b"training batch 1 of 5") + text(b"filenames") + names + b"u.")


def write_pickled(directory, **spoilt):
    """The data of write_data as torchvision has them; spoilt: other bytes for a file."""
    binary, folder = FOLDER / "good", FOLDER / directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in DATA_FILES:
        name = name.removesuffix(".bin")
        (folder / name).write_bytes(spoilt.get(name) or pickled((binary / f"{name}.bin").read_bytes()))
    return folder


def pack(archive, folder):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def leave(directory):
    """As a process that was killed long ago has left it."""
    directory.mkdir()
    os.utime(directory, (0, 0))


def of_others():
    """CIFAR-10 as torchvision and others keep it."""
    here = {"XDG_CACHE_HOME": str(FOLDER / "converted")}
    python, cache = write_pickled("torch"), FOLDER / "converted" / "dtrain"
    (FOLDER / "torch" / "another").mkdir()
    (FOLDER / "torch" / "another" / "set.parquet").touch()
    binary = FOLDER / "archives" / "cifar-10-batches-bin"
    shutil.copytree(FOLDER / "good", binary)
    pack(FOLDER / "archives" / "cifar-10-python.tar.gz", python)
    pack(FOLDER / "other.tar.gz", binary)
    shutil.rmtree(binary)
    good = run(1, *TRAIN, "--data", FOLDER / "good", "--out", "of-good")
    shutil.copytree(FOLDER / "good", FOLDER / "above" / "cifar-10-batches-bin")
    above = run(0, *TRAIN, "--data", FOLDER / "above", "--out", "of-above")
    check(above.digest == good.digest and not above.err, "the directory above the binary version", above)
    shutil.copy(FOLDER / "other.tar.gz", FOLDER / "above" / "cifar-10-binary.tar.gz")
    for options in ["--out", "of-beside"], ["--doctor"]:
        beside = run(0, *TRAIN, "--data", FOLDER / "above", *options, env=here)
        check(beside.code == 0 and not beside.err and f"{FOLDER}/above/cifar-10-batches-bin: 40 + 8" in beside.out,
              f"{options[0]}: with the archive that it came in beside it", beside)
    for number, data in enumerate([python, python.parent, FOLDER / "archives",
                                   FOLDER / "archives/cifar-10-python.tar.gz", FOLDER / "other.tar.gz"]):
        before = set(cache.glob("*"))
        result = run(3 if number == 0 else 0, *TRAIN, "--data", data, "--out", f"of-{number}", env=here)
        new = set(cache.glob("*")) - before
        same = [(folder / name).read_bytes() == (FOLDER / "good" / name).read_bytes() for folder in new
                for name in DATA_FILES]
        check(result.code == 0 and result.digest == good.digest and same == [True] * 6 and
              "not the original" in result.err,
              f"{data.relative_to(FOLDER)}: converted to the same bytes, trained on, and told not to be the original",
              result)
    verbose = here | {"PYTHONVERBOSE": "1", "XDG_CACHE_HOME": str(FOLDER / "verbose")}  # more than a pipe holds
    result = run(0, *TRAIN, "--data", python, "--out", "of-verbose", env=verbose)
    check(result.code == 0 and result.digest == good.digest, "a converter that says much", result)
    result = run(1, *TRAIN, "--out", "of-again", env=here | {"DTRAIN_DATA": str(python)})
    check(result.digest == good.digest and not result.err, "again, by DTRAIN_DATA: what the cache has", result)
    before = set(cache.iterdir())
    (FOLDER / "torch" / "something-else").touch()
    result = run(0, *TRAIN, "--data", FOLDER / "torch", "--out", "of-more", env=here)
    check(result.digest == good.digest and not result.err and set(cache.iterdir()) == before,
          "so where something else has come into the directory since", result)
    result = run(0, "--doctor", "--data", FOLDER / "torch", env=here)
    check(result.code == 0 and "converted" in result.out, "--doctor tells", result)
    copies = sorted(cache.iterdir())
    for copy in copies:
        with (copy / "data_batch_2.bin").open("r+b") as file:
            file.seek(2000)
            file.write(b"damaged")
    leave(cache / f"{copies[0].name}.tmp-killed")
    copies[1].rename(FOLDER / "moved")
    copies[1].symlink_to(FOLDER / "moved")
    copies[2].rename(FOLDER / "moved-and-lost")
    copies[2].symlink_to(FOLDER / "lost")
    for data in (python, python.parent, FOLDER / "archives", FOLDER / "archives/cifar-10-python.tar.gz",
                 FOLDER / "other.tar.gz"):
        result = run(2, *TRAIN, "--data", data, "--out", f"torn-{data.name}", env=here)
        check(result.code == 0 and result.digest == good.digest and "damaged or incomplete" in result.err,
              f"{data.relative_to(FOLDER)}: a copy damaged later is converted anew, and that is said", result)
    check(not copies[1].is_symlink() and (FOLDER / "moved" / "data_batch_2.bin").exists(),
          "also where it is a link, which goes alone")
    check(sorted(cache.iterdir()) == copies, "what a killed process left goes", list(cache.iterdir()))
    for copy in copies:
        (copy / "xxh64").write_bytes(b"")
    result = run(0, *TRAIN, "--data", python, "--out", "no-digest", env=here)
    sizes = sorted((copy / "xxh64").stat().st_size for copy in copies)
    check(result.digest == good.digest and not result.err and sizes == [0, 0, 0, 0, 17],
          "a digest that is empty, as a crash may leave it, is written again", f"{sizes}\n{result}")

    fetched = subprocess.run([ROOT / "launch/fetch-cifar10", "--from", python, FOLDER / "fetched"], capture_output=True,
                             text=True, check=False)
    check(fetched.returncode == 0 and content("fetched", "test_batch.bin") == content("good", "test_batch.bin"),
          "fetch-cifar10 --from takes it too", fetched.stdout + fetched.stderr)

    record = b"\x07" + bytes(RECORD - 1)
    batch = pickled(record)
    call = b"cos\nsystem\n(U\x13touch /tmp/obeyed-xtR."
    for name, spoilt, *words in (
        ("a call", call, "asks for os.system", "not obeyed"),
        ("another class", batch.replace(b"cnumpy\nndarray", b"cbuiltins\neval"), "builtins.eval"),
        ("a torn file", batch[:-2000], "damaged"),
        ("no pickle", b"hello", "no pickle"),
        ("CIFAR-100", pickled(record, b"fine_labels"), "CIFAR-100"),
        ("label 10", pickled(b"\x0a" + record[1:]), "label", "0 to 9"),
        ("no labels", pickled(record, b"names"), "no pictures with a label"),
        ("another type", batch.replace(b"u1", b"f4"), "3,072"),
        ("another shape", batch.replace(b"M\x00\x0c", b"M\x00\x0b"), "3,072"),
    ):
        result = run(0, *TRAIN, "--data", write_pickled(name, data_batch_3=spoilt), env=here)
        check(refused(result, "data_batch_3", *words), f"{name} in a batch is refused", result)
    check(not os.path.exists("/tmp/obeyed-x"), "and nothing is obeyed")
    unreadable = write_pickled("unreadable")
    (unreadable / "data_batch_3").unlink()
    (unreadable / "data_batch_3").symlink_to("/proc/self/mem")
    result = run(0, *TRAIN, "--data", unreadable, env=here)
    check(refused(result, "unreadable/cifar-10-batches-py/data_batch_3 cannot be read: Input/output error"),
          "a batch on a disk that fails is named", result)
    absent = subprocess.run([ROOT / "launch/convert-cifar10", FOLDER / "absent.tar.gz", FOLDER / "of-absent"],
                            capture_output=True, text=True, check=False)
    check(absent.returncode == 3 and absent.stderr == f"convert-cifar10: {FOLDER}/absent.tar.gz cannot be "
          "read: No such file or directory\n", "so is an archive that cannot be read", absent)
    (FOLDER / "100" / "cifar-100-python").mkdir(parents=True)
    for name in "train", "test", "meta":
        (FOLDER / "100" / "cifar-100-python" / name).touch()
    for data in "face/plain_text", "*?[1]\\", "face[1]/plain_text":
        (FOLDER / data).mkdir(parents=True)
        (FOLDER / data / "train.parquet").touch()
    torn = FOLDER / "torn.tar.gz"
    torn.write_bytes((FOLDER / "other.tar.gz").read_bytes()[:-40])
    (python / "data_batch_4").unlink()
    for data, word in (("100", "CIFAR-100"), ("100/cifar-100-python", "CIFAR-100"), ("face", "parquet"),
                       ("*?[1]\\", "parquet"), ("face[1]", "parquet"),
                       ("torn.tar.gz", "damaged"), ("torch", "lacks data_batch_4")):
        for options, variable in (["--data", FOLDER / data], {}), ([], {"DTRAIN_DATA": str(FOLDER / data)}):
            result = run(0, *TRAIN, *options, env=here | variable)
            check(refused(result, f"dtrain: {FOLDER}/{data}: ", word),
                  f"{data}{', by DTRAIN_DATA' if variable else ''}: {word}", result)
    result = run(0, *TRAIN, "--data", FOLDER / "archives", env={"XDG_CACHE_HOME": "/proc/x"})
    check(result.says(1, "/proc/x", "cannot be written"), "a cache that cannot be made is 1", result)
    (FOLDER / "python").mkdir()
    for name, script, word in (("is killed", "kill -s KILL $$", "python3 was ended by signal 9"),
                               ("has no memory", "printf 'Traceback:\\n  File\\nMemoryError\\n' >&2; exit 1",
                                "MemoryError")):
        (FOLDER / "python" / "python3").write_text(f"#!/bin/sh\n{script}\n")
        (FOLDER / "python" / "python3").chmod(0o755)
        result = run(0, *TRAIN, "--data", FOLDER / "archives",
                     env={"XDG_CACHE_HOME": str(FOLDER / "new"), "PATH": f"{FOLDER}/python:{os.environ['PATH']}"})
        check(result.says(1, f"{FOLDER}/archives: ", word), f"a converter that {name} is 1, and that is said", result)
    check(not [name for name in os.listdir(cache) if ".tmp-" in name], "nothing half-done is left",
          os.listdir(cache))


def searched():
    empty = FOLDER / "empty"
    empty.mkdir()
    here = {"XDG_CACHE_HOME": str(empty / "cache"), "HOME": str(empty)}
    result = run(2, *TRAIN, env=here, cwd=empty)
    places = ["data/cifar-10-batches-bin", empty / "cache/dtrain/cifar-10-batches-bin"]
    check(refused(result, *places, "launch/fetch-cifar10", "--data", "DTRAIN_DATA", "--data synthetic"),
          "without data the places and the remedies are named", result)
    check(not any(empty.iterdir()), "and nothing is made or fetched", list(empty.iterdir()))

    def found(name, result):
        check(result.code == 0 and f"data {name}: " in result.out, f"{name} is found", result)

    (empty / "cache" / "dtrain").mkdir(parents=True)
    shutil.copytree(FOLDER / "good", places[1])
    found(places[1], run(0, *TRAIN, "--out", "1", env=here, cwd=empty))
    shutil.copytree(FOLDER / "good", empty / places[0])
    found(places[0], run(0, *TRAIN, "--out", "2", env=here, cwd=empty))
    variable = {"DTRAIN_DATA": str(FOLDER / "good")}
    found(FOLDER / "good", run(0, *TRAIN, "--out", "3", env=here | variable, cwd=empty))
    within = empty / places[0]
    found(f"{empty}/cache/dtrain/synthetic-40-8", run(2, *TRAIN, "--out", "synthetic", cwd=empty,
                                                       env=here | {"DTRAIN_DATA": "synthetic:40+8"}))
    result = run(0, *TRAIN, env=here | {"DTRAIN_DATA": "synthetic:41+8"}, cwd=empty)
    check(result.says(2, "DTRAIN_DATA synthetic:41+8", "multiple of 5"), "or is refused by its name", result)
    found(".", run(0, *TRAIN, "--out", empty / "4", "--data", ".", env=here | variable, cwd=within))
    (empty / places[0] / "test_batch.bin").unlink()
    result = run(0, *TRAIN, "--out", "5", env=here, cwd=empty)
    check(result.code == 3 and "data/cifar-10-batches-bin/test_batch.bin" in result.err,
          "a damaged set is an error, not a reason to look elsewhere", result)


def unlike():
    """Ranks that see different pictures under the same name."""
    for i in range(2):
        (FOLDER / f"host{i}").mkdir()
        shutil.copytree(FOLDER / "good", FOLDER / f"host{i}" / "images")
    picture = FOLDER / "host1" / "images" / "data_batch_4.bin"
    picture.write_bytes(picture.read_bytes()[:-1] + b"\7")
    options = [*TRAIN, "--data", "images", "--out", FOLDER / "unlike"]
    places = [["-wdir", FOLDER / "host0"], ["-wdir", FOLDER / "host1"]]
    result = start_unlike(options, options, settings=places).finish()
    check(refused(result, "rank 1", "rank 0", "data"), "ranks with different pictures are refused", result)
    picture.unlink()
    result = start_unlike(options, options, settings=places).finish()
    check(refused(result, "data_batch_4.bin"), "rank 0 says it when rank 1 alone lacks a file", result)
    for wrong in range(2):
        settings = [["env", f"XDG_CACHE_HOME={FOLDER}/unlike", f"DTRAIN_DATA=synthetic:4{int(rank == wrong)}+8"]
                    for rank in range(2)]
        result = start_unlike(*2 * [[*TRAIN, "--out", FOLDER / "unlike"]], settings=settings).finish()
        check(result.says(2, "DTRAIN_DATA synthetic:41+8", "multiple of 5"),
              f"a DTRAIN_DATA that is wrong on rank {wrong} alone is refused", result)


def converted_to():
    """launch/convert-cifar10 by itself: into a directory that another has filled."""
    source, target = write_pickled("to-convert"), FOLDER / "to" / "there"
    for words in ["--bogus"], [source], ["--bogus", target], [source, target, "more"]:
        done = subprocess.run([ROOT / "launch/convert-cifar10", *words], capture_output=True, text=True, check=False)
        check(done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout and re.fullmatch(
            r"convert-cifar10: (--bogus: no such option|give SOURCE and DIR); see --help\n", done.stderr),
              f"convert-cifar10: {len(words)} wrong words: 2, one line", done)

    done = subprocess.run([ROOT / "launch/convert-cifar10", FOLDER / "good", target], capture_output=True,
                          text=True, check=False)
    check(done.returncode == 3 and "has the binary version already" in done.stderr and not target.exists(),
          "convert-cifar10: the binary version needs no converting, and that is said", done)

    def convert(umask):
        return subprocess.run([ROOT / "launch/convert-cifar10", source, target], umask=umask, capture_output=True,
                              text=True, check=False)

    done = convert(0o027)
    check(done.returncode == 0 and (target.stat().st_mode & 0o777, (target / DATA_FILES[0]).stat().st_mode & 0o777) ==
          (0o750, 0o640), "convert-cifar10: what it writes is under the umask", f"{oct(target.stat().st_mode)} {done}")
    done = convert(0o022)
    check(done.returncode == 0, "convert-cifar10: the same bytes are there already: right", done)
    (target / DATA_FILES[3]).write_bytes(b"another's")
    done = convert(0o022)
    check(done.returncode == 1 and re.fullmatch(f"convert-cifar10: {target}: cannot be written: .*\n", done.stderr) and
          (target / DATA_FILES[3]).read_bytes() == b"another's" and os.listdir(target.parent) == ["there"],
          "convert-cifar10: something else is there: 1, told and left alone", done)


def drawn():
    cache = FOLDER / "cache" / "dtrain"
    data = ["--data", "synthetic:2000+300"]
    together = [start(3, *TRAIN, *data, "--out", f"together-{i}") for i in range(3)]
    results = [each.finish() for each in together]
    check(all(result.code == 0 for result in results) and len({result.digest for result in results}) == 1,
          "3 jobs of 3 ranks at once draw one set", "\n".join(map(str, results)))
    check([path.name for path in cache.iterdir()] == ["synthetic-2000-300"], "and leave nothing else",
          list(cache.iterdir()))
    sizes = {name: (cache / "synthetic-2000-300" / name).stat().st_size // RECORD for name in DATA_FILES}
    check(list(sizes.values()) == [400] * 5 + [300], "of the sizes asked for", sizes)

    drawn_once = (cache / "synthetic-2000-300" / "test_batch.bin").stat()
    result = run(2, *TRAIN, *data, "--out", "again")
    after = (cache / "synthetic-2000-300" / "test_batch.bin").stat()
    check(result.digest == results[0].digest and (drawn_once.st_ino, drawn_once.st_mtime_ns) ==
          (after.st_ino, after.st_mtime_ns), "a set drawn once is used again", result)
    result = run(2, *TRAIN, *data, "--out", "other", env={"XDG_CACHE_HOME": str(FOLDER / "other-cache")})
    check(result.digest == results[0].digest, "drawn again it is the same set", result)

    result = run(2, *TRAIN, *data, "--out", "unwritable", env={"XDG_CACHE_HOME": str(FOLDER / "file")})
    check(result.says(1, FOLDER / "file", "XDG_CACHE_HOME"),
          "a cache that cannot be written is named, with the remedy", result)
    result = run(0, *TRAIN, *data, "--out", "unwritable", env={"XDG_CACHE_HOME": "/sys/of/nobody"})
    check(result.says(1, "/sys/of/nobody", "XDG_CACHE_HOME") and os.strerror(errno.ENOENT) not in result.err,
          "why its first directory cannot be made is said, not why those in it cannot", result)
    shut = FOLDER / "shut"
    shut.mkdir(mode=0o555)
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    result = Run([*powerless, PROGRAM, *TRAIN, *data, "--out", "unwritable"], {"XDG_CACHE_HOME": str(shut)},
                 FOLDER).finish()
    check(result.says(1, shut, "Permission denied", "XDG_CACHE_HOME"), "one without the right to write, too", result)
    check(content("unwritable", "run.json") is None, "and no run began")
    with (cache / "synthetic-2000-300" / "data_batch_1.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    leave(cache / "synthetic-2000-300.tmp-killed")
    result = run(2, *TRAIN, *data, "--out", "torn")
    check(result.code == 0 and result.digest == results[0].digest and len(result.messages) == 1 and
          "drawn anew" in result.err, "a set damaged later is drawn anew, and that is said", result)
    check([path.name for path in cache.iterdir()] == ["synthetic-2000-300"], "what a killed process left goes",
          list(cache.iterdir()))


def shared_cache():
    """Three hosts, by what MPI says, with one cache: the first draws, and the others find it there."""
    library = preloaded("hosts", """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        int MPI_Get_processor_name(char *name, int *length)
        {
            *length = sprintf(name, "host%s", getenv("OMPI_COMM_WORLD_RANK"));
            return 0;
        }
        char *mkdtemp(char *template)
        {
            char *(*next)(char *) = (char *(*)(char *))dlsym(RTLD_NEXT, "mkdtemp");
            int count = strstr(template, "synthetic") != NULL ? open("drawn", O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
            if (count >= 0 && write(count, ".", 1) != 1)
                _exit(9);
            close(count);
            return next(template);
        }""")
    result = run(3, *TRAIN, "--data", "synthetic:5000+300", "--out", "hosts", env={"LD_PRELOAD": str(library)})
    check(result.code == 0 and "3 hosts" in result.out and content("drawn") == b".",
          "of three hosts with one cache the first draws", f"{content('drawn')}{result}")


def many_losses():
    """More than 65,536 samples, each with nearly the largest loss there may be: their sum is more than 64 bits hold."""
    record, data = bytes([1] + 3072 * [0]), FOLDER / "many"
    data.mkdir()
    (data / DATA_FILES[0]).write_bytes(15000 * record)
    for name in DATA_FILES[1:]:
        (data / name).hardlink_to(data / DATA_FILES[0])
    run(0, *TRAIN, "--data", FOLDER / "good", "--epochs", "0", "--out", "weights")
    tensors = {name: (shape, array("f", len(values) * [0.0]))
               for name, (shape, values) in read(FOLDER / "weights" / "checkpoint.safetensors")[0].items()
               if "momentum" not in name}
    tensors["fc2.bias"][1][0] = 1990
    write(FOLDER / "large.safetensors", tensors)
    result = run(0, "--data", data, "--net", "A", "--init-from", FOLDER / "large.safetensors", "--lr", "0", "--epochs",
                 "1", "--out", "many-losses")
    line = metrics("many-losses")[0] if result.code == 0 else {}
    check(line.get("loss") == 1990 and line.get("test_loss") == 1990, "the sum of 75,000 large losses does not wrap",
          f"{result}{line}")


def changed():
    """Files that are cut short, or written to in place, while a run has them mapped."""
    for how, code, words in (("cut short", 3, "live/data_batch_2.bin was cut short"),
                             ("written to", 3, "data_batch_2.bin was changed"), ("touched", 75, "")):
        shutil.rmtree(FOLDER / "live", ignore_errors=True)
        shutil.copytree(FOLDER / "good", FOLDER / "live")
        out = how.replace(" ", "-")
        saves = ["--eval-every", "1000000", "--checkpoint-every", "2"]
        if how == "cut short":  # which is met in training, not when it saves
            saves = ["--eval-every", "1000000", "--checkpoint-every", "1000000"]
        if how == "written to":  # it is noticed before the best model is written, too
            saves = ["--eval-every", "3", "--checkpoint-every", "1000000"]
        running = start(2, "--data", FOLDER / "live", "--batch-size", "16", "--epochs", "1000000", *saves, "--out", out)
        running.wait_for("epoch: 3 ")
        file = FOLDER / "live" / "data_batch_2.bin"
        if how == "cut short":
            os.truncate(file, 0)
        elif how == "written to":
            with file.open("r+b") as data:
                data.seek(1)
                data.write(bytes([7] * 100))
        else:
            os.utime(file)
            time.sleep(0.5)
            running.signal(signal.SIGUSR1)
        result = running.finish()
        check(result.code == code and re.search(words, result.err) and len(result.messages) == (code == 3),
              f"data {how} under a run: exit {code}", result)
    running = start(0, *TRAIN[2:], "--data", FOLDER / "good", "--epochs", "1000000", "--out", "sent")
    running.wait_for("epoch: 3 ")
    running.signal(signal.SIGBUS)
    result = running.finish()
    check(result.code == -signal.SIGBUS and not result.err, "a SIGBUS that somebody sent is not the data's", result)
    library = preloaded("other_file", """
        #define _GNU_SOURCE
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int renameat(int from, const char *old, int to, const char *new)
        {
            const volatile char *mapped = mmap(NULL, 1, PROT_READ, MAP_SHARED, memfd_create("empty", 0), 0);
            return mapped[0] + (int)syscall(SYS_renameat, from, old, to, new);
        }""")
    result = run(0, *TRAIN, "--data", FOLDER / "good", "--out", "bus", env={"LD_PRELOAD": str(library)})
    check(result.code == -signal.SIGBUS and not result.err, "nor is that of another file which was cut short", result)


damaged()
named()
of_others()
searched()
unlike()
converted_to()
drawn()
shared_cache()
changed()
many_losses()
finish()
