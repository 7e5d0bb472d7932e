"""A note on standard error while a compilation takes long.

Only the note: what is compiled and timed is the caller's business.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType

log = logging.getLogger("torchtpu_dynamo")

PATIENCE = 1.0  # seconds without a word
PERIOD = 0.5  # seconds between updates


class Progress:
    """`with Progress("forward 0/0, 343 nodes") as p: p.stage = "xla"; ...`

    After one second, on a terminal, shows one line that updates itself and disappears; elsewhere, logs once.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.stage = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, name="torchtpu-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        if self._done.wait(PATIENCE):
            return
        if not sys.stderr.isatty():
            log.info("compiling %s takes more than %g s", self.what, PATIENCE)
            return
        while True:
            elapsed = time.monotonic() - self._start
            sys.stderr.write(f"\r\033[Ktorchtpu: compiling {self.what} {self.stage} {elapsed:.0f} s")
            sys.stderr.flush()
            if self._done.wait(PERIOD):
                break
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
