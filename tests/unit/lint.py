#!/usr/bin/env python3
"""What reads the sources without running them finds nothing: cppcheck, shellcheck, pyflakes, clang-format. Slower
readers: make lint."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

from tap import check, finish, skip, skip_all

ROOT = Path(__file__).resolve().parents[2]
C_FOLDERS = ["src", "kernels/cpu", "kernels/reference", "kernels/definition"]
CPPCHECK = ["--enable=warning,performance,portability", "--std=c11", "-Iinclude", "-I.", "--quiet",
            "--error-exitcode=1",
            "--template=gcc", "--inline-suppr", "-DcJSON_ArrayForEach(i,all)=for(i=all;i;i=i->next)",
            "--suppress=missingIncludeSystem", "--suppress=uninitvar",
            "--suppress=ctuuninitvar",  # compilers know better
            "--suppress=invalidPointerCast"]  # of float and int, which are what vectors and bits are made of
WIDTH = 120
SHELLCHECK = ["--external-sources", "--source-path=SCRIPTDIR"]


def tracked():
    listing = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True,
                             text=True, check=False)
    return [name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]


def first_line(name):
    with open(ROOT / name, "rb") as file:
        return file.readline(200)


def clean(tool, options, names):
    """names: files or folders, at least one."""
    if shutil.which(tool) is None:
        skip(tool, "it is not installed")
        return
    done = subprocess.run([tool, *options, *names], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    check(names and done.returncode == 0, f"{tool} on {len(names)} files or folders", done.stdout)


def guards(names):
    """src/comm/watch.h is guarded by DTRAIN_COMM_WATCH_H, include/comm.h by DTRAIN_COMM_H."""
    odd = []
    for name in names:
        guard = "_".join(["DTRAIN", *name.split("/")[1:]]).replace(".", "_").upper()
        if f"#ifndef {guard}\n#define {guard}\n" not in (ROOT / name).read_text(encoding="utf-8"):
            odd.append(f"{name}: its guard is not {guard}")
    check(not odd, "every header is guarded by its name", "\n".join(odd))


COMMENT = re.compile(r"\s*(/\*|\*[ /]|//|#(?!define|include|pragma|if|error))")


def comment_lines(name, text):
    """The numbers, from 1, of lines that are nothing but a comment, or of a docstring."""
    numbers = {number for number, line in enumerate(text.splitlines(), 1) if COMMENT.match(line)}
    if name.endswith(".py") or text.startswith("#!/usr/bin/env python3"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                numbers |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return numbers


def narrow(names):
    """Lines keep to the width of the style: every line, but in src/ and include/ the comments (of the code there
    clang-format sees to that), and in pages what is neither a table nor indented."""
    wide = []
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        lines = text.splitlines()
        sources = name.startswith(("src/", "include/")) and name.endswith((".c", ".h"))
        held = sorted(comment_lines(name, text)) if sources else range(1, len(lines) + 1)
        if name.endswith(".md"):
            held = [number for number in held if not lines[number - 1].startswith(("|", "    "))]
        wide += [f"{name}:{number}: {len(lines[number - 1])} characters" for number in held
                 if len(lines[number - 1]) > WIDTH]
    check(not wide, f"no line is wider than {WIDTH} characters", "\n".join(wide))


def on_the_map(page, names):
    """The page's picture, which is indented, names every .c file: or how it begins, as cudnn*."""
    picture = "\n".join(re.findall(r"^    .*", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    words = [word.replace("*", r"\w*") for word in re.findall(r"\w+\*?", picture)]
    absent = [name for name in names if not any(re.fullmatch(word, Path(name).stem) for word in words)]
    check(names and not absent, f"the picture of {page} has every module", "\n".join(absent))


def includes(name):
    """The headers that a source includes as "...", as it names them."""
    return re.findall(r'^#\s*include "(.*)"', (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)


def home(header, user, names):
    """The folder that a header, as `user` includes it, belongs to: of those in include/ the one whose source has its
    name. None: it is the system's, or for everybody, as philox.h."""
    there = [name for name in (f"{Path(user).parent}/{header}", f"include/{header}", header) if name in names]
    if there and not there[0].startswith("include/"):
        return str(Path(there[0]).parent)
    sources = [name for name in names if re.fullmatch(rf"src/\w+/{Path(header).stem}\.c", name)]
    return str(Path(sources[0]).parent) if there and sources else None


def imports(page, names):
    """A folder includes only its own headers and those of folders that stand further down in the page's picture, and so
    do its headers in include/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    levels = {"src": 0}  # main.c
    for level, line in enumerate(re.findall(r"^    .*", text, re.MULTILINE), 1):
        for folder in re.findall(r"(?<!\S)([a-z]+)/(?!\S)", line):
            levels[folder if folder == "kernels" else f"src/{folder}"] = level
    odd, seen = [], 0
    for user in names:
        folder = home(Path(user).name, "include/", names) if user.startswith("include/") else str(Path(user).parent)
        for header in includes(user):
            owner = home(header, user, names)
            if None in (folder, owner) or owner == folder:
                continue
            above, below = (re.sub(r"^kernels/.*", "kernels", name) for name in (folder, owner))
            seen += 1
            if above not in levels or below not in levels or levels[above] >= levels[below] and above != below:
                odd.append(f"{user} includes {header}: {owner} is not below {folder}")
    check(seen > 100 and not odd, f"folders include what is below them in the picture of {page}", "\n".join(odd))


def contracts(names):
    """Of a header in include/ the folder that it belongs to is not the only user: else it lies in that folder."""
    owners = {name: home(Path(name).name, "include/", names) for name in names if name.startswith("include/")}
    users = {name: {owner} for name, owner in owners.items()}
    for user in names:
        folder = str(Path(user).parent)
        for header in includes(user):
            if f"include/{header}" in users and (folder == "include" or f"{folder}/{header}" not in names):
                users[f"include/{header}"].add(owners.get(user, folder))
    alone = [name for name, folders in users.items() if len(folders - {None}) < 2]
    check(users and not alone, "what one folder alone uses lies in it, not in include/", "\n".join(alone))


def told_truly(page, names):
    """The files of a page's table are there and have as many lines in all as it says, to a hundred; and the functions
    that it names are there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    path = [name if name in names else f"src/{name}"
            for name in re.findall(r"^\| ([a-z/0-9_]+\.c) \|", text, re.MULTILINE)]
    odd = [f"there is no {name}" for name in path if name not in names]
    told = int(re.search(r"in order, some ([0-9,]+) lines", text)[1].replace(",", ""))
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in path if name in names)
    if abs(lines - told) > 100:
        odd.append(f"the path of a step has {lines} lines, not {told}")
    sources = "".join((ROOT / name).read_text(encoding="utf-8") for name in names
                      if name.startswith(("src/", "include/", "kernels/")) and name.endswith((".c", ".h")))
    odd += [f"there is no {name}" for name in set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
            if not re.search(rf"\b{name}\b", sources)]
    check(not odd, f"{page} names files and functions that are there", "\n".join(odd))


files = tracked()
if not files:
    skip_all("git does not list the sources here")
clean("shellcheck", SHELLCHECK, [name for name in files if name.endswith(".sh") or b"bash" in first_line(name)])
clean("pyflakes3", [], [name for name in files if name.endswith(".py") or b"python3" in first_line(name)])
clean("cppcheck", CPPCHECK, C_FOLDERS)
clean("clang-format", ["--dry-run", "--Werror"], subprocess.run(
    ["make", "-s", "print-formatted"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
guards([name for name in files if name.startswith(("src/", "include/")) and name.endswith(".h")])
narrow([name for name in files if re.search(r"\.(c|h|cu|cuh|cpp|py|sh|sbatch|md|mk)$|(^|/)Makefile$", name) or
        first_line(name).startswith(b"#!") if name != "bench/RESULTS.md"])
told_truly("src/README.md", files)
sources = [name for name in files if re.fullmatch(r"(src|include|kernels|bench)/.*\.(c|h|cu|cuh)", name)]
imports("src/README.md", [name for name in sources if not name.startswith("bench/")])
contracts(sources)
on_the_map("src/README.md", [name for name in files if re.fullmatch(r"src/.*\.c", name)])
finish()
