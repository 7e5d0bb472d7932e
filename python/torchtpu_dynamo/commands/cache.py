"""`torchtpu cache`: the compiled executables that earlier processes left."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from .. import cache
from .._torchtpu import COMPILER, Cache


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=_CACHE_ACTIONS, help="list, remove, or check what is kept")
    parser.add_argument("--dir", help="the folder; default: TORCHTPU_CACHE_DIR, else ~/.cache/torchtpu")


def run(args: argparse.Namespace) -> int:
    """Shows, empties or checks the cache of compiled executables."""
    folder = cache.Path(args.dir).absolute() if args.dir else cache.folder()
    if not folder.exists():
        print(f"{folder}: nothing there")
        return 0
    try:
        return _CACHE_ACTIONS[args.action](Cache(folder, cache.size()))
    except OSError as e:
        print(f"torchtpu cache: {e}", file=sys.stderr)
        return 1
    finally:
        print(folder)


def _ls(opened: Cache) -> int:
    entries = opened.entries()
    for e in entries:
        age = _age(time.time() - e["used"])
        if e["kind"] is None:
            what = "damaged, or of another format"
        else:
            version = "" if e["compiler"] == COMPILER else f"  by compiler {e['compiler']}"
            what = f"{e['kind']:<9} {e['nodes']:>6} nodes  {e['graph']}  {e['plugin']}{version}"
        print(f"{e['key'][:12]}  {_bytes(e['bytes']):>10}  {age:>8} ago  {what}")
    total = _bytes(sum(e["bytes"] for e in entries))
    print(f"{len(entries)} executables, {total} of at most {_bytes(cache.size())}")
    return 0


def _clear(opened: Cache) -> int:
    count, size = opened.clear()
    print(f"removed {count} files, {_bytes(size)}")
    return 0


def _verify(opened: Cache) -> int:
    checked = opened.verify()
    damaged = [(name, problem) for name, problem in checked if problem is not None]
    for name, problem in damaged:
        print(f"{name} is {problem}")
    print(f"{len(checked)} files checked, {len(damaged)} damaged (a damaged file is never used)")
    return 1 if damaged else 0


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


_CACHE_ACTIONS: dict[str, Callable[[Cache], int]] = {"ls": _ls, "clear": _clear, "verify": _verify}
