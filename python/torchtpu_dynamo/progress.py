"""A note on standard error while a compilation takes long.

Only the note: what is compiled and timed is the caller's business.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from types import TracebackType

log = logging.getLogger("torchtpu_dynamo")

PATIENCE = 1.0  # seconds without a word
PERIOD = 0.5  # seconds between updates


class Progress:
    """`with Progress("forward 0/0, 343 nodes"): ...`

    After one second, on a terminal, shows one line that updates itself and disappears; elsewhere, logs once.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown = self._logged = False

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        _watch.add(self)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _watch.remove(self)

    def _show(self, elapsed: float) -> None:
        if sys.stderr.isatty():
            self._shown = True
            sys.stderr.write(f"\r\033[Ktorchtpu: compiling {self.what} {elapsed:.0f} s")
            sys.stderr.flush()
        elif not self._logged:
            self._logged = True
            log.info("compiling %s takes more than %g s", self.what, PATIENCE)

    def _erase(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


class _Watch:
    """One thread for all compilations, as starting one for each would take longer than many of them; it shows the
    oldest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._compiling: list[Progress] = []
        self._thread: threading.Thread | None = None

    def add(self, progress: Progress) -> None:
        with self._changed:
            self._compiling.append(progress)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="torchtpu-progress", daemon=True)
                self._thread.start()
            elif len(self._compiling) == 1:
                self._changed.notify()

    def remove(self, progress: Progress) -> None:
        with self._changed:
            self._compiling.remove(progress)
            progress._erase()

    def _run(self) -> None:
        with self._changed:
            while True:
                if not self._compiling:
                    self._changed.wait()
                    continue
                elapsed = time.monotonic() - self._compiling[0]._start
                if elapsed >= PATIENCE:
                    self._compiling[0]._show(elapsed)
                self._changed.wait(PERIOD if elapsed >= PATIENCE else PATIENCE - elapsed)


_watch = _Watch()


def _after_fork_in_child() -> None:
    global _watch
    _watch = _Watch()  # the thread is gone, and may have held the lock


os.register_at_fork(after_in_child=_after_fork_in_child)
