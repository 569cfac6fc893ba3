"""The Test Anything Protocol for Python tests: check, skip, finish. Read by prove."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_count = 0
_failed = 0
_lock = threading.Lock()
_kept = threading.local()  # .points: those of a part that runs beside others


def check(condition, name, detail=""):
    """One test point. `detail` is shown when it fails."""
    _tell(bool(condition), name, detail)
    return bool(condition)


def skip(name, reason):
    """A test point that cannot run here."""
    _tell(True, f"{name} # SKIP {reason}", "")


def _tell(*point):
    if getattr(_kept, "points", None) is not None:
        _kept.points.append(point)
        return
    with _lock:
        _print(*point)


def _print(good, name, detail):
    global _count, _failed
    _count += 1
    print(f"{'ok' if good else 'not ok'} {_count} - {name}")
    if not good:
        _failed += 1
        for line in str(detail).splitlines():
            print(f"#   {line}")
    sys.stdout.flush()


def _run(part):
    _kept.points = []
    try:
        part()
    finally:
        with _lock:
            for point in _kept.points:
                _print(*point)


def side_by_side(at_once, *parts):
    """Calls these functions, so many at a time: for parts that mostly wait. The points of each stand together."""
    with ThreadPoolExecutor(at_once) as pool:
        done = [pool.submit(_run, part) for part in parts]
    for part in done:
        part.result()  # raises what it has raised


def skip_all(reason):
    """A whole file that cannot run here."""
    print(f"1..0 # SKIP {reason}")
    sys.exit(0)


def finish():
    """The plan and the verdict; call it last."""
    print(f"1..{_count}")
    sys.exit(1 if _failed else 0)
