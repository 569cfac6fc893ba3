#!/usr/bin/env python3
"""launch/fetch-cifar10: all of the data appears, or nothing. No network but this machine's own."""

import hashlib
import http.server
import io
import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from tap import check, finish, skip

FETCH = Path(__file__).resolve().parents[2] / "launch" / "fetch-cifar10"
NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
RECORDS = bytes(3073 * 10)


def archive(names=NAMES, content=RECORDS):
    """The bytes of a small archive shaped like the original, and their md5."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), hashlib.md5(buffer.getvalue()).hexdigest()


class Server:
    """Serves one archive at any path; /stall sends half of it and waits, /gone is not there."""

    def __init__(self, data):
        server, self.requests, self.released = self, 0, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                if self.path == "/gone":
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.path == "/stall":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    server.released.wait(60)
                else:
                    time.sleep(0.3)  # long enough for those started together to meet
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def url(self, path="/cifar.tar.gz"):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


def start(*arguments, **options):
    return subprocess.Popen(
        [FETCH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def fetch(*arguments):
    process = start(*arguments)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def refused(case, folder, words, *arguments):
    """Running with the arguments fails, says the words and leaves nothing in the folder."""
    status, output = fetch(*arguments, folder / "cifar")
    last = output.strip().splitlines()[-1]
    said = last.startswith("fetch-cifar10: ") and all(word in last for word in words)
    check(status == 1 and said, f"{case} is refused, and the last line says why", output)
    check(not os.listdir(folder), f"{case} leaves nothing behind", os.listdir(folder))


def whole(directory, content=RECORDS):
    return sorted(os.listdir(directory)) == sorted(NAMES) and all(
        (directory / name).read_bytes() == content for name in NAMES
    )


def main(folder):
    data, md5 = archive()
    local = folder / "local.tar.gz"
    local.write_bytes(data)
    server = Server(data)

    def fresh(name):
        (folder / name).mkdir()
        return folder / name

    status, output = fetch("--help")
    check(status == 0 and "usage: launch/fetch-cifar10" in output, "--help", output)
    for bad in ["--nonsense"], ["--md5"], ["--from"], [folder / "first", "second"], [""]:
        status, output = fetch(*bad)
        check(status == 2 and bad[-1] in output and "--help" in output and output.count("\n") == 1,
              f"bad option {bad[-1]}", output)

    # what must not work
    empty = fresh("refused")
    refused("an archive with another checksum", empty,
            ["wrong checksum", md5, "c32a1d4ab5d03f1284b67883e8d87530"], "--from", local)
    refused("a download with another checksum", empty, ["wrong checksum", md5], "--from", server.url())
    refused("a missing archive", empty, ["/nowhere.tar.gz"], "--from", "/nowhere.tar.gz")
    refused("a page that is not there", empty, ["cannot download", server.url("/gone"), "--from"],
            "--from", server.url("/gone"))
    refused("a server that is not there", empty, ["cannot download"], "--from", "http://127.0.0.1:9/x")
    for case, (bad, sum_of_bad) in {
        "an archive that lacks a file": archive(names=NAMES[:-1]),
        "an archive of torn files": archive(content=RECORDS[:-1]),
        "a torn archive": (data[:-40], hashlib.md5(data[:-40]).hexdigest()),
    }.items():
        local.write_bytes(bad)
        refused(case, empty, [], "--from", local, "--md5", sum_of_bad)
    local.write_bytes(data)

    # interruption, while half of the archive is there
    for number, name in ((signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")):
        process = start("--from", server.url("/stall"), empty / "cifar")
        deadline = time.time() + 20
        while time.time() < deadline and not list(empty.glob(".fetch*/archive.tar.gz")):
            time.sleep(0.05)
        began = bool(list(empty.glob(".fetch*")))
        process.send_signal(number)
        process.communicate(timeout=60)
        check(began and process.returncode == 128 + number, f"{name} ends it", process.returncode)
        check(not os.listdir(empty), f"{name} leaves nothing behind", os.listdir(empty))
    server.released.set()

    # what must work
    target = fresh("local") / "cifar"
    status, output = fetch("--from", local, "--md5", md5.upper(), target)
    check(status == 0 and whole(target), "a local archive is unpacked", output)
    check(os.listdir(target.parent) == ["cifar"], "and nothing else is left", os.listdir(target.parent))
    before = os.stat(target / NAMES[0])
    status, output = fetch("--from", "/nowhere.tar.gz", "--md5", md5, target)
    after = os.stat(target / NAMES[0])
    check(status == 0 and "nothing to do" in output and before.st_ino == after.st_ino,
          "a complete directory is left alone", output)

    linked = fresh("linked")
    for name in NAMES:
        (linked / name).symlink_to(target / name)
    status, output = fetch("--from", "/nowhere.tar.gz", "--md5", md5, linked)
    check(status == 0 and "nothing to do" in output, "so is one with links to the files", output)

    os.unlink(target / NAMES[3])
    status, output = fetch("--from", local, "--md5", md5, target)
    check(status == 1 and str(target) in output and "remove it" in output and
          len(os.listdir(target)) == len(NAMES) - 1,
          "an incomplete directory, perhaps the user's work, is refused and not touched", output)

    deep = folder / "not" / "yet" / "there"
    deep_status, output = fetch("--from", local, "--md5", md5, deep)
    check(deep_status == 0 and whole(deep), "missing parent directories are made", output)

    for case, place in ("nothing yet", deep / "data"), ("an empty directory", fresh("empty")):
        link = folder / f"link to {case}"
        link.symlink_to(place)
        status, output = fetch("--from", local, "--md5", md5, link)
        check(status == 0 and link.is_symlink() and whole(place), f"a link to {case} is followed", output)

    # without curl, and without wget too
    tools = fresh("tools")
    for tool in ("bash cat chmod cut dirname du env flock gzip md5sum mkdir mktemp mv rm rmdir stat "
                 "tar").split():
        (tools / tool).symlink_to(shutil.which(tool))
    process = start("--from", server.url(), empty / "cifar", env={"PATH": str(tools)})
    output, _ = process.communicate(timeout=60)
    check(process.returncode == 1 and "needs curl or wget" in output, "neither curl nor wget", output)
    if shutil.which("wget"):
        (tools / "wget").symlink_to(shutil.which("wget"))
        target = fresh("wget") / "cifar"
        process = start("--from", server.url(), "--md5", md5, target,
                        env={"PATH": str(tools), "no_proxy": "127.0.0.1"})
        output, _ = process.communicate(timeout=60)
        check(process.returncode == 0 and whole(target), "wget serves as well as curl", output)
    else:
        skip("wget serves as well as curl", "wget is not installed")

    shutil.copy(local, folder / "mini:local.tar.gz")
    process = start("--from", "mini:local.tar.gz", "--md5", md5, folder / "colon", cwd=folder)
    output, _ = process.communicate(timeout=60)
    check(process.returncode == 0 and whole(folder / "colon"), "an archive whose name is a host's to tar", output)

    installed = fresh("installed")  # without the Makefile
    shutil.copytree(FETCH.parent, installed / "launch")
    bare = {"PATH": os.environ["PATH"]}
    for name, env in (("without HOME", bare), ("with an empty HOME", bare | {"HOME": ""}),
                      ("with a relative XDG_CACHE_HOME", bare | {"XDG_CACHE_HOME": "here"})):
        done = subprocess.run([installed / "launch/fetch-cifar10", "--help"], env=env, capture_output=True, text=True,
                              check=False)
        home = pwd.getpwuid(os.geteuid()).pw_dir
        check(done.returncode == 0 and f"(default: {home}/.cache/dtrain/cifar-10" in done.stdout,
              f"installed, and {name}: the user's cache", done.stdout + done.stderr)

    target = fresh("race") / "cifar"
    server.requests = 0
    racers = [start("--from", server.url(), "--md5", md5, target) for _ in range(4)]
    outputs = [racer.communicate(timeout=60)[0] for racer in racers]
    check(all(racer.returncode == 0 for racer in racers) and whole(target) and
          os.listdir(target.parent) == ["cifar"], "four at once: all succeed", "".join(outputs))
    check(server.requests == 1, "four at once: one of them downloads", server.requests)


os.environ["no_proxy"] = "127.0.0.1"
with tempfile.TemporaryDirectory(prefix="dtrain-fetch-") as temporary_folder:
    main(Path(temporary_folder))
finish()
