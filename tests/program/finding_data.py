#!/usr/bin/env python3
"""The data as the program finds it: damaged, missing, drawn."""
# needs: dtrain

import os
import re
import shutil
import signal
import time
from array import array

from dtrain import DATA_FILES, FOLDER, RECORD, content, metrics, run, run_all, start, start_unlike, write_data
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
    (FOLDER / "above" / "cifar-10-batches-bin").mkdir(parents=True)
    (FOLDER / "pickled").mkdir()
    (FOLDER / "pickled" / "data_batch_1").write_bytes(b"")
    for data, *words in (
        ("nothing", "fetch-cifar10", "--data synthetic"),
        ("nowhere", "No such file"),
        ("file", "not a directory"),
        ("above", "cifar-10-batches-bin"),
        ("pickled", "binary version", "fetch-cifar10"),
    ):
        result = run(0, *TRAIN, "--data", FOLDER / data)
        check(refused(result, "--data", FOLDER / data, *words), f"--data {data}: {', '.join(words)}", result)
        result = run(0, *TRAIN, env={"DTRAIN_DATA": str(FOLDER / data)})
        check(refused(result, "DTRAIN_DATA", FOLDER / data, *words), "and DTRAIN_DATA alike", result)


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
    os.truncate(cache / "synthetic-2000-300" / "data_batch_1.bin", 1000)
    result = run(1, *TRAIN, *data, "--out", "torn")
    check(result.says(3, cache / "synthetic-2000-300" / "data_batch_1.bin"),
          "a set damaged later is not trusted", result)
    check(content("unwritable", "run.json") is content("torn", "run.json") is None, "and no run began")


def many_losses():
    """More than 65,536 samples, each with nearly the largest loss there may be: their sum is more than 64 bits hold."""
    record, data = bytes([1] + 3072 * [0]), FOLDER / "many"
    data.mkdir()
    (data / DATA_FILES[0]).write_bytes(15000 * record)
    for name in DATA_FILES[1:]:
        (data / name).hardlink_to(data / DATA_FILES[0])
    run(0, *TRAIN, "--data", FOLDER / "good", "--epochs", "0", "--out", "weights")
    tensors = {name: (shape, array("f", len(values) * [0.0]))
               for name, (shape, values) in read(FOLDER / "weights" / "checkpoint.safetensors")[0].items() if "momentum" not in name}
    tensors["fc2.bias"][1][0] = 1990
    write(FOLDER / "large.safetensors", tensors)
    result = run(0, "--data", data, "--net", "A", "--init-from", FOLDER / "large.safetensors", "--lr", "0", "--epochs", "1",
                 "--out", "many-losses")
    line = metrics("many-losses")[0] if result.code == 0 else {}
    check(line.get("loss") == 1990 and line.get("test_loss") == 1990, "the sum of 75,000 large losses does not wrap", f"{result}{line}")


def changed():
    """Files that are cut short, or written to in place, while a run has them mapped."""
    for how, code, words in ("cut short", 3, "cut short|was changed"), ("written to", 3, "data_batch_2.bin was changed"), ("touched", 75, ""):
        shutil.rmtree(FOLDER / "live", ignore_errors=True)
        shutil.copytree(FOLDER / "good", FOLDER / "live")
        out = how.replace(" ", "-")
        running = start(2, "--data", FOLDER / "live", "--batch-size", "16", "--epochs", "1000000", "--eval-every", "1000000",
                        "--checkpoint-every", "2", "--out", out)
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
        result = running.finish(60)
        check(result.code == code and re.search(words, result.err) and len(result.messages) == (code == 3),
              f"data {how} under a run: exit {code}", result)


damaged()
named()
searched()
unlike()
drawn()
changed()
many_losses()
finish()
