"""Runs a suite in child processes and writes one JSON line an entry.

`make conformance` runs OpInfo; by hand:

    python -m tests.conformance --suite opinfo --dtypes float32 --ops 'conv' [--train] [--shard 0/4]
"""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path

from tests.children import Entry, run

from .suites import NAMES


def entry(
    suite: str,
    name: str,
    mode: str,
    backend: str = "torchtpu_dynamo",
    max_samples: int = 0,
) -> Entry:
    """What a worker is asked for. `tests.exceptions.mode_of` says what a mode is."""
    dtype, *how = mode.split("/")
    return {
        "suite": suite,
        "name": name,
        "dtype": dtype,
        "train": "train" in how,
        "fallback": "fallback" in how,
        "dynamic": "dynamic" in how,
        "backend": backend,
        "max_samples": max_samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=NAMES, default="opinfo")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--train", action="store_true", help="compare gradients as well")
    parser.add_argument("--fallback", action="store_true", help='compile with options={"fallback": "eager"}')
    parser.add_argument("--dynamic", action="store_true", help="compile with dynamic=True")
    parser.add_argument("--backend", default="torchtpu_dynamo")
    parser.add_argument("--ops", default="", help="a regular expression that names must match")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one entry")
    parser.add_argument(
        "--max-samples", type=int, default=0, help="samples of an entry, spread evenly; 0: all"
    )
    parser.add_argument("--out", type=Path, help="a file for one JSON line an entry")
    args = parser.parse_args()
    index, count = map(int, args.shard.split("/"))
    names = [n for n in NAMES[args.suite]() if re.search(args.ops, n)][index::count]
    how = "/train" * args.train + "/fallback" * args.fallback + "/dynamic" * args.dynamic
    modes = [dtype + how for dtype in args.dtypes.split(",")]
    entries = [
        entry(args.suite, name, mode, args.backend, args.max_samples) for mode in modes for name in names
    ]
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("")
    results = run("tests.conformance.worker", entries, args.workers, args.timeout, args.out)
    for dtype in args.dtypes.split(","):
        counts = collections.Counter(r["status"] for r in results if r["dtype"] == dtype)
        print(dtype, dict(counts.most_common()))


if __name__ == "__main__":
    main()
