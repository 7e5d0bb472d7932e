"""Runs entries of a suite in child processes, so that an abort or a hang costs one entry and no more.

A child is a module that reads one JSON object a line from stdin and answers each with one on the stdout that it was
given. An answer is the entry with its results; the parent adds `status` where there is none: `abort` or `timeout`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Entry = dict[str, Any]


class Child:
    """A worker process, replaced when it dies or takes too long, and after `lifetime` entries."""

    def __init__(self, module: str, timeout: float, lifetime: int | None = None) -> None:
        self.module = module
        self.timeout = timeout
        self.lifetime = lifetime
        self.answered = 0
        self.process: subprocess.Popen[str] | None = None

    def ask(self, entry: Entry) -> Entry:
        if self.process is None:
            self.answered = 0
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
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
            self.answered += 1
            if self.answered == self.lifetime:
                self.close()
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
            self.process = None


def run(
    module: str,
    entries: list[Entry],
    workers: int,
    timeout: float,
    out: Path | None,
    lifetime: int | None = None,
) -> list[Entry]:
    """The results, in the order in which they came; each is appended to `out` as one JSON line as it comes."""
    queue: Queue[Entry] = Queue()
    for entry in entries:
        queue.put(entry)
    results: list[Entry] = []
    lock = threading.Lock()

    def work() -> None:
        child = Child(module, timeout, lifetime)
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
