"""What the fixture `hlo_snapshot` compares: a program's StableHLO, and what a topology's compiler makes of it.

Pytest's side is `pytest_plugin`. torch is imported where something is lowered."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hlo_text
from . import report_text as words
from .files import replacing

if TYPE_CHECKING:
    from ._torchtpu import Program

FOLDER = "__hlo_snapshots__"


def lowered(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    train: bool,
    options: Mapping[str, Any] | None,
) -> tuple[dict[str, str], Mapping[str, Program]]:
    """By kind the text, with locations, of a function's programs, and the programs."""
    from .api import lower

    programs = lower(fn, *args, train=train, options=options, **kwargs).programs
    texts = {kind: hlo_text.stable(program.as_text(True), kind) for kind, program in programs.items()}
    return texts, programs


def without_locations(text: str) -> str:
    """The text as it is kept, unless locations are asked for."""
    kept = (re.sub(r"\s*loc\((?:#loc\d*|unknown)\)", "", line) for line in text.splitlines())
    return "\n".join(line for line in kept if not line.startswith("#loc")) + "\n"


def relative(text: str, root: Path) -> str:
    """Locations with paths from the root of the tests, and those of installed packages from site-packages."""

    def short(found: re.Match[str]) -> str:
        path = found[1]
        _, _, package = path.rpartition("site-packages" + os.sep)
        inside = path.startswith(f"{root}{os.sep}")
        return (
            f'"{package if package != path else os.path.relpath(path, root) if inside else path}":{found[2]}'
        )

    return re.sub(r'"([^"]+)":(\d+)', short, text)


def summary(kind: str, program: Program, topology: str, options_json: str) -> dict[str, Any]:
    """What a topology's compiler makes of a program: kernels, collectives, memory and cycles."""
    from ._torchtpu import judge
    from .ahead import topologies

    described = topologies.check([topology])[topology]
    prepared = program.for_tpu(topology, options_json)
    built = topologies.build(
        prepared.as_bytecode(),
        topology,
        name=kind,
        options_json=prepared.options,
        replicas=program.devices,
    )
    judged = json.loads(judge(built.hlo, topology, program.devices))
    cost, replay = judged["cost"], judged["replay"] or {}
    return {
        "topology": topology,
        "kind": described["kind"],
        "kernels": judged["summary"]["kernels"],
        "collectives": {**replay.get("asynchronous", {}), **replay.get("synchronous", {})},
        "memory": dict(built.memory),
        "cycles": None if cost is None else cost["estimated"] + cost["floor"],
        "unknown": [] if cost is None else cost["unknown"],
    }


def summary_problems(old: Mapping[str, Any], new: Mapping[str, Any], band: float) -> list[str]:
    """Where two summaries differ; cycles and memory may by `band`, a fraction."""
    found = []
    for what in ("kernels", "collectives"):
        for name in sorted({*old[what], *new[what]}):
            a, b = old[what].get(name, 0), new[what].get(name, 0)
            if a != b:
                found.append(f"{what} {name}: {a} -> {b}")
    figures = [
        (f"memory {name}", old["memory"].get(name, 0), new["memory"].get(name, 0)) for name in new["memory"]
    ]
    figures.append(("cycles", old["cycles"] or 0, new["cycles"] or 0))
    for name, a, b in figures:
        if abs(b - a) > band * max(a, 1):
            share = f" ({100 * (b - a) / a:+.1f}%)" if a else ""
            found.append(f"{name}: {words.number(a)} -> {words.number(b)}{share}, beyond {100 * band:g}%")
    if old["unknown"] != new["unknown"]:
        found.append(f"without an estimate: {old['unknown']} -> {new['unknown']}")
    return found


def libtpu_version() -> str:
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return "unknown"


def torch_version() -> str:
    import torch

    return ".".join(torch.__version__.split(".")[:2])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())
