"""Where the stages of a graph can be looked at: `TORCHTPU_DUMP=folder`, torch's structured trace, the log.

Only writes what it is given; nothing here may compile or change a graph.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._logging import trace_structured

from ._torchtpu import Program

log = logging.getLogger("torchtpu_dynamo")
trace_log = logging.getLogger("torch.__trace")


def folder_wanted() -> str | None:
    """The folder that TORCHTPU_DUMP names."""
    return os.environ.get("TORCHTPU_DUMP") or None


@contextlib.contextmanager
def folder(kind: str) -> Iterator[str | None]:
    """A new folder `NNN_<kind>` under TORCHTPU_DUMP, visible under that name once the block is done; None when that is
    not set."""
    root = folder_wanted()
    if root is None:
        yield None
        return
    os.makedirs(root, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".partial_", dir=root)
    os.chmod(partial, 0o755)
    try:
        yield partial
    finally:
        _publish(partial, root, kind)


def _publish(partial: str, root: str, kind: str) -> None:
    taken = [int(name[:3]) for name in os.listdir(root) if name[:3].isdigit()]
    for number in itertools.count(max(taken, default=-1) + 1):
        try:
            # Fails where the name is taken: a folder in use is not empty.
            os.rename(partial, os.path.join(root, f"{number:03}_{kind}"))
        except OSError as e:
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return


def write(folder: str, name: str, text: str) -> None:
    """Writes one file."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


def trace(name: str, text: Callable[[], str], compile_id: Any) -> None:
    """Adds an artifact to torch's structured trace (tlparse); `text` is called only if a trace is being written."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"torchtpu_{name}", "encoding": "string"},
        payload_fn=text,
        expect_trace_id=False,
        compile_id=compile_id,
    )


def show_source(source: str, payload: str, folder: str | None, kind: str, compile_id: Any) -> None:
    """The FX graph and its payload: what is there before anything can fail."""
    trace(f"{kind}_fx", lambda: source, compile_id)
    trace(f"{kind}_payload", lambda: payload, compile_id)
    if folder is not None:
        write(folder, "fx.py", source)
        write(folder, "payload.json", payload)


def show_program(program: Program, kind: str, compile_id: Any) -> None:
    """The stages of a program, which writes its own files."""
    stages: dict[str, Callable[[], str]] = {
        "ir_before": lambda: program.graph_text("before"),
        "ir_after": lambda: program.graph_text("after"),
        "stablehlo": program.as_text,
    }
    for name, text in stages.items():
        trace(f"{kind}_{name}", text, compile_id)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s of %s\n%s", name, program.name, text())


def source_text(gm: torch.fx.GraphModule) -> str:
    """The graph as Python source; nothing when nobody is going to look at it."""
    watched = folder_wanted() is not None or bool(trace_log.handlers)
    return gm.print_readable(print_output=False) if watched else ""
