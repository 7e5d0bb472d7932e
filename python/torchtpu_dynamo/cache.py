"""Where executables are kept for later processes, and how they are found again.

Keys, files and their checks are the compiler's (`compiler/driver/src/cache.rs`). A cache never fails a
compilation: what goes wrong is counted, logged, and warned of once. Nothing here may import torch: the
command line uses it."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ._torchtpu import Cache
from .counters import counters

if TYPE_CHECKING:
    from ._torchtpu import Client, Executable
    from .export import Exported
    from .options import Options

log = logging.getLogger("torchtpu_dynamo")

DEFAULT_SIZE = 4 << 30

_lock = threading.Lock()
_warned = False


def folder() -> Path:
    """TORCHTPU_CACHE_DIR, else `torchtpu` in the user's cache folder."""
    named = os.environ.get("TORCHTPU_CACHE_DIR")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "torchtpu"


def size() -> int:
    """TORCHTPU_CACHE_SIZE in bytes (`500M` and `4GiB` are understood), else 4 GiB."""
    text = os.environ.get("TORCHTPU_CACHE_SIZE", "").strip()
    if not text:
        return DEFAULT_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        warn(f"TORCHTPU_CACHE_SIZE={text} is no size such as 500M or 4G; {DEFAULT_SIZE >> 30} GiB is used")
        return DEFAULT_SIZE
    return min(int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")), 2**63 - 1)


def enabled(options: Options) -> bool:
    """Whether the option `cache`, else TORCHTPU_CACHE, asks for it. A dump shows every stage of every
    graph, so that nothing may be taken from a cache; and torch's switch for all caches is ours, too."""
    if os.environ.get("TORCHTPU_DUMP") or _torch_disables():
        return False
    return os.environ.get("TORCHTPU_CACHE", "1") != "0" if options.cache is None else options.cache


def _torch_disables() -> bool:
    config = sys.modules.get("torch.compiler.config")
    return bool(getattr(config, "force_disable_caches", False))


def store(options: Options) -> Cache | None:
    """The cache to use; None where it is turned off, or its folder cannot be used."""
    return _open(folder(), size()) if enabled(options) else None


@functools.cache
def _open(path: Path, limit: int) -> Cache | None:
    try:
        return Cache(path, limit)
    except OSError as e:
        problem(str(e))
        return None


def lookup(
    opened: Cache,
    exported: Exported,
    payload: str,
    bindings: dict[str, int],
    options: Options,
    client: Client,
) -> tuple[str | None, Executable | None]:
    """The key of a graph at these sizes, and its executable if an earlier process left it. Raises
    TorchTPUError for bad options."""
    key, executable, read, wrong = opened.load(
        exported.name, payload, bindings, options.program_json(None), client, options.compile_json()
    )
    with counters.lock:
        counters.cache_read += read
        if executable is None:
            counters.cache_misses += 1
        else:
            counters.cache_loads += 1
    if wrong is not None:
        problem(wrong)
    return key, executable


def save(opened: Cache, key: str, executable: Executable, client: Client, exported: Exported) -> None:
    """Leaves an executable for later processes."""
    written, wrong = opened.save(key, executable, client, exported.kind, exported.nodes)
    with counters.lock:
        counters.cache_written += written
        counters.cache_stored += bool(written)
    if wrong is not None:
        problem(wrong)


def problem(what: str) -> None:
    """Counts what keeps the cache from being used, and warns of the first."""
    with counters.lock:
        counters.cache_errors += 1
    warn(f"{what}; what it would have kept is compiled")


def warn(what: str) -> None:
    """A warning, once in a process; what comes later is in the log."""
    global _warned
    with _lock:
        first, _warned = not _warned, True
    if first:
        warnings.warn(f"torchtpu cache: {what}", stacklevel=2)
    else:
        log.info("cache: %s", what)
