"""Where the stages of a graph can be looked at: `TORCHTPU_DUMP=folder`, torch's structured trace, the log.

Only writes what it is given; nothing here may compile or change a graph.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch._logging import trace_structured

log = logging.getLogger("torchtpu_dynamo")


def dump_folder(kind: str) -> str | None:
    """A new folder `NNN_<kind>` under TORCHTPU_DUMP; None when that is not set."""
    root = os.environ.get("TORCHTPU_DUMP")
    if not root:
        return None
    os.makedirs(root, exist_ok=True)
    taken = [int(name[:3]) for name in os.listdir(root) if name[:3].isdigit()]
    for number in itertools.count(max(taken, default=-1) + 1):
        folder = os.path.join(root, f"{number:03}_{kind}")
        try:
            os.mkdir(folder)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def write(folder: str, name: str, content: str | bytes) -> None:
    """Writes one file whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, os.path.join(folder, name))


def trace(name: str, text: Callable[[], str], compile_id: Any) -> None:
    """Adds an artifact to torch's structured trace (tlparse); `text` is called only if a trace is being written."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"torchtpu_{name}", "encoding": "string"},
        payload_fn=text,
        expect_trace_id=False,
        compile_id=compile_id,
    )


def show_source(gm: torch.fx.GraphModule, payload: str, folder: str | None, kind: str, compile_id: Any) -> None:
    """The FX graph and its payload: what is there before anything can fail."""
    trace(f"{kind}_fx", lambda: readable(gm), compile_id)
    trace(f"{kind}_payload", lambda: payload, compile_id)
    if folder is not None:
        write(folder, "fx.py", readable(gm))
        write(folder, "payload.json", payload)


def show_program(program: Any, folder: str | None, kind: str, compile_id: Any) -> None:
    """The stages of a program."""
    stages: dict[str, Callable[[], str]] = {
        "ir_before.txt": lambda: program.graph_text("before"),
        "ir_after.txt": lambda: program.graph_text("after"),
        "stablehlo.mlir": program.as_text,
    }
    for name, text in stages.items():
        trace(f"{kind}_{name.partition('.')[0]}", text, compile_id)
        if folder is not None:
            write(folder, name, text())
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s of %s\n%s", name, program.name, text())
    if folder is not None:
        write(folder, "stablehlo.bc", program.as_bytecode())


def readable(gm: torch.fx.GraphModule) -> str:
    """The graph as Python source."""
    return gm.print_readable(print_output=False)
