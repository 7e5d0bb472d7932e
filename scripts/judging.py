"""What the scripts that print libtpu's estimates have in common: their arguments, and a child process for each program."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def parser(
    doc: str | None, programs: Sequence[str], chips: Sequence[str] | None = None, more: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Programs by name, all of them but `more` by default, and what each is compiled with; any topology without `chips`."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    # As `choices` of several values, the default itself has to be one.
    every = tuple(programs)
    found.add_argument("program", nargs="*", default=every, choices=[*every, *more, every], metavar="PROGRAM")
    found.add_argument("--chip", nargs="+", default=["v5e", "v6e"], choices=chips)
    found.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an XLA option")
    found.add_argument("--disable", nargs="+", default=[], metavar="PASS")
    found.add_argument("--keep", type=Path, help="a folder for the artifacts")
    found.add_argument("--jobs", type=int, default=1, help="programs at once: libtpu has few threads for one")
    return found


def options(given: dict[str, Any]) -> dict[str, Any]:
    """The backend's options of a child's `option` and `disable`."""
    found: dict[str, Any] = {"disable_passes": given["disable"]}
    if given["option"]:
        found["xla_options"] = dict(o.split("=", 1) for o in given["option"])
    return found


def judged(artifact: Any, kind: str, topology: str) -> dict[str, Any]:
    """libtpu's schedule of a program as `torchtpu inspect` reads it. A loop of which nothing says how often it runs is an
    error: counted once, it would make the program cheaper than it is."""
    found: dict[str, Any] = artifact.judged(kind, topology)
    if loops := found["cost"]["unknown_trips"]:
        raise ValueError(f"no number of trips of {loops} in {kind}")
    return found


def peaks(artifact: Any, topology: str) -> str:
    """By program, libtpu's peak in MB and how far off the prediction is."""
    builds = [artifact.build(kind, topology) for kind in artifact.programs]
    of = [(build["predicted"], build["memory"]["peak"]) for build in builds]
    return ", ".join(f"{peak / 1e6:,.0f} ({predicted / peak - 1:+.0%})" for predicted, peak in of)


def head(names: Sequence[str]) -> None:
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)


def rows(of: Sequence[Any], judged: Callable[[Any], str], jobs: int) -> None:
    """Prints what is found of each, in their order."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(judged, of):
            print(found, flush=True)


def child(script: str, *given: Any) -> tuple[Any, str]:
    """What `run` printed in a process of its own, and None with a line of its error where it failed."""
    code = [sys.executable, script, "--one", json.dumps(given)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        # A message of several lines says first what is wrong.
        return None, next(
            (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception): ", line)), lines[-1]
        )
    return json.loads(done.stdout.splitlines()[-1]), ""


def run(main: Callable[[], None], one: Callable[..., Any]) -> None:
    """The child's part, where this process is one."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*json.loads(sys.argv[2]))))
    else:
        main()
