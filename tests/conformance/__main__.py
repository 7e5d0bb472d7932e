"""Runs a suite in child processes and writes one JSON line an entry.

`make conformance` runs OpInfo; by hand:

    python -m tests.conformance --suite opinfo --dtypes float32 --ops 'conv' [--train] [--shard 0/4]
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from .suites import NAMES

ROOT = Path(__file__).resolve().parents[2]
Entry = dict[str, Any]


class Child:
    """A worker process, replaced when it dies or takes too long."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[str] | None = None

    def ask(self, entry: Entry) -> Entry:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.conformance.worker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self.timeout, process.kill)
        start = time.perf_counter()
        timer.start()
        try:
            process.stdin.write(json.dumps(entry) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if answer:
            result: Entry = json.loads(answer)
            return result
        late = time.perf_counter() - start >= self.timeout
        code = process.wait()
        self.process = None
        return {**entry, "status": "timeout" if late else "abort", "details": [f"exit code {code}"]}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def entry(
    suite: str,
    name: str,
    mode: str,
    dynamic: bool = False,
    backend: str = "torchtpu_dynamo",
    max_samples: int = 0,
) -> Entry:
    """What a worker is asked for. A mode is a dtype, followed by `/train` where gradients are compared."""
    dtype, _, train = mode.partition("/")
    return {
        "suite": suite,
        "name": name,
        "dtype": dtype,
        "train": bool(train),
        "dynamic": dynamic,
        "backend": backend,
        "max_samples": max_samples,
    }


def run(entries: list[Entry], workers: int, timeout: float, out: Path | None) -> list[Entry]:
    queue: Queue[Entry] = Queue()
    for entry in entries:
        queue.put(entry)
    results: list[Entry] = []
    lock = threading.Lock()

    def work() -> None:
        child = Child(timeout)
        try:
            while True:
                try:
                    entry = queue.get_nowait()
                except Empty:
                    return
                result = child.ask(entry)
                with lock:
                    results.append(result)
                    if out is not None:
                        with out.open("a") as f:
                            f.write(json.dumps(result) + "\n")
                    if sys.stderr.isatty():
                        print(
                            f"\r{len(results)}/{len(entries)} {result['name']:40.40}", end="", file=sys.stderr
                        )
        finally:
            child.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=NAMES, default="opinfo")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--train", action="store_true", help="compare gradients as well")
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
    modes = [f"{dtype}/train" if args.train else dtype for dtype in args.dtypes.split(",")]
    entries = [
        entry(args.suite, name, mode, args.dynamic, args.backend, args.max_samples)
        for mode in modes
        for name in names
    ]
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("")
    results = run(entries, args.workers, args.timeout, args.out)
    for dtype in args.dtypes.split(","):
        counts = collections.Counter(r["status"] for r in results if r["dtype"] == dtype)
        print(dtype, dict(counts.most_common()))


if __name__ == "__main__":
    main()
