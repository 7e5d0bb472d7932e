"""Runs the frozen list in child processes and writes one JSON line an entry.

python -m tests.architectures --library timm [--match RE] [--shard 0/4] [--backend aot_eager] [--resume]
"""

from __future__ import annotations

import argparse
import collections
import json
import re
from pathlib import Path

from tests.children import ROOT, Entry, run

from .zoo import LIBRARIES, names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="default: all")
    parser.add_argument("--match", default="", help="a regular expression that entries' names must match")
    parser.add_argument("--shard", default="0/1", help="every n-th entry, from the i-th: i/n")
    parser.add_argument("--backend", default="torchtpu_dynamo")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one entry")
    parser.add_argument("--resume", action="store_true", help="leave out entries that --out has already")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "architectures" / "results.jsonl")
    args = parser.parse_args()
    index, count = map(int, args.shard.split("/"))
    entries: list[Entry] = [
        {"library": library, "name": name, "backend": args.backend}
        for library in args.library or LIBRARIES
        for name in names(library)
        if re.search(args.match, name)
    ][index::count]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        args.out.write_text("")
    elif args.out.exists():
        done = {(r["library"], r["name"]) for r in map(json.loads, args.out.read_text().splitlines())}
        entries = [e for e in entries if (e["library"], e["name"]) not in done]
    # Libraries keep what they traced; a new process every so often keeps the memory bounded.
    results = run("tests.architectures.worker", entries, args.workers, args.timeout, args.out, lifetime=40)
    for library in args.library or LIBRARIES:
        counts = collections.Counter(r["status"] for r in results if r["library"] == library)
        print(library, dict(counts.most_common()))


if __name__ == "__main__":
    main()
