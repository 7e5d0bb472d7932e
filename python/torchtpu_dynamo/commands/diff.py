"""`torchtpu diff`: what changed between two artifacts, two programs, or two revisions of committed snapshots."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import hlo_snapshot, hlo_text
from .. import report_text as words
from .._torchtpu import TorchTPUError
from ..ahead import inspection, inspection_html
from ..ahead.artifact import Artifact
from ..files import replacing

MOST = 200


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="an artifact, a StableHLO file, REVISION:FILE, or a git revision")
    parser.add_argument("b", help="the same, to compare with it")
    parser.add_argument(
        "--band", type=float, default=0.0, help="fraction by which cycles and memory may differ in silence"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="of two artifacts: write a page with both over time, on one scale"
    )


def run(args: argparse.Namespace) -> int:
    """Shows changed operations, cycles and memory; the exit status is 1 where something changed.

    Of two git revisions, the snapshots that pytest's fixture `hlo_snapshot` keeps are compared."""
    shown = list(compared(args.a, args.b, args.band))
    if args.html:
        if not (_is_artifact(args.a) and _is_artifact(args.b)):
            raise TorchTPUError(f"--html is for two artifacts, and {args.a} and {args.b} are not")
        old, new = (inspection.inspected(Artifact(name)) for name in (args.a, args.b))
        with replacing(args.html) as file:
            file.write(inspection_html.compared(old, new, shown).encode())
        print(args.html)
        return 1 if shown else 0
    print("\n".join(shown) if shown else "no difference")
    return 1 if shown else 0


def compared(a: str, b: str, band: float) -> Iterator[str]:
    if _is_artifact(a) and _is_artifact(b):
        yield from artifacts(Artifact(a), Artifact(b), band)
        return
    texts = _text(a), _text(b)
    if texts[0] is not None and texts[1] is not None:
        yield from programs(texts[0], texts[1])
        return
    if Path(a).exists() or Path(b).exists():
        raise TorchTPUError(
            f"{a} and {b} are not of one kind\nhelp: two artifacts, two StableHLO files, or two revisions"
        )
    yield from revisions(a, b, band)


def _is_artifact(name: str) -> bool:
    path = Path(name)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"ttpu-art"


def _text(name: str) -> str | None:
    """A StableHLO file, in the working tree or of a revision; None for what is none."""
    path = Path(name)
    if path.is_file() and not _is_artifact(name):
        return path.read_text(errors="replace")
    return git("show", name) if ":" in name and not path.exists() else None


def git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TorchTPUError(f"git {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def programs(old: str, new: str) -> Iterator[str]:
    old, new = hlo_text.stable(old, "program"), hlo_text.stable(new, "program")
    shown = list(hlo_text.difference(old, new))
    yield from (f"  from {place}" for place in hlo_text.changed_lines(old, new)[:20] if shown)
    yield from (f"  {change}" for change in hlo_text.count_changes(old, new))
    yield from shown[:MOST]
    if len(shown) > MOST:
        yield f"... {len(shown) - MOST} lines more"


def artifacts(a: Artifact, b: Artifact, band: float) -> Iterator[str]:
    for kind in dict.fromkeys((*a.programs, *b.programs)):
        if kind not in a.programs or kind not in b.programs:
            yield f"{kind}: only in {(a if kind in a.programs else b).path}"
            continue
        if shown := list(programs(a.stablehlo(kind), b.stablehlo(kind))):
            yield f"{kind}:"
            yield from shown
    old, new = (
        {(build["program"], build["topology"]): build for build in inspection.inspected(x)["builds"]}
        for x in (a, b)
    )
    for key in dict.fromkeys((*old, *new)):
        name = " for ".join(key)
        if key not in old or key not in new:
            yield f"{name}: only in {(a if key in old else b).path}"
            continue
        changes = [f"  {line}" for line in figures(old[key], new[key], band)]
        if changes:
            yield f"{name}:"
            yield from changes


def figures(old: dict[str, Any], new: dict[str, Any], band: float) -> Iterator[str]:
    pairs = [
        (f"memory {name}", old["memory"].get(name, 0), new["memory"].get(name, 0)) for name in new["memory"]
    ]
    if old.get("cycles") and new.get("cycles"):
        pairs.append(("cycles", old["cycles"]["total"], new["cycles"]["total"]))
        for what in ("by_family", "by_line"):
            before, after = old["cycles"][what], new["cycles"][what]
            for name in dict.fromkeys((*before, *after)):
                label = words.short_line(name) if what == "by_line" and name else name or "no line"
                pairs.append((f"cycles of {label}", before.get(name, 0), after.get(name, 0)))
    for name, a, b in pairs:
        if abs(b - a) > band * max(a, 1) and a != b:
            share = f" ({100 * (b - a) / a:+.1f}%)" if a else ""
            yield f"{name}: {words.number(a)} -> {words.number(b)}{share}"


def revisions(a: str, b: str, band: float) -> Iterator[str]:
    names = git("diff", "--name-status", "--no-renames", a, b).splitlines()
    for status, path in (line.split("\t", 1) for line in names):
        if hlo_snapshot.FOLDER not in path and not path.endswith(".mlir"):
            continue
        if status != "M":
            yield f"{path}: {'new' if status == 'A' else 'gone'}"
            continue
        old, new = git("show", f"{a}:{path}"), git("show", f"{b}:{path}")
        if path.endswith(".json"):
            shown = hlo_snapshot.summary_problems(json.loads(old), json.loads(new), band)
        else:
            shown = list(programs(old, new))
        if shown:
            yield f"{path}:"
            yield from (f"  {line}" for line in shown)
