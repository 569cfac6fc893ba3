"""The Test Anything Protocol for Python tests: check, skip, finish. Read by prove."""

import sys

_count = 0
_failed = 0


def check(condition, name, detail=""):
    """One test point. `detail` is shown when it fails."""
    global _count, _failed
    _count += 1
    print(f"{'ok' if condition else 'not ok'} {_count} - {name}")
    if not condition:
        _failed += 1
        for line in str(detail).splitlines():
            print(f"#   {line}")
    sys.stdout.flush()
    return bool(condition)


def skip(name, reason):
    """A test point that cannot run here."""
    global _count
    _count += 1
    print(f"ok {_count} - {name} # SKIP {reason}", flush=True)


def skip_all(reason):
    """A whole file that cannot run here."""
    print(f"1..0 # SKIP {reason}")
    sys.exit(0)


def finish():
    """The plan and the verdict; call it last."""
    print(f"1..{_count}")
    sys.exit(1 if _failed else 0)
